import datetime

from broker.v1 import tokens_pb2 as _tokens_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

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
    __slots__ = ("request_id", "document", "expected_version", "reason")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    DOCUMENT_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_VERSION_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    document: str
    expected_version: int
    reason: str
    def __init__(self, request_id: _Optional[str] = ..., document: _Optional[str] = ..., expected_version: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class ApplyPolicyResponse(_message.Message):
    __slots__ = ("version", "index")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    version: int
    index: int
    def __init__(self, version: _Optional[int] = ..., index: _Optional[int] = ...) -> None: ...

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
    __slots__ = ("allowed", "grant", "rules")
    ALLOWED_FIELD_NUMBER: _ClassVar[int]
    GRANT_FIELD_NUMBER: _ClassVar[int]
    RULES_FIELD_NUMBER: _ClassVar[int]
    allowed: bool
    grant: str
    rules: _containers.RepeatedCompositeFieldContainer[ExplainedRule]
    def __init__(self, allowed: _Optional[bool] = ..., grant: _Optional[str] = ..., rules: _Optional[_Iterable[_Union[ExplainedRule, _Mapping]]] = ...) -> None: ...

class ExplainedRule(_message.Message):
    __slots__ = ("rule", "passes", "detail")
    RULE_FIELD_NUMBER: _ClassVar[int]
    PASSES_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    rule: str
    passes: bool
    detail: str
    def __init__(self, rule: _Optional[str] = ..., passes: _Optional[bool] = ..., detail: _Optional[str] = ...) -> None: ...
