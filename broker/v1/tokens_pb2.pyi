import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class TokenSpec(_message.Message):
    __slots__ = ("realm", "partner", "user", "workload", "models", "run", "test", "lifetime", "approval", "binding")
    REALM_FIELD_NUMBER: _ClassVar[int]
    PARTNER_FIELD_NUMBER: _ClassVar[int]
    USER_FIELD_NUMBER: _ClassVar[int]
    WORKLOAD_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    TEST_FIELD_NUMBER: _ClassVar[int]
    LIFETIME_FIELD_NUMBER: _ClassVar[int]
    APPROVAL_FIELD_NUMBER: _ClassVar[int]
    BINDING_FIELD_NUMBER: _ClassVar[int]
    realm: str
    partner: str
    user: str
    workload: str
    models: _containers.RepeatedScalarFieldContainer[str]
    run: str
    test: str
    lifetime: _duration_pb2.Duration
    approval: str
    binding: Binding
    def __init__(self, realm: _Optional[str] = ..., partner: _Optional[str] = ..., user: _Optional[str] = ..., workload: _Optional[str] = ..., models: _Optional[_Iterable[str]] = ..., run: _Optional[str] = ..., test: _Optional[str] = ..., lifetime: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., approval: _Optional[str] = ..., binding: _Optional[_Union[Binding, _Mapping]] = ...) -> None: ...

class Binding(_message.Message):
    __slots__ = ("x5t_s256", "jkt")
    X5T_S256_FIELD_NUMBER: _ClassVar[int]
    JKT_FIELD_NUMBER: _ClassVar[int]
    x5t_s256: bytes
    jkt: str
    def __init__(self, x5t_s256: _Optional[bytes] = ..., jkt: _Optional[str] = ...) -> None: ...

class MintedToken(_message.Message):
    __slots__ = ("token", "id", "index", "expires_at", "grant")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_FIELD_NUMBER: _ClassVar[int]
    GRANT_FIELD_NUMBER: _ClassVar[int]
    token: str
    id: str
    index: int
    expires_at: _timestamp_pb2.Timestamp
    grant: str
    def __init__(self, token: _Optional[str] = ..., id: _Optional[str] = ..., index: _Optional[int] = ..., expires_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., grant: _Optional[str] = ...) -> None: ...

class MintRequest(_message.Message):
    __slots__ = ("request_id", "spec", "user_token")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    USER_TOKEN_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    spec: TokenSpec
    user_token: str
    def __init__(self, request_id: _Optional[str] = ..., spec: _Optional[_Union[TokenSpec, _Mapping]] = ..., user_token: _Optional[str] = ...) -> None: ...

class MintResponse(_message.Message):
    __slots__ = ("token",)
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    token: MintedToken
    def __init__(self, token: _Optional[_Union[MintedToken, _Mapping]] = ...) -> None: ...

class MintBatchRequest(_message.Message):
    __slots__ = ("request_id", "specs", "user_token")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    SPECS_FIELD_NUMBER: _ClassVar[int]
    USER_TOKEN_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    specs: _containers.RepeatedCompositeFieldContainer[TokenSpec]
    user_token: str
    def __init__(self, request_id: _Optional[str] = ..., specs: _Optional[_Iterable[_Union[TokenSpec, _Mapping]]] = ..., user_token: _Optional[str] = ...) -> None: ...

class MintBatchResponse(_message.Message):
    __slots__ = ("tokens",)
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    tokens: _containers.RepeatedCompositeFieldContainer[MintedToken]
    def __init__(self, tokens: _Optional[_Iterable[_Union[MintedToken, _Mapping]]] = ...) -> None: ...

class ExchangeRequest(_message.Message):
    __slots__ = ("request_id", "subject_token", "models", "lifetime", "binding", "test", "workload")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_TOKEN_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    LIFETIME_FIELD_NUMBER: _ClassVar[int]
    BINDING_FIELD_NUMBER: _ClassVar[int]
    TEST_FIELD_NUMBER: _ClassVar[int]
    WORKLOAD_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    subject_token: str
    models: _containers.RepeatedScalarFieldContainer[str]
    lifetime: _duration_pb2.Duration
    binding: Binding
    test: str
    workload: str
    def __init__(self, request_id: _Optional[str] = ..., subject_token: _Optional[str] = ..., models: _Optional[_Iterable[str]] = ..., lifetime: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., binding: _Optional[_Union[Binding, _Mapping]] = ..., test: _Optional[str] = ..., workload: _Optional[str] = ...) -> None: ...

class ExchangeResponse(_message.Message):
    __slots__ = ("token",)
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    token: MintedToken
    def __init__(self, token: _Optional[_Union[MintedToken, _Mapping]] = ...) -> None: ...
