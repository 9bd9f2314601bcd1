import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ApprovalPurpose(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    APPROVAL_PURPOSE_UNSPECIFIED: _ClassVar[ApprovalPurpose]
    APPROVAL_PURPOSE_RUN: _ClassVar[ApprovalPurpose]
    APPROVAL_PURPOSE_TOKEN: _ClassVar[ApprovalPurpose]

class ApprovalState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    APPROVAL_STATE_UNSPECIFIED: _ClassVar[ApprovalState]
    APPROVAL_STATE_WAITING: _ClassVar[ApprovalState]
    APPROVAL_STATE_APPROVED: _ClassVar[ApprovalState]
    APPROVAL_STATE_DENIED: _ClassVar[ApprovalState]
    APPROVAL_STATE_WITHDRAWN: _ClassVar[ApprovalState]
    APPROVAL_STATE_EXPIRED: _ClassVar[ApprovalState]
    APPROVAL_STATE_SPENT: _ClassVar[ApprovalState]
    APPROVAL_STATE_LAPSED: _ClassVar[ApprovalState]
    APPROVAL_STATE_VOID: _ClassVar[ApprovalState]
APPROVAL_PURPOSE_UNSPECIFIED: ApprovalPurpose
APPROVAL_PURPOSE_RUN: ApprovalPurpose
APPROVAL_PURPOSE_TOKEN: ApprovalPurpose
APPROVAL_STATE_UNSPECIFIED: ApprovalState
APPROVAL_STATE_WAITING: ApprovalState
APPROVAL_STATE_APPROVED: ApprovalState
APPROVAL_STATE_DENIED: ApprovalState
APPROVAL_STATE_WITHDRAWN: ApprovalState
APPROVAL_STATE_EXPIRED: ApprovalState
APPROVAL_STATE_SPENT: ApprovalState
APPROVAL_STATE_LAPSED: ApprovalState
APPROVAL_STATE_VOID: ApprovalState

class ApprovalVote(_message.Message):
    __slots__ = ("person", "principal", "approves", "at", "counts")
    PERSON_FIELD_NUMBER: _ClassVar[int]
    PRINCIPAL_FIELD_NUMBER: _ClassVar[int]
    APPROVES_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    person: str
    principal: str
    approves: bool
    at: _timestamp_pb2.Timestamp
    counts: bool
    def __init__(self, person: _Optional[str] = ..., principal: _Optional[str] = ..., approves: _Optional[bool] = ..., at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., counts: _Optional[bool] = ...) -> None: ...

class Approval(_message.Message):
    __slots__ = ("id", "request", "state", "why", "votes", "until", "spent_on", "index")
    ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    VOTES_FIELD_NUMBER: _ClassVar[int]
    UNTIL_FIELD_NUMBER: _ClassVar[int]
    SPENT_ON_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    id: str
    request: bytes
    state: ApprovalState
    why: str
    votes: _containers.RepeatedCompositeFieldContainer[ApprovalVote]
    until: _timestamp_pb2.Timestamp
    spent_on: str
    index: int
    def __init__(self, id: _Optional[str] = ..., request: _Optional[bytes] = ..., state: _Optional[_Union[ApprovalState, str]] = ..., why: _Optional[str] = ..., votes: _Optional[_Iterable[_Union[ApprovalVote, _Mapping]]] = ..., until: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., spent_on: _Optional[str] = ..., index: _Optional[int] = ...) -> None: ...

class RequestApprovalRequest(_message.Message):
    __slots__ = ("request_id", "purpose", "realm", "partner", "user", "workload", "models", "lifetime")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    PURPOSE_FIELD_NUMBER: _ClassVar[int]
    REALM_FIELD_NUMBER: _ClassVar[int]
    PARTNER_FIELD_NUMBER: _ClassVar[int]
    USER_FIELD_NUMBER: _ClassVar[int]
    WORKLOAD_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    LIFETIME_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    purpose: ApprovalPurpose
    realm: str
    partner: str
    user: str
    workload: str
    models: _containers.RepeatedScalarFieldContainer[str]
    lifetime: _duration_pb2.Duration
    def __init__(self, request_id: _Optional[str] = ..., purpose: _Optional[_Union[ApprovalPurpose, str]] = ..., realm: _Optional[str] = ..., partner: _Optional[str] = ..., user: _Optional[str] = ..., workload: _Optional[str] = ..., models: _Optional[_Iterable[str]] = ..., lifetime: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class RequestApprovalResponse(_message.Message):
    __slots__ = ("approval",)
    APPROVAL_FIELD_NUMBER: _ClassVar[int]
    approval: Approval
    def __init__(self, approval: _Optional[_Union[Approval, _Mapping]] = ...) -> None: ...

class GetApprovalRequest(_message.Message):
    __slots__ = ("approval",)
    APPROVAL_FIELD_NUMBER: _ClassVar[int]
    approval: str
    def __init__(self, approval: _Optional[str] = ...) -> None: ...

class GetApprovalResponse(_message.Message):
    __slots__ = ("approval", "principal")
    APPROVAL_FIELD_NUMBER: _ClassVar[int]
    PRINCIPAL_FIELD_NUMBER: _ClassVar[int]
    approval: Approval
    principal: str
    def __init__(self, approval: _Optional[_Union[Approval, _Mapping]] = ..., principal: _Optional[str] = ...) -> None: ...

class ListApprovalsRequest(_message.Message):
    __slots__ = ("partner", "waiting", "limit")
    PARTNER_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    partner: str
    waiting: bool
    limit: int
    def __init__(self, partner: _Optional[str] = ..., waiting: _Optional[bool] = ..., limit: _Optional[int] = ...) -> None: ...

class ListApprovalsResponse(_message.Message):
    __slots__ = ("approvals",)
    APPROVALS_FIELD_NUMBER: _ClassVar[int]
    approvals: _containers.RepeatedCompositeFieldContainer[Approval]
    def __init__(self, approvals: _Optional[_Iterable[_Union[Approval, _Mapping]]] = ...) -> None: ...

class WatchApprovalRequest(_message.Message):
    __slots__ = ("approval",)
    APPROVAL_FIELD_NUMBER: _ClassVar[int]
    approval: str
    def __init__(self, approval: _Optional[str] = ...) -> None: ...

class WatchApprovalResponse(_message.Message):
    __slots__ = ("approval",)
    APPROVAL_FIELD_NUMBER: _ClassVar[int]
    approval: Approval
    def __init__(self, approval: _Optional[_Union[Approval, _Mapping]] = ...) -> None: ...

class ApproveRequest(_message.Message):
    __slots__ = ("request_id", "approval", "statement", "key")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    APPROVAL_FIELD_NUMBER: _ClassVar[int]
    STATEMENT_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    approval: str
    statement: str
    key: str
    def __init__(self, request_id: _Optional[str] = ..., approval: _Optional[str] = ..., statement: _Optional[str] = ..., key: _Optional[str] = ...) -> None: ...

class ApproveResponse(_message.Message):
    __slots__ = ("approval",)
    APPROVAL_FIELD_NUMBER: _ClassVar[int]
    approval: Approval
    def __init__(self, approval: _Optional[_Union[Approval, _Mapping]] = ...) -> None: ...

class DenyRequest(_message.Message):
    __slots__ = ("request_id", "approval", "statement", "key")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    APPROVAL_FIELD_NUMBER: _ClassVar[int]
    STATEMENT_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    approval: str
    statement: str
    key: str
    def __init__(self, request_id: _Optional[str] = ..., approval: _Optional[str] = ..., statement: _Optional[str] = ..., key: _Optional[str] = ...) -> None: ...

class DenyResponse(_message.Message):
    __slots__ = ("approval",)
    APPROVAL_FIELD_NUMBER: _ClassVar[int]
    approval: Approval
    def __init__(self, approval: _Optional[_Union[Approval, _Mapping]] = ...) -> None: ...

class WithdrawRequest(_message.Message):
    __slots__ = ("request_id", "approval")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    APPROVAL_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    approval: str
    def __init__(self, request_id: _Optional[str] = ..., approval: _Optional[str] = ...) -> None: ...

class WithdrawResponse(_message.Message):
    __slots__ = ("approval",)
    APPROVAL_FIELD_NUMBER: _ClassVar[int]
    approval: Approval
    def __init__(self, approval: _Optional[_Union[Approval, _Mapping]] = ...) -> None: ...
