import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class AuditEvent(_message.Message):
    __slots__ = ("index", "line", "at", "kind", "by", "decision", "realm", "partner", "user", "workload", "environment", "run", "test", "models", "token", "grant", "reason", "head", "count", "role")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    LINE_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    BY_FIELD_NUMBER: _ClassVar[int]
    DECISION_FIELD_NUMBER: _ClassVar[int]
    REALM_FIELD_NUMBER: _ClassVar[int]
    PARTNER_FIELD_NUMBER: _ClassVar[int]
    USER_FIELD_NUMBER: _ClassVar[int]
    WORKLOAD_FIELD_NUMBER: _ClassVar[int]
    ENVIRONMENT_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    TEST_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    GRANT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    index: int
    line: int
    at: _timestamp_pb2.Timestamp
    kind: str
    by: str
    decision: str
    realm: str
    partner: str
    user: str
    workload: str
    environment: str
    run: str
    test: str
    models: _containers.RepeatedScalarFieldContainer[str]
    token: str
    grant: str
    reason: str
    head: int
    count: int
    role: str
    def __init__(self, index: _Optional[int] = ..., line: _Optional[int] = ..., at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., kind: _Optional[str] = ..., by: _Optional[str] = ..., decision: _Optional[str] = ..., realm: _Optional[str] = ..., partner: _Optional[str] = ..., user: _Optional[str] = ..., workload: _Optional[str] = ..., environment: _Optional[str] = ..., run: _Optional[str] = ..., test: _Optional[str] = ..., models: _Optional[_Iterable[str]] = ..., token: _Optional[str] = ..., grant: _Optional[str] = ..., reason: _Optional[str] = ..., head: _Optional[int] = ..., count: _Optional[int] = ..., role: _Optional[str] = ...) -> None: ...

class QueryRequest(_message.Message):
    __slots__ = ("until", "realm", "partner", "user", "workload", "environment", "run", "test", "model", "token", "decision", "kind", "by", "page_size", "page_token")
    FROM_FIELD_NUMBER: _ClassVar[int]
    UNTIL_FIELD_NUMBER: _ClassVar[int]
    REALM_FIELD_NUMBER: _ClassVar[int]
    PARTNER_FIELD_NUMBER: _ClassVar[int]
    USER_FIELD_NUMBER: _ClassVar[int]
    WORKLOAD_FIELD_NUMBER: _ClassVar[int]
    ENVIRONMENT_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    TEST_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    DECISION_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    BY_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    until: _timestamp_pb2.Timestamp
    realm: str
    partner: str
    user: str
    workload: str
    environment: str
    run: str
    test: str
    model: str
    token: str
    decision: str
    kind: str
    by: str
    page_size: int
    page_token: str
    def __init__(self, until: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., realm: _Optional[str] = ..., partner: _Optional[str] = ..., user: _Optional[str] = ..., workload: _Optional[str] = ..., environment: _Optional[str] = ..., run: _Optional[str] = ..., test: _Optional[str] = ..., model: _Optional[str] = ..., token: _Optional[str] = ..., decision: _Optional[str] = ..., kind: _Optional[str] = ..., by: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., **kwargs) -> None: ...

class QueryResponse(_message.Message):
    __slots__ = ("events", "next_page_token", "size")
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    events: _containers.RepeatedCompositeFieldContainer[AuditEvent]
    next_page_token: str
    size: int
    def __init__(self, events: _Optional[_Iterable[_Union[AuditEvent, _Mapping]]] = ..., next_page_token: _Optional[str] = ..., size: _Optional[int] = ...) -> None: ...

class TrailRequest(_message.Message):
    __slots__ = ("token", "run")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    token: str
    run: str
    def __init__(self, token: _Optional[str] = ..., run: _Optional[str] = ...) -> None: ...

class TrailResponse(_message.Message):
    __slots__ = ("events", "truncated", "size")
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    TRUNCATED_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    events: _containers.RepeatedCompositeFieldContainer[AuditEvent]
    truncated: bool
    size: int
    def __init__(self, events: _Optional[_Iterable[_Union[AuditEvent, _Mapping]]] = ..., truncated: _Optional[bool] = ..., size: _Optional[int] = ...) -> None: ...

class AfterRevocationRequest(_message.Message):
    __slots__ = ("index",)
    INDEX_FIELD_NUMBER: _ClassVar[int]
    index: int
    def __init__(self, index: _Optional[int] = ...) -> None: ...

class VerifierTold(_message.Message):
    __slots__ = ("verifier", "keeps_receipts", "stopped", "head")
    VERIFIER_FIELD_NUMBER: _ClassVar[int]
    KEEPS_RECEIPTS_FIELD_NUMBER: _ClassVar[int]
    STOPPED_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    verifier: str
    keeps_receipts: bool
    stopped: str
    head: int
    def __init__(self, verifier: _Optional[str] = ..., keeps_receipts: _Optional[bool] = ..., stopped: _Optional[str] = ..., head: _Optional[int] = ...) -> None: ...

class AfterRevocationResponse(_message.Message):
    __slots__ = ("events", "truncated", "before_in_force", "in_force_at", "verifiers", "proven", "size")
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    TRUNCATED_FIELD_NUMBER: _ClassVar[int]
    BEFORE_IN_FORCE_FIELD_NUMBER: _ClassVar[int]
    IN_FORCE_AT_FIELD_NUMBER: _ClassVar[int]
    VERIFIERS_FIELD_NUMBER: _ClassVar[int]
    PROVEN_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    events: _containers.RepeatedCompositeFieldContainer[AuditEvent]
    truncated: bool
    before_in_force: int
    in_force_at: _timestamp_pb2.Timestamp
    verifiers: _containers.RepeatedCompositeFieldContainer[VerifierTold]
    proven: bool
    size: int
    def __init__(self, events: _Optional[_Iterable[_Union[AuditEvent, _Mapping]]] = ..., truncated: _Optional[bool] = ..., before_in_force: _Optional[int] = ..., in_force_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., verifiers: _Optional[_Iterable[_Union[VerifierTold, _Mapping]]] = ..., proven: _Optional[bool] = ..., size: _Optional[int] = ...) -> None: ...
