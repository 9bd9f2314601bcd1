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

class ExplainDenialRequest(_message.Message):
    __slots__ = ("request_id", "partner")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    PARTNER_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    partner: str
    def __init__(self, request_id: _Optional[str] = ..., partner: _Optional[str] = ...) -> None: ...

class ExplainDenialResponse(_message.Message):
    __slots__ = ("partner", "principal", "at", "method", "reason", "message", "rules", "remedy", "policy_version")
    PARTNER_FIELD_NUMBER: _ClassVar[int]
    PRINCIPAL_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    RULES_FIELD_NUMBER: _ClassVar[int]
    REMEDY_FIELD_NUMBER: _ClassVar[int]
    POLICY_VERSION_FIELD_NUMBER: _ClassVar[int]
    partner: str
    principal: str
    at: _timestamp_pb2.Timestamp
    method: str
    reason: str
    message: str
    rules: _containers.RepeatedCompositeFieldContainer[ExplainedRule]
    remedy: str
    policy_version: int
    def __init__(self, partner: _Optional[str] = ..., principal: _Optional[str] = ..., at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., method: _Optional[str] = ..., reason: _Optional[str] = ..., message: _Optional[str] = ..., rules: _Optional[_Iterable[_Union[ExplainedRule, _Mapping]]] = ..., remedy: _Optional[str] = ..., policy_version: _Optional[int] = ...) -> None: ...

class ExplainTokenRequest(_message.Message):
    __slots__ = ("token", "index", "sha256")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    token: str
    index: int
    sha256: bytes
    def __init__(self, token: _Optional[str] = ..., index: _Optional[int] = ..., sha256: _Optional[bytes] = ...) -> None: ...

class ExplainTokenResponse(_message.Message):
    __slots__ = ("alive", "rule", "detail", "token", "index", "minted_at", "expires_at", "realm", "partner", "user", "workload", "environment", "models", "run", "by", "grant", "policy_version", "revocations", "mintable", "rules", "remedy")
    ALIVE_FIELD_NUMBER: _ClassVar[int]
    RULE_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    MINTED_AT_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_FIELD_NUMBER: _ClassVar[int]
    REALM_FIELD_NUMBER: _ClassVar[int]
    PARTNER_FIELD_NUMBER: _ClassVar[int]
    USER_FIELD_NUMBER: _ClassVar[int]
    WORKLOAD_FIELD_NUMBER: _ClassVar[int]
    ENVIRONMENT_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    BY_FIELD_NUMBER: _ClassVar[int]
    GRANT_FIELD_NUMBER: _ClassVar[int]
    POLICY_VERSION_FIELD_NUMBER: _ClassVar[int]
    REVOCATIONS_FIELD_NUMBER: _ClassVar[int]
    MINTABLE_FIELD_NUMBER: _ClassVar[int]
    RULES_FIELD_NUMBER: _ClassVar[int]
    REMEDY_FIELD_NUMBER: _ClassVar[int]
    alive: bool
    rule: str
    detail: str
    token: str
    index: int
    minted_at: _timestamp_pb2.Timestamp
    expires_at: _timestamp_pb2.Timestamp
    realm: str
    partner: str
    user: str
    workload: str
    environment: str
    models: _containers.RepeatedScalarFieldContainer[str]
    run: str
    by: str
    grant: str
    policy_version: int
    revocations: _containers.RepeatedScalarFieldContainer[int]
    mintable: bool
    rules: _containers.RepeatedCompositeFieldContainer[ExplainedRule]
    remedy: str
    def __init__(self, alive: _Optional[bool] = ..., rule: _Optional[str] = ..., detail: _Optional[str] = ..., token: _Optional[str] = ..., index: _Optional[int] = ..., minted_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., expires_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., realm: _Optional[str] = ..., partner: _Optional[str] = ..., user: _Optional[str] = ..., workload: _Optional[str] = ..., environment: _Optional[str] = ..., models: _Optional[_Iterable[str]] = ..., run: _Optional[str] = ..., by: _Optional[str] = ..., grant: _Optional[str] = ..., policy_version: _Optional[int] = ..., revocations: _Optional[_Iterable[int]] = ..., mintable: _Optional[bool] = ..., rules: _Optional[_Iterable[_Union[ExplainedRule, _Mapping]]] = ..., remedy: _Optional[str] = ...) -> None: ...

class ExplainPathRequest(_message.Message):
    __slots__ = ("realm", "model")
    REALM_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    realm: str
    model: str
    def __init__(self, realm: _Optional[str] = ..., model: _Optional[str] = ...) -> None: ...

class ExplainPathResponse(_message.Message):
    __slots__ = ("version", "ways", "changers")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    WAYS_FIELD_NUMBER: _ClassVar[int]
    CHANGERS_FIELD_NUMBER: _ClassVar[int]
    version: int
    ways: _containers.RepeatedCompositeFieldContainer[ModelPath]
    changers: _containers.RepeatedCompositeFieldContainer[PathChanger]
    def __init__(self, version: _Optional[int] = ..., ways: _Optional[_Iterable[_Union[ModelPath, _Mapping]]] = ..., changers: _Optional[_Iterable[_Union[PathChanger, _Mapping]]] = ...) -> None: ...

class ModelPath(_message.Message):
    __slots__ = ("partner", "subjects", "environments", "grant", "terms", "callers", "block")
    PARTNER_FIELD_NUMBER: _ClassVar[int]
    SUBJECTS_FIELD_NUMBER: _ClassVar[int]
    ENVIRONMENTS_FIELD_NUMBER: _ClassVar[int]
    GRANT_FIELD_NUMBER: _ClassVar[int]
    TERMS_FIELD_NUMBER: _ClassVar[int]
    CALLERS_FIELD_NUMBER: _ClassVar[int]
    BLOCK_FIELD_NUMBER: _ClassVar[int]
    partner: str
    subjects: _containers.RepeatedScalarFieldContainer[str]
    environments: _containers.RepeatedScalarFieldContainer[str]
    grant: str
    terms: _containers.RepeatedScalarFieldContainer[str]
    callers: _containers.RepeatedScalarFieldContainer[str]
    block: str
    def __init__(self, partner: _Optional[str] = ..., subjects: _Optional[_Iterable[str]] = ..., environments: _Optional[_Iterable[str]] = ..., grant: _Optional[str] = ..., terms: _Optional[_Iterable[str]] = ..., callers: _Optional[_Iterable[str]] = ..., block: _Optional[str] = ...) -> None: ...

class PathChanger(_message.Message):
    __slots__ = ("by", "who", "what")
    BY_FIELD_NUMBER: _ClassVar[int]
    WHO_FIELD_NUMBER: _ClassVar[int]
    WHAT_FIELD_NUMBER: _ClassVar[int]
    by: str
    who: str
    what: str
    def __init__(self, by: _Optional[str] = ..., who: _Optional[str] = ..., what: _Optional[str] = ...) -> None: ...
