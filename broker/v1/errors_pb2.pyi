from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from typing import ClassVar as _ClassVar

DESCRIPTOR: _descriptor.FileDescriptor

class ErrorReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ERROR_REASON_UNSPECIFIED: _ClassVar[ErrorReason]
    ERROR_REASON_INVALID: _ClassVar[ErrorReason]
    ERROR_REASON_UNAUTHENTICATED: _ClassVar[ErrorReason]
    ERROR_REASON_FORBIDDEN: _ClassVar[ErrorReason]
    ERROR_REASON_NOT_GRANTED: _ClassVar[ErrorReason]
    ERROR_REASON_BLOCKED: _ClassVar[ErrorReason]
    ERROR_REASON_NOT_FOUND: _ClassVar[ErrorReason]
    ERROR_REASON_RUN_ENDED: _ClassVar[ErrorReason]
    ERROR_REASON_REQUEST_REUSED: _ClassVar[ErrorReason]
    ERROR_REASON_POLICY_MOVED: _ClassVar[ErrorReason]
    ERROR_REASON_LIMIT_REACHED: _ClassVar[ErrorReason]
    ERROR_REASON_OVERLOADED: _ClassVar[ErrorReason]
    ERROR_REASON_STORE_UNAVAILABLE: _ClassVar[ErrorReason]
    ERROR_REASON_STORE_FULL: _ClassVar[ErrorReason]
    ERROR_REASON_STORE_CORRUPT: _ClassVar[ErrorReason]
    ERROR_REASON_SIGNER_UNAVAILABLE: _ClassVar[ErrorReason]
    ERROR_REASON_CLOCK_ASTRAY: _ClassVar[ErrorReason]
    ERROR_REASON_INTERNAL: _ClassVar[ErrorReason]
    ERROR_REASON_MALFORMED: _ClassVar[ErrorReason]
    ERROR_REASON_UNTRUSTED: _ClassVar[ErrorReason]
    ERROR_REASON_EXPIRED: _ClassVar[ErrorReason]
    ERROR_REASON_NOT_YET_VALID: _ClassVar[ErrorReason]
    ERROR_REASON_WRONG_REALM: _ClassVar[ErrorReason]
    ERROR_REASON_NOT_ALLOWED: _ClassVar[ErrorReason]
    ERROR_REASON_REVOKED: _ClassVar[ErrorReason]
    ERROR_REASON_STALE: _ClassVar[ErrorReason]
    ERROR_REASON_FRAME_MALFORMED: _ClassVar[ErrorReason]
    ERROR_REASON_FRAME_TOO_LARGE: _ClassVar[ErrorReason]
    ERROR_REASON_FRAME_UNTRUSTED: _ClassVar[ErrorReason]
    ERROR_REASON_FRAME_WRONG_REALM: _ClassVar[ErrorReason]
    ERROR_REASON_FRAME_GAP: _ClassVar[ErrorReason]
    ERROR_REASON_FRAME_BEHIND: _ClassVar[ErrorReason]
    ERROR_REASON_FRAME_FORKED: _ClassVar[ErrorReason]
    ERROR_REASON_NAME_IN_USE: _ClassVar[ErrorReason]
ERROR_REASON_UNSPECIFIED: ErrorReason
ERROR_REASON_INVALID: ErrorReason
ERROR_REASON_UNAUTHENTICATED: ErrorReason
ERROR_REASON_FORBIDDEN: ErrorReason
ERROR_REASON_NOT_GRANTED: ErrorReason
ERROR_REASON_BLOCKED: ErrorReason
ERROR_REASON_NOT_FOUND: ErrorReason
ERROR_REASON_RUN_ENDED: ErrorReason
ERROR_REASON_REQUEST_REUSED: ErrorReason
ERROR_REASON_POLICY_MOVED: ErrorReason
ERROR_REASON_LIMIT_REACHED: ErrorReason
ERROR_REASON_OVERLOADED: ErrorReason
ERROR_REASON_STORE_UNAVAILABLE: ErrorReason
ERROR_REASON_STORE_FULL: ErrorReason
ERROR_REASON_STORE_CORRUPT: ErrorReason
ERROR_REASON_SIGNER_UNAVAILABLE: ErrorReason
ERROR_REASON_CLOCK_ASTRAY: ErrorReason
ERROR_REASON_INTERNAL: ErrorReason
ERROR_REASON_MALFORMED: ErrorReason
ERROR_REASON_UNTRUSTED: ErrorReason
ERROR_REASON_EXPIRED: ErrorReason
ERROR_REASON_NOT_YET_VALID: ErrorReason
ERROR_REASON_WRONG_REALM: ErrorReason
ERROR_REASON_NOT_ALLOWED: ErrorReason
ERROR_REASON_REVOKED: ErrorReason
ERROR_REASON_STALE: ErrorReason
ERROR_REASON_FRAME_MALFORMED: ErrorReason
ERROR_REASON_FRAME_TOO_LARGE: ErrorReason
ERROR_REASON_FRAME_UNTRUSTED: ErrorReason
ERROR_REASON_FRAME_WRONG_REALM: ErrorReason
ERROR_REASON_FRAME_GAP: ErrorReason
ERROR_REASON_FRAME_BEHIND: ErrorReason
ERROR_REASON_FRAME_FORKED: ErrorReason
ERROR_REASON_NAME_IN_USE: ErrorReason
