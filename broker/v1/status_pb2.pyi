import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GetStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetStatusResponse(_message.Message):
    __slots__ = ("version", "incarnation", "head", "policy_version", "minting", "problems", "realms")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    POLICY_VERSION_FIELD_NUMBER: _ClassVar[int]
    MINTING_FIELD_NUMBER: _ClassVar[int]
    PROBLEMS_FIELD_NUMBER: _ClassVar[int]
    REALMS_FIELD_NUMBER: _ClassVar[int]
    version: str
    incarnation: str
    head: int
    policy_version: int
    minting: bool
    problems: _containers.RepeatedScalarFieldContainer[str]
    realms: _containers.RepeatedCompositeFieldContainer[RealmStatus]
    def __init__(self, version: _Optional[str] = ..., incarnation: _Optional[str] = ..., head: _Optional[int] = ..., policy_version: _Optional[int] = ..., minting: _Optional[bool] = ..., problems: _Optional[_Iterable[str]] = ..., realms: _Optional[_Iterable[_Union[RealmStatus, _Mapping]]] = ...) -> None: ...

class RealmStatus(_message.Message):
    __slots__ = ("realm", "key", "key_signs_for", "verifiers", "revocations")
    REALM_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    KEY_SIGNS_FOR_FIELD_NUMBER: _ClassVar[int]
    VERIFIERS_FIELD_NUMBER: _ClassVar[int]
    REVOCATIONS_FIELD_NUMBER: _ClassVar[int]
    realm: str
    key: str
    key_signs_for: _duration_pb2.Duration
    verifiers: int
    revocations: int
    def __init__(self, realm: _Optional[str] = ..., key: _Optional[str] = ..., key_signs_for: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., verifiers: _Optional[int] = ..., revocations: _Optional[int] = ...) -> None: ...

class ListVerifiersRequest(_message.Message):
    __slots__ = ("realm",)
    REALM_FIELD_NUMBER: _ClassVar[int]
    realm: str
    def __init__(self, realm: _Optional[str] = ...) -> None: ...

class ListVerifiersResponse(_message.Message):
    __slots__ = ("verifiers",)
    VERIFIERS_FIELD_NUMBER: _ClassVar[int]
    verifiers: _containers.RepeatedCompositeFieldContainer[VerifierStatus]
    def __init__(self, verifiers: _Optional[_Iterable[_Union[VerifierStatus, _Mapping]]] = ...) -> None: ...

class VerifierStatus(_message.Message):
    __slots__ = ("verifier", "realm", "version", "address", "head", "behind", "silent_for", "state", "last_nack", "fresh_for", "uses", "last_drill", "seen_at")
    VERIFIER_FIELD_NUMBER: _ClassVar[int]
    REALM_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    BEHIND_FIELD_NUMBER: _ClassVar[int]
    SILENT_FOR_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    LAST_NACK_FIELD_NUMBER: _ClassVar[int]
    FRESH_FOR_FIELD_NUMBER: _ClassVar[int]
    USES_FIELD_NUMBER: _ClassVar[int]
    LAST_DRILL_FIELD_NUMBER: _ClassVar[int]
    SEEN_AT_FIELD_NUMBER: _ClassVar[int]
    verifier: str
    realm: str
    version: str
    address: str
    head: int
    behind: int
    silent_for: _duration_pb2.Duration
    state: str
    last_nack: str
    fresh_for: _duration_pb2.Duration
    uses: int
    last_drill: LastDrill
    seen_at: _timestamp_pb2.Timestamp
    def __init__(self, verifier: _Optional[str] = ..., realm: _Optional[str] = ..., version: _Optional[str] = ..., address: _Optional[str] = ..., head: _Optional[int] = ..., behind: _Optional[int] = ..., silent_for: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., state: _Optional[str] = ..., last_nack: _Optional[str] = ..., fresh_for: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., uses: _Optional[int] = ..., last_drill: _Optional[_Union[LastDrill, _Mapping]] = ..., seen_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class LastDrill(_message.Message):
    __slots__ = ("at", "outcome", "time_to_deny")
    AT_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    TIME_TO_DENY_FIELD_NUMBER: _ClassVar[int]
    at: _timestamp_pb2.Timestamp
    outcome: str
    time_to_deny: _duration_pb2.Duration
    def __init__(self, at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., outcome: _Optional[str] = ..., time_to_deny: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class ForgetVerifierRequest(_message.Message):
    __slots__ = ("request_id", "verifier", "realm", "reason")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    VERIFIER_FIELD_NUMBER: _ClassVar[int]
    REALM_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    verifier: str
    realm: str
    reason: str
    def __init__(self, request_id: _Optional[str] = ..., verifier: _Optional[str] = ..., realm: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class ForgetVerifierResponse(_message.Message):
    __slots__ = ("index",)
    INDEX_FIELD_NUMBER: _ClassVar[int]
    index: int
    def __init__(self, index: _Optional[int] = ...) -> None: ...

class GetTrustRequest(_message.Message):
    __slots__ = ("realm",)
    REALM_FIELD_NUMBER: _ClassVar[int]
    realm: str
    def __init__(self, realm: _Optional[str] = ...) -> None: ...

class GetTrustResponse(_message.Message):
    __slots__ = ("document",)
    DOCUMENT_FIELD_NUMBER: _ClassVar[int]
    document: str
    def __init__(self, document: _Optional[str] = ...) -> None: ...
