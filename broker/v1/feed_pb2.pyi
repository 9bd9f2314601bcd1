from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FrameKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FRAME_KIND_UNSPECIFIED: _ClassVar[FrameKind]
    FRAME_KIND_SNAPSHOT: _ClassVar[FrameKind]
    FRAME_KIND_DELTA: _ClassVar[FrameKind]

class ReceiptDemand(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RECEIPT_DEMAND_UNSPECIFIED: _ClassVar[ReceiptDemand]
    RECEIPT_DEMAND_SUMMED: _ClassVar[ReceiptDemand]
    RECEIPT_DEMAND_EACH: _ClassVar[ReceiptDemand]

class Dimension(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DIMENSION_UNSPECIFIED: _ClassVar[Dimension]
    DIMENSION_REALM: _ClassVar[Dimension]
    DIMENSION_PARTNER: _ClassVar[Dimension]
    DIMENSION_USER: _ClassVar[Dimension]
    DIMENSION_WORKLOAD: _ClassVar[Dimension]
    DIMENSION_ENVIRONMENT: _ClassVar[Dimension]
    DIMENSION_MODEL: _ClassVar[Dimension]
    DIMENSION_RUN: _ClassVar[Dimension]
    DIMENSION_TEST: _ClassVar[Dimension]
    DIMENSION_TOKEN: _ClassVar[Dimension]
    DIMENSION_PARENT: _ClassVar[Dimension]
    DIMENSION_KEY: _ClassVar[Dimension]
    DIMENSION_LABEL: _ClassVar[Dimension]
FRAME_KIND_UNSPECIFIED: FrameKind
FRAME_KIND_SNAPSHOT: FrameKind
FRAME_KIND_DELTA: FrameKind
RECEIPT_DEMAND_UNSPECIFIED: ReceiptDemand
RECEIPT_DEMAND_SUMMED: ReceiptDemand
RECEIPT_DEMAND_EACH: ReceiptDemand
DIMENSION_UNSPECIFIED: Dimension
DIMENSION_REALM: Dimension
DIMENSION_PARTNER: Dimension
DIMENSION_USER: Dimension
DIMENSION_WORKLOAD: Dimension
DIMENSION_ENVIRONMENT: Dimension
DIMENSION_MODEL: Dimension
DIMENSION_RUN: Dimension
DIMENSION_TEST: Dimension
DIMENSION_TOKEN: Dimension
DIMENSION_PARENT: Dimension
DIMENSION_KEY: Dimension
DIMENSION_LABEL: Dimension

class ListenRequest(_message.Message):
    __slots__ = ("hello", "echo", "ack", "nack", "leave", "probe", "survey", "enroll", "receipts")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    ECHO_FIELD_NUMBER: _ClassVar[int]
    ACK_FIELD_NUMBER: _ClassVar[int]
    NACK_FIELD_NUMBER: _ClassVar[int]
    LEAVE_FIELD_NUMBER: _ClassVar[int]
    PROBE_FIELD_NUMBER: _ClassVar[int]
    SURVEY_FIELD_NUMBER: _ClassVar[int]
    ENROLL_FIELD_NUMBER: _ClassVar[int]
    RECEIPTS_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    echo: Echo
    ack: Ack
    nack: Nack
    leave: Leave
    probe: ProbeReport
    survey: SurveyReport
    enroll: EnrollKey
    receipts: SignedReceipts
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., echo: _Optional[_Union[Echo, _Mapping]] = ..., ack: _Optional[_Union[Ack, _Mapping]] = ..., nack: _Optional[_Union[Nack, _Mapping]] = ..., leave: _Optional[_Union[Leave, _Mapping]] = ..., probe: _Optional[_Union[ProbeReport, _Mapping]] = ..., survey: _Optional[_Union[SurveyReport, _Mapping]] = ..., enroll: _Optional[_Union[EnrollKey, _Mapping]] = ..., receipts: _Optional[_Union[SignedReceipts, _Mapping]] = ...) -> None: ...

class EnrollKey(_message.Message):
    __slots__ = ("public_key", "signature")
    PUBLIC_KEY_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    public_key: bytes
    signature: bytes
    def __init__(self, public_key: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class SignedReceipts(_message.Message):
    __slots__ = ("body", "signature")
    BODY_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    body: bytes
    signature: bytes
    def __init__(self, body: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class Leave(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Hello(_message.Message):
    __slots__ = ("realm", "version", "incarnation", "head", "speaks")
    REALM_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    SPEAKS_FIELD_NUMBER: _ClassVar[int]
    realm: str
    version: str
    incarnation: str
    head: int
    speaks: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, realm: _Optional[str] = ..., version: _Optional[str] = ..., incarnation: _Optional[str] = ..., head: _Optional[int] = ..., speaks: _Optional[_Iterable[str]] = ...) -> None: ...

class Echo(_message.Message):
    __slots__ = ("nonce", "verifier_clock_ns")
    NONCE_FIELD_NUMBER: _ClassVar[int]
    VERIFIER_CLOCK_NS_FIELD_NUMBER: _ClassVar[int]
    nonce: bytes
    verifier_clock_ns: int
    def __init__(self, nonce: _Optional[bytes] = ..., verifier_clock_ns: _Optional[int] = ...) -> None: ...

class Ack(_message.Message):
    __slots__ = ("head", "incarnation", "uses", "fresh_for_ms", "cuts")
    HEAD_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    USES_FIELD_NUMBER: _ClassVar[int]
    FRESH_FOR_MS_FIELD_NUMBER: _ClassVar[int]
    CUTS_FIELD_NUMBER: _ClassVar[int]
    head: int
    incarnation: str
    uses: int
    fresh_for_ms: int
    cuts: _containers.RepeatedCompositeFieldContainer[UseCut]
    def __init__(self, head: _Optional[int] = ..., incarnation: _Optional[str] = ..., uses: _Optional[int] = ..., fresh_for_ms: _Optional[int] = ..., cuts: _Optional[_Iterable[_Union[UseCut, _Mapping]]] = ...) -> None: ...

class UseCut(_message.Message):
    __slots__ = ("index", "uses")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    USES_FIELD_NUMBER: _ClassVar[int]
    index: int
    uses: int
    def __init__(self, index: _Optional[int] = ..., uses: _Optional[int] = ...) -> None: ...

class ProbeReport(_message.Message):
    __slots__ = ("id", "verdict", "ended")
    ID_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    id: str
    verdict: str
    ended: bool
    def __init__(self, id: _Optional[str] = ..., verdict: _Optional[str] = ..., ended: _Optional[bool] = ...) -> None: ...

class SurveyReport(_message.Message):
    __slots__ = ("id", "uses")
    ID_FIELD_NUMBER: _ClassVar[int]
    USES_FIELD_NUMBER: _ClassVar[int]
    id: str
    uses: int
    def __init__(self, id: _Optional[str] = ..., uses: _Optional[int] = ...) -> None: ...

class Nack(_message.Message):
    __slots__ = ("reason", "detail", "head")
    REASON_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    reason: str
    detail: str
    head: int
    def __init__(self, reason: _Optional[str] = ..., detail: _Optional[str] = ..., head: _Optional[int] = ...) -> None: ...

class ListenResponse(_message.Message):
    __slots__ = ("frame", "echo", "probe", "survey", "receipts_kept")
    FRAME_FIELD_NUMBER: _ClassVar[int]
    ECHO_FIELD_NUMBER: _ClassVar[int]
    PROBE_FIELD_NUMBER: _ClassVar[int]
    SURVEY_FIELD_NUMBER: _ClassVar[int]
    RECEIPTS_KEPT_FIELD_NUMBER: _ClassVar[int]
    frame: SignedFrame
    echo: SignedEcho
    probe: Probe
    survey: Survey
    receipts_kept: SignedReceiptsKept
    def __init__(self, frame: _Optional[_Union[SignedFrame, _Mapping]] = ..., echo: _Optional[_Union[SignedEcho, _Mapping]] = ..., probe: _Optional[_Union[Probe, _Mapping]] = ..., survey: _Optional[_Union[Survey, _Mapping]] = ..., receipts_kept: _Optional[_Union[SignedReceiptsKept, _Mapping]] = ...) -> None: ...

class SignedReceiptsKept(_message.Message):
    __slots__ = ("body", "signature", "certificate")
    BODY_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    body: bytes
    signature: bytes
    certificate: str
    def __init__(self, body: _Optional[bytes] = ..., signature: _Optional[bytes] = ..., certificate: _Optional[str] = ...) -> None: ...

class ReceiptsKept(_message.Message):
    __slots__ = ("realm", "key", "through", "incarnation", "wall_ms", "refusal", "detail")
    REALM_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    THROUGH_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    WALL_MS_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    realm: str
    key: str
    through: int
    incarnation: str
    wall_ms: int
    refusal: str
    detail: str
    def __init__(self, realm: _Optional[str] = ..., key: _Optional[str] = ..., through: _Optional[int] = ..., incarnation: _Optional[str] = ..., wall_ms: _Optional[int] = ..., refusal: _Optional[str] = ..., detail: _Optional[str] = ...) -> None: ...

class Probe(_message.Message):
    __slots__ = ("id", "token", "model", "hold_ms")
    ID_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    HOLD_MS_FIELD_NUMBER: _ClassVar[int]
    id: str
    token: str
    model: str
    hold_ms: int
    def __init__(self, id: _Optional[str] = ..., token: _Optional[str] = ..., model: _Optional[str] = ..., hold_ms: _Optional[int] = ...) -> None: ...

class Survey(_message.Message):
    __slots__ = ("id", "dimensions", "values")
    ID_FIELD_NUMBER: _ClassVar[int]
    DIMENSIONS_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    id: str
    dimensions: _containers.RepeatedScalarFieldContainer[Dimension]
    values: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, id: _Optional[str] = ..., dimensions: _Optional[_Iterable[_Union[Dimension, str]]] = ..., values: _Optional[_Iterable[str]] = ...) -> None: ...

class SignedFrame(_message.Message):
    __slots__ = ("body", "signature", "certificate")
    BODY_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    body: bytes
    signature: bytes
    certificate: str
    def __init__(self, body: _Optional[bytes] = ..., signature: _Optional[bytes] = ..., certificate: _Optional[str] = ...) -> None: ...

class SignedEcho(_message.Message):
    __slots__ = ("body", "signature", "certificate")
    BODY_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    body: bytes
    signature: bytes
    certificate: str
    def __init__(self, body: _Optional[bytes] = ..., signature: _Optional[bytes] = ..., certificate: _Optional[str] = ...) -> None: ...

class EchoBody(_message.Message):
    __slots__ = ("realm", "boot", "nonce", "verifier_clock_ns", "broker_clock_ns", "verifier")
    REALM_FIELD_NUMBER: _ClassVar[int]
    BOOT_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    VERIFIER_CLOCK_NS_FIELD_NUMBER: _ClassVar[int]
    BROKER_CLOCK_NS_FIELD_NUMBER: _ClassVar[int]
    VERIFIER_FIELD_NUMBER: _ClassVar[int]
    realm: str
    boot: str
    nonce: bytes
    verifier_clock_ns: int
    broker_clock_ns: int
    verifier: str
    def __init__(self, realm: _Optional[str] = ..., boot: _Optional[str] = ..., nonce: _Optional[bytes] = ..., verifier_clock_ns: _Optional[int] = ..., broker_clock_ns: _Optional[int] = ..., verifier: _Optional[str] = ...) -> None: ...

class FrameBody(_message.Message):
    __slots__ = ("realm", "incarnation", "boot", "kind", "previous_head", "head", "as_of_ns", "wall_ms", "lease_ms", "heartbeat_ms", "revocations", "keys", "part", "parts", "receipts", "restorations")
    REALM_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    BOOT_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_HEAD_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    AS_OF_NS_FIELD_NUMBER: _ClassVar[int]
    WALL_MS_FIELD_NUMBER: _ClassVar[int]
    LEASE_MS_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_MS_FIELD_NUMBER: _ClassVar[int]
    REVOCATIONS_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    PART_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    RECEIPTS_FIELD_NUMBER: _ClassVar[int]
    RESTORATIONS_FIELD_NUMBER: _ClassVar[int]
    realm: str
    incarnation: str
    boot: str
    kind: FrameKind
    previous_head: int
    head: int
    as_of_ns: int
    wall_ms: int
    lease_ms: int
    heartbeat_ms: int
    revocations: _containers.RepeatedCompositeFieldContainer[FeedRevocation]
    keys: _containers.RepeatedScalarFieldContainer[str]
    part: int
    parts: int
    receipts: ReceiptDemand
    restorations: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, realm: _Optional[str] = ..., incarnation: _Optional[str] = ..., boot: _Optional[str] = ..., kind: _Optional[_Union[FrameKind, str]] = ..., previous_head: _Optional[int] = ..., head: _Optional[int] = ..., as_of_ns: _Optional[int] = ..., wall_ms: _Optional[int] = ..., lease_ms: _Optional[int] = ..., heartbeat_ms: _Optional[int] = ..., revocations: _Optional[_Iterable[_Union[FeedRevocation, _Mapping]]] = ..., keys: _Optional[_Iterable[str]] = ..., part: _Optional[int] = ..., parts: _Optional[int] = ..., receipts: _Optional[_Union[ReceiptDemand, str]] = ..., restorations: _Optional[_Iterable[str]] = ...) -> None: ...

class FeedRevocation(_message.Message):
    __slots__ = ("index", "dimensions", "values", "keep_s")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    DIMENSIONS_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    KEEP_S_FIELD_NUMBER: _ClassVar[int]
    index: int
    dimensions: _containers.RepeatedScalarFieldContainer[Dimension]
    values: _containers.RepeatedScalarFieldContainer[str]
    keep_s: int
    def __init__(self, index: _Optional[int] = ..., dimensions: _Optional[_Iterable[_Union[Dimension, str]]] = ..., values: _Optional[_Iterable[str]] = ..., keep_s: _Optional[int] = ...) -> None: ...
