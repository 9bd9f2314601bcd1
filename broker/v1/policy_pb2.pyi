import datetime

from broker.v1 import tokens_pb2 as _tokens_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PolicyChangeDirection(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    POLICY_CHANGE_DIRECTION_UNSPECIFIED: _ClassVar[PolicyChangeDirection]
    POLICY_CHANGE_DIRECTION_MORE: _ClassVar[PolicyChangeDirection]
    POLICY_CHANGE_DIRECTION_LESS: _ClassVar[PolicyChangeDirection]
    POLICY_CHANGE_DIRECTION_OTHER: _ClassVar[PolicyChangeDirection]
POLICY_CHANGE_DIRECTION_UNSPECIFIED: PolicyChangeDirection
POLICY_CHANGE_DIRECTION_MORE: PolicyChangeDirection
POLICY_CHANGE_DIRECTION_LESS: PolicyChangeDirection
POLICY_CHANGE_DIRECTION_OTHER: PolicyChangeDirection

class ShowPolicyRequest(_message.Message):
    __slots__ = ("version",)
    VERSION_FIELD_NUMBER: _ClassVar[int]
    version: int
    def __init__(self, version: _Optional[int] = ...) -> None: ...

class ShowPolicyResponse(_message.Message):
    __slots__ = ("version", "document", "by", "applied_at", "reason", "applied_version")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DOCUMENT_FIELD_NUMBER: _ClassVar[int]
    BY_FIELD_NUMBER: _ClassVar[int]
    APPLIED_AT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    APPLIED_VERSION_FIELD_NUMBER: _ClassVar[int]
    version: int
    document: str
    by: str
    applied_at: _timestamp_pb2.Timestamp
    reason: str
    applied_version: int
    def __init__(self, version: _Optional[int] = ..., document: _Optional[str] = ..., by: _Optional[str] = ..., applied_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., reason: _Optional[str] = ..., applied_version: _Optional[int] = ...) -> None: ...

class ApplyPolicyRequest(_message.Message):
    __slots__ = ("request_id", "document", "expected_version", "reason", "plan")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    DOCUMENT_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_VERSION_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    document: str
    expected_version: int
    reason: str
    plan: str
    def __init__(self, request_id: _Optional[str] = ..., document: _Optional[str] = ..., expected_version: _Optional[int] = ..., reason: _Optional[str] = ..., plan: _Optional[str] = ...) -> None: ...

class ApplyPolicyResponse(_message.Message):
    __slots__ = ("version", "index")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    version: int
    index: int
    def __init__(self, version: _Optional[int] = ..., index: _Optional[int] = ...) -> None: ...

class PlanPolicyRequest(_message.Message):
    __slots__ = ("document",)
    DOCUMENT_FIELD_NUMBER: _ClassVar[int]
    document: str
    def __init__(self, document: _Optional[str] = ...) -> None: ...

class PlanPolicyResponse(_message.Message):
    __slots__ = ("plan", "version", "changes", "runs", "more_runs", "tokens")
    PLAN_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    RUNS_FIELD_NUMBER: _ClassVar[int]
    MORE_RUNS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    plan: str
    version: int
    changes: _containers.RepeatedCompositeFieldContainer[PolicyChange]
    runs: _containers.RepeatedCompositeFieldContainer[TouchedRun]
    more_runs: bool
    tokens: int
    def __init__(self, plan: _Optional[str] = ..., version: _Optional[int] = ..., changes: _Optional[_Iterable[_Union[PolicyChange, _Mapping]]] = ..., runs: _Optional[_Iterable[_Union[TouchedRun, _Mapping]]] = ..., more_runs: _Optional[bool] = ..., tokens: _Optional[int] = ...) -> None: ...

class PolicyChange(_message.Message):
    __slots__ = ("direction", "subject", "text")
    DIRECTION_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    direction: PolicyChangeDirection
    subject: str
    text: str
    def __init__(self, direction: _Optional[_Union[PolicyChangeDirection, str]] = ..., subject: _Optional[str] = ..., text: _Optional[str] = ...) -> None: ...

class TouchedRun(_message.Message):
    __slots__ = ("run", "realm", "partner", "lost", "changed")
    RUN_FIELD_NUMBER: _ClassVar[int]
    REALM_FIELD_NUMBER: _ClassVar[int]
    PARTNER_FIELD_NUMBER: _ClassVar[int]
    LOST_FIELD_NUMBER: _ClassVar[int]
    CHANGED_FIELD_NUMBER: _ClassVar[int]
    run: str
    realm: str
    partner: str
    lost: _containers.RepeatedScalarFieldContainer[str]
    changed: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, run: _Optional[str] = ..., realm: _Optional[str] = ..., partner: _Optional[str] = ..., lost: _Optional[_Iterable[str]] = ..., changed: _Optional[_Iterable[str]] = ...) -> None: ...

