from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class AccessRequest(_message.Message):
    __slots__ = ("partner", "realm", "model", "soon_days")
    PARTNER_FIELD_NUMBER: _ClassVar[int]
    REALM_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    SOON_DAYS_FIELD_NUMBER: _ClassVar[int]
    partner: str
    realm: str
    model: str
    soon_days: int
    def __init__(self, partner: _Optional[str] = ..., realm: _Optional[str] = ..., model: _Optional[str] = ..., soon_days: _Optional[int] = ...) -> None: ...

class AccessResponse(_message.Message):
    __slots__ = ("document", "note")
    DOCUMENT_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    document: bytes
    note: bytes
    def __init__(self, document: _Optional[bytes] = ..., note: _Optional[bytes] = ...) -> None: ...
