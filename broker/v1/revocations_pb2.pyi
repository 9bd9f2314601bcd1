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
    __slots__ = ("request_id", "selector", "reason", "wait", "whole_realm", "dry_run")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    SELECTOR_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    WAIT_FIELD_NUMBER: _ClassVar[int]
    WHOLE_REALM_FIELD_NUMBER: _ClassVar[int]
    DRY_RUN_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    selector: _selector_pb2.Selector
    reason: str
    wait: bool
    whole_realm: bool
    dry_run: bool
    def __init__(self, request_id: _Optional[str] = ..., selector: _Optional[_Union[_selector_pb2.Selector, _Mapping]] = ..., reason: _Optional[str] = ..., wait: _Optional[bool] = ..., whole_realm: _Optional[bool] = ..., dry_run: _Optional[bool] = ...) -> None: ...

class RevokeTokensRequest(_message.Message):
    __slots__ = ("request_id", "realm", "tokens", "reason", "wait")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    REALM_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    WAIT_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    realm: str
    tokens: _containers.RepeatedScalarFieldContainer[str]
    reason: str
    wait: bool
    def __init__(self, request_id: _Optional[str] = ..., realm: _Optional[str] = ..., tokens: _Optional[_Iterable[str]] = ..., reason: _Optional[str] = ..., wait: _Optional[bool] = ...) -> None: ...

class RevokeTokensResponse(_message.Message):
    __slots__ = ("event",)
    EVENT_FIELD_NUMBER: _ClassVar[int]
    event: RevokeResponse
    def __init__(self, event: _Optional[_Union[RevokeResponse, _Mapping]] = ...) -> None: ...

class GetRevocationRequest(_message.Message):
    __slots__ = ("index", "wait")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    WAIT_FIELD_NUMBER: _ClassVar[int]
    index: int
    wait: bool
    def __init__(self, index: _Optional[int] = ..., wait: _Optional[bool] = ...) -> None: ...

class GetRevocationResponse(_message.Message):
    __slots__ = ("event",)
    EVENT_FIELD_NUMBER: _ClassVar[int]
    event: RevokeResponse
    def __init__(self, event: _Optional[_Union[RevokeResponse, _Mapping]] = ...) -> None: ...

class RevokeResponse(_message.Message):
    __slots__ = ("committed", "progress", "complete", "preview")
    COMMITTED_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    COMPLETE_FIELD_NUMBER: _ClassVar[int]
    PREVIEW_FIELD_NUMBER: _ClassVar[int]
    committed: RevocationCommitted
    progress: RevocationProgress
    complete: RevocationComplete
    preview: RevocationPreview
    def __init__(self, committed: _Optional[_Union[RevocationCommitted, _Mapping]] = ..., progress: _Optional[_Union[RevocationProgress, _Mapping]] = ..., complete: _Optional[_Union[RevocationComplete, _Mapping]] = ..., preview: _Optional[_Union[RevocationPreview, _Mapping]] = ...) -> None: ...

class RevocationCommitted(_message.Message):
    __slots__ = ("index", "committed_at", "blocks", "bound", "selector", "reason", "by", "entries", "awaits_completion")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_AT_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    BOUND_FIELD_NUMBER: _ClassVar[int]
    SELECTOR_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    BY_FIELD_NUMBER: _ClassVar[int]
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    AWAITS_COMPLETION_FIELD_NUMBER: _ClassVar[int]
    index: int
    committed_at: _timestamp_pb2.Timestamp
    blocks: bool
    bound: _duration_pb2.Duration
    selector: _selector_pb2.Selector
    reason: str
    by: str
    entries: int
    awaits_completion: bool
    def __init__(self, index: _Optional[int] = ..., committed_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., blocks: _Optional[bool] = ..., bound: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., selector: _Optional[_Union[_selector_pb2.Selector, _Mapping]] = ..., reason: _Optional[str] = ..., by: _Optional[str] = ..., entries: _Optional[int] = ..., awaits_completion: _Optional[bool] = ...) -> None: ...

