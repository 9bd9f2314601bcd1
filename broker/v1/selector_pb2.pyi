from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class Selector(_message.Message):
    __slots__ = ("realm", "partner", "user", "workload", "environment", "model", "run", "test", "token", "parent", "key", "label")
    REALM_FIELD_NUMBER: _ClassVar[int]
    PARTNER_FIELD_NUMBER: _ClassVar[int]
    USER_FIELD_NUMBER: _ClassVar[int]
    WORKLOAD_FIELD_NUMBER: _ClassVar[int]
    ENVIRONMENT_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    TEST_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    realm: str
    partner: str
    user: str
    workload: str
    environment: str
    model: str
    run: str
    test: str
    token: str
    parent: str
    key: str
    label: str
    def __init__(self, realm: _Optional[str] = ..., partner: _Optional[str] = ..., user: _Optional[str] = ..., workload: _Optional[str] = ..., environment: _Optional[str] = ..., model: _Optional[str] = ..., run: _Optional[str] = ..., test: _Optional[str] = ..., token: _Optional[str] = ..., parent: _Optional[str] = ..., key: _Optional[str] = ..., label: _Optional[str] = ...) -> None: ...
