import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DrillRequest(_message.Message):
    __slots__ = ("request_id", "realm")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    REALM_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    realm: str
    def __init__(self, request_id: _Optional[str] = ..., realm: _Optional[str] = ...) -> None: ...

class DrillResponse(_message.Message):
    __slots__ = ("begun", "result")
    BEGUN_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    begun: DrillBegun
    result: DrillResult
    def __init__(self, begun: _Optional[_Union[DrillBegun, _Mapping]] = ..., result: _Optional[_Union[DrillResult, _Mapping]] = ...) -> None: ...

class DrillBegun(_message.Message):
    __slots__ = ("realm", "canary", "verifiers")
    REALM_FIELD_NUMBER: _ClassVar[int]
    CANARY_FIELD_NUMBER: _ClassVar[int]
    VERIFIERS_FIELD_NUMBER: _ClassVar[int]
    realm: str
    canary: str
    verifiers: int
    def __init__(self, realm: _Optional[str] = ..., canary: _Optional[str] = ..., verifiers: _Optional[int] = ...) -> None: ...

class DrillResult(_message.Message):
    __slots__ = ("index", "realm", "canary", "at", "by", "passed", "bound", "verifiers", "revocation")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    REALM_FIELD_NUMBER: _ClassVar[int]
    CANARY_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    BY_FIELD_NUMBER: _ClassVar[int]
    PASSED_FIELD_NUMBER: _ClassVar[int]
    BOUND_FIELD_NUMBER: _ClassVar[int]
    VERIFIERS_FIELD_NUMBER: _ClassVar[int]
    REVOCATION_FIELD_NUMBER: _ClassVar[int]
    index: int
    realm: str
    canary: str
    at: _timestamp_pb2.Timestamp
    by: str
    passed: bool
    bound: _duration_pb2.Duration
    verifiers: _containers.RepeatedCompositeFieldContainer[DrilledVerifier]
    revocation: int
    def __init__(self, index: _Optional[int] = ..., realm: _Optional[str] = ..., canary: _Optional[str] = ..., at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., by: _Optional[str] = ..., passed: _Optional[bool] = ..., bound: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., verifiers: _Optional[_Iterable[_Union[DrilledVerifier, _Mapping]]] = ..., revocation: _Optional[int] = ...) -> None: ...

class DrilledVerifier(_message.Message):
    __slots__ = ("verifier", "outcome", "time_to_deny", "verdict")
    VERIFIER_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    TIME_TO_DENY_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    verifier: str
    outcome: str
    time_to_deny: _duration_pb2.Duration
    verdict: str
    def __init__(self, verifier: _Optional[str] = ..., outcome: _Optional[str] = ..., time_to_deny: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., verdict: _Optional[str] = ...) -> None: ...

class ScheduleDrillsRequest(_message.Message):
    __slots__ = ("request_id", "realm", "every")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    REALM_FIELD_NUMBER: _ClassVar[int]
    EVERY_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    realm: str
    every: _duration_pb2.Duration
    def __init__(self, request_id: _Optional[str] = ..., realm: _Optional[str] = ..., every: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class ScheduleDrillsResponse(_message.Message):
    __slots__ = ("index",)
    INDEX_FIELD_NUMBER: _ClassVar[int]
    index: int
    def __init__(self, index: _Optional[int] = ...) -> None: ...

class ListDrillsRequest(_message.Message):
    __slots__ = ("realm", "limit")
    REALM_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    realm: str
    limit: int
    def __init__(self, realm: _Optional[str] = ..., limit: _Optional[int] = ...) -> None: ...

class DrillSchedule(_message.Message):
    __slots__ = ("realm", "every")
    REALM_FIELD_NUMBER: _ClassVar[int]
    EVERY_FIELD_NUMBER: _ClassVar[int]
    realm: str
    every: _duration_pb2.Duration
    def __init__(self, realm: _Optional[str] = ..., every: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class ListDrillsResponse(_message.Message):
    __slots__ = ("drills", "schedules")
    DRILLS_FIELD_NUMBER: _ClassVar[int]
    SCHEDULES_FIELD_NUMBER: _ClassVar[int]
    drills: _containers.RepeatedCompositeFieldContainer[DrillResult]
    schedules: _containers.RepeatedCompositeFieldContainer[DrillSchedule]
    def __init__(self, drills: _Optional[_Iterable[_Union[DrillResult, _Mapping]]] = ..., schedules: _Optional[_Iterable[_Union[DrillSchedule, _Mapping]]] = ...) -> None: ...