class ListPolicyVersionsRequest(_message.Message):
    __slots__ = ("below", "limit")
    BELOW_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    below: int
    limit: int
    def __init__(self, below: _Optional[int] = ..., limit: _Optional[int] = ...) -> None: ...

class ListPolicyVersionsResponse(_message.Message):
    __slots__ = ("versions", "more")
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    versions: _containers.RepeatedCompositeFieldContainer[PolicyVersion]
    more: bool
    def __init__(self, versions: _Optional[_Iterable[_Union[PolicyVersion, _Mapping]]] = ..., more: _Optional[bool] = ...) -> None: ...

class PolicyVersion(_message.Message):
    __slots__ = ("version", "index", "by", "applied_at", "reason")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    BY_FIELD_NUMBER: _ClassVar[int]
    APPLIED_AT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    version: int
    index: int
    by: str
    applied_at: _timestamp_pb2.Timestamp
    reason: str
    def __init__(self, version: _Optional[int] = ..., index: _Optional[int] = ..., by: _Optional[str] = ..., applied_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., reason: _Optional[str] = ...) -> None: ...

class RestorePolicyRequest(_message.Message):
    __slots__ = ("request_id", "version", "reason", "expected_version")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_VERSION_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    version: int
    reason: str
    expected_version: int
    def __init__(self, request_id: _Optional[str] = ..., version: _Optional[int] = ..., reason: _Optional[str] = ..., expected_version: _Optional[int] = ...) -> None: ...

class RestorePolicyResponse(_message.Message):
    __slots__ = ("version", "index")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    version: int
    index: int
    def __init__(self, version: _Optional[int] = ..., index: _Optional[int] = ...) -> None: ...

class ExplainRequest(_message.Message):
    __slots__ = ("spec", "environment")
    SPEC_FIELD_NUMBER: _ClassVar[int]
    ENVIRONMENT_FIELD_NUMBER: _ClassVar[int]
    spec: _tokens_pb2.TokenSpec
    environment: str
    def __init__(self, spec: _Optional[_Union[_tokens_pb2.TokenSpec, _Mapping]] = ..., environment: _Optional[str] = ...) -> None: ...

class ExplainResponse(_message.Message):
    __slots__ = ("allowed", "grant", "rules", "demands", "remedy")
    ALLOWED_FIELD_NUMBER: _ClassVar[int]
    GRANT_FIELD_NUMBER: _ClassVar[int]
    RULES_FIELD_NUMBER: _ClassVar[int]
    DEMANDS_FIELD_NUMBER: _ClassVar[int]
    REMEDY_FIELD_NUMBER: _ClassVar[int]
    allowed: bool
    grant: str
    rules: _containers.RepeatedCompositeFieldContainer[ExplainedRule]
    demands: _containers.RepeatedCompositeFieldContainer[ExplainedDemand]
    remedy: str
    def __init__(self, allowed: _Optional[bool] = ..., grant: _Optional[str] = ..., rules: _Optional[_Iterable[_Union[ExplainedRule, _Mapping]]] = ..., demands: _Optional[_Iterable[_Union[ExplainedDemand, _Mapping]]] = ..., remedy: _Optional[str] = ...) -> None: ...

class ExplainedDemand(_message.Message):
    __slots__ = ("rule", "detail", "enforced")
    RULE_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    ENFORCED_FIELD_NUMBER: _ClassVar[int]
    rule: str
    detail: str
    enforced: bool
    def __init__(self, rule: _Optional[str] = ..., detail: _Optional[str] = ..., enforced: _Optional[bool] = ...) -> None: ...

class ExplainedRule(_message.Message):
    __slots__ = ("rule", "passes", "detail")
    RULE_FIELD_NUMBER: _ClassVar[int]
    PASSES_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    rule: str
    passes: bool
    detail: str
    def __init__(self, rule: _Optional[str] = ..., passes: _Optional[bool] = ..., detail: _Optional[str] = ...) -> None: ...
