import datetime

from broker.v1 import selector_pb2 as _selector_pb2
from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RevokeRequest(_message.Message):
    __slots__ = ("request_id", "selector", "reason", "wait", "whole_realm")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    SELECTOR_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    WAIT_FIELD_NUMBER: _ClassVar[int]
    WHOLE_REALM_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    selector: _selector_pb2.Selector
    reason: str
    wait: bool
    whole_realm: bool
    def __init__(self, request_id: _Optional[str] = ..., selector: _Optional[_Union[_selector_pb2.Selector, _Mapping]] = ..., reason: _Optional[str] = ..., wait: _Optional[bool] = ..., whole_realm: _Optional[bool] = ...) -> None: ...

class RevokeResponse(_message.Message):
    __slots__ = ("committed", "progress", "complete")
    COMMITTED_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    COMPLETE_FIELD_NUMBER: _ClassVar[int]
    committed: RevocationCommitted
    progress: RevocationProgress
    complete: RevocationComplete
    def __init__(self, committed: _Optional[_Union[RevocationCommitted, _Mapping]] = ..., progress: _Optional[_Union[RevocationProgress, _Mapping]] = ..., complete: _Optional[_Union[RevocationComplete, _Mapping]] = ...) -> None: ...

class RevocationCommitted(_message.Message):
    __slots__ = ("index", "committed_at", "blocks", "bound")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_AT_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    BOUND_FIELD_NUMBER: _ClassVar[int]
    index: int
    committed_at: _timestamp_pb2.Timestamp
    blocks: bool
    bound: _duration_pb2.Duration
    def __init__(self, index: _Optional[int] = ..., committed_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., blocks: _Optional[bool] = ..., bound: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class RevocationProgress(_message.Message):
    __slots__ = ("listening", "acknowledged", "lapsed")
    LISTENING_FIELD_NUMBER: _ClassVar[int]
    ACKNOWLEDGED_FIELD_NUMBER: _ClassVar[int]
    LAPSED_FIELD_NUMBER: _ClassVar[int]
    listening: int
    acknowledged: int
    lapsed: int
    def __init__(self, listening: _Optional[int] = ..., acknowledged: _Optional[int] = ..., lapsed: _Optional[int] = ...) -> None: ...

class RevocationComplete(_message.Message):
    __slots__ = ("took", "verifiers")
    TOOK_FIELD_NUMBER: _ClassVar[int]
    VERIFIERS_FIELD_NUMBER: _ClassVar[int]
    took: _duration_pb2.Duration
    verifiers: _containers.RepeatedCompositeFieldContainer[VerifierOutcome]
    def __init__(self, took: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., verifiers: _Optional[_Iterable[_Union[VerifierOutcome, _Mapping]]] = ...) -> None: ...

class VerifierOutcome(_message.Message):
    __slots__ = ("verifier", "realm", "acknowledged", "after")
    VERIFIER_FIELD_NUMBER: _ClassVar[int]
    REALM_FIELD_NUMBER: _ClassVar[int]
    ACKNOWLEDGED_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    verifier: str
    realm: str
    acknowledged: bool
    after: _duration_pb2.Duration
    def __init__(self, verifier: _Optional[str] = ..., realm: _Optional[str] = ..., acknowledged: _Optional[bool] = ..., after: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class ReinstateRequest(_message.Message):
    __slots__ = ("request_id", "selector", "reason")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    SELECTOR_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    selector: _selector_pb2.Selector
    reason: str
    def __init__(self, request_id: _Optional[str] = ..., selector: _Optional[_Union[_selector_pb2.Selector, _Mapping]] = ..., reason: _Optional[str] = ...) -> None: ...

class ReinstateResponse(_message.Message):
    __slots__ = ("index", "lifted")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    LIFTED_FIELD_NUMBER: _ClassVar[int]
    index: int
    lifted: bool
    def __init__(self, index: _Optional[int] = ..., lifted: _Optional[bool] = ...) -> None: ...

class ListRevocationsRequest(_message.Message):
    __slots__ = ("after", "limit")
    AFTER_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    after: int
    limit: int
    def __init__(self, after: _Optional[int] = ..., limit: _Optional[int] = ...) -> None: ...

class Revocation(_message.Message):
    __slots__ = ("index", "selector", "reason", "by", "committed_at")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    SELECTOR_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    BY_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_AT_FIELD_NUMBER: _ClassVar[int]
    index: int
    selector: _selector_pb2.Selector
    reason: str
    by: str
    committed_at: _timestamp_pb2.Timestamp
    def __init__(self, index: _Optional[int] = ..., selector: _Optional[_Union[_selector_pb2.Selector, _Mapping]] = ..., reason: _Optional[str] = ..., by: _Optional[str] = ..., committed_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class Block(_message.Message):
    __slots__ = ("selector", "index")
    SELECTOR_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    selector: _selector_pb2.Selector
    index: int
    def __init__(self, selector: _Optional[_Union[_selector_pb2.Selector, _Mapping]] = ..., index: _Optional[int] = ...) -> None: ...

class ListRevocationsResponse(_message.Message):
    __slots__ = ("revocations", "blocks", "more")
    REVOCATIONS_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    revocations: _containers.RepeatedCompositeFieldContainer[Revocation]
    blocks: _containers.RepeatedCompositeFieldContainer[Block]
    more: bool
    def __init__(self, revocations: _Optional[_Iterable[_Union[Revocation, _Mapping]]] = ..., blocks: _Optional[_Iterable[_Union[Block, _Mapping]]] = ..., more: _Optional[bool] = ...) -> None: ...