class RevocationPreview(_message.Message):
    __slots__ = ("selector", "blocks", "realms", "tokens", "partners", "users", "workloads", "runs", "uses", "verifiers", "silent", "bound")
    SELECTOR_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    REALMS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    PARTNERS_FIELD_NUMBER: _ClassVar[int]
    USERS_FIELD_NUMBER: _ClassVar[int]
    WORKLOADS_FIELD_NUMBER: _ClassVar[int]
    RUNS_FIELD_NUMBER: _ClassVar[int]
    USES_FIELD_NUMBER: _ClassVar[int]
    VERIFIERS_FIELD_NUMBER: _ClassVar[int]
    SILENT_FIELD_NUMBER: _ClassVar[int]
    BOUND_FIELD_NUMBER: _ClassVar[int]
    selector: _selector_pb2.Selector
    blocks: bool
    realms: _containers.RepeatedScalarFieldContainer[str]
    tokens: int
    partners: _containers.RepeatedScalarFieldContainer[str]
    users: _containers.RepeatedScalarFieldContainer[str]
    workloads: _containers.RepeatedScalarFieldContainer[str]
    runs: _containers.RepeatedScalarFieldContainer[str]
    uses: int
    verifiers: _containers.RepeatedScalarFieldContainer[str]
    silent: _containers.RepeatedScalarFieldContainer[str]
    bound: _duration_pb2.Duration
    def __init__(self, selector: _Optional[_Union[_selector_pb2.Selector, _Mapping]] = ..., blocks: _Optional[bool] = ..., realms: _Optional[_Iterable[str]] = ..., tokens: _Optional[int] = ..., partners: _Optional[_Iterable[str]] = ..., users: _Optional[_Iterable[str]] = ..., workloads: _Optional[_Iterable[str]] = ..., runs: _Optional[_Iterable[str]] = ..., uses: _Optional[int] = ..., verifiers: _Optional[_Iterable[str]] = ..., silent: _Optional[_Iterable[str]] = ..., bound: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class RevocationProgress(_message.Message):
    __slots__ = ("listening", "acknowledged", "lapsed", "waiting", "waiting_for", "waits_for")
    LISTENING_FIELD_NUMBER: _ClassVar[int]
    ACKNOWLEDGED_FIELD_NUMBER: _ClassVar[int]
    LAPSED_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    WAITING_FOR_FIELD_NUMBER: _ClassVar[int]
    WAITS_FOR_FIELD_NUMBER: _ClassVar[int]
    listening: int
    acknowledged: int
    lapsed: int
    waiting: int
    waiting_for: _containers.RepeatedScalarFieldContainer[str]
    waits_for: str
    def __init__(self, listening: _Optional[int] = ..., acknowledged: _Optional[int] = ..., lapsed: _Optional[int] = ..., waiting: _Optional[int] = ..., waiting_for: _Optional[_Iterable[str]] = ..., waits_for: _Optional[str] = ...) -> None: ...

class RevocationComplete(_message.Message):
    __slots__ = ("took", "verifiers", "statements", "entry", "in_force_at", "tokens", "uses_cut")
    TOOK_FIELD_NUMBER: _ClassVar[int]
    VERIFIERS_FIELD_NUMBER: _ClassVar[int]
    STATEMENTS_FIELD_NUMBER: _ClassVar[int]
    ENTRY_FIELD_NUMBER: _ClassVar[int]
    IN_FORCE_AT_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    USES_CUT_FIELD_NUMBER: _ClassVar[int]
    took: _duration_pb2.Duration
    verifiers: _containers.RepeatedCompositeFieldContainer[VerifierOutcome]
    statements: _containers.RepeatedScalarFieldContainer[str]
    entry: int
    in_force_at: _timestamp_pb2.Timestamp
    tokens: int
    uses_cut: int
    def __init__(self, took: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., verifiers: _Optional[_Iterable[_Union[VerifierOutcome, _Mapping]]] = ..., statements: _Optional[_Iterable[str]] = ..., entry: _Optional[int] = ..., in_force_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., tokens: _Optional[int] = ..., uses_cut: _Optional[int] = ...) -> None: ...

class VerifierOutcome(_message.Message):
    __slots__ = ("verifier", "realm", "acknowledged", "after", "state", "uses_cut")
    VERIFIER_FIELD_NUMBER: _ClassVar[int]
    REALM_FIELD_NUMBER: _ClassVar[int]
    ACKNOWLEDGED_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    USES_CUT_FIELD_NUMBER: _ClassVar[int]
    verifier: str
    realm: str
    acknowledged: bool
    after: _duration_pb2.Duration
    state: str
    uses_cut: int
    def __init__(self, verifier: _Optional[str] = ..., realm: _Optional[str] = ..., acknowledged: _Optional[bool] = ..., after: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., state: _Optional[str] = ..., uses_cut: _Optional[int] = ...) -> None: ...

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
