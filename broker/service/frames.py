"""Spell frames and echoes on the wire: protobuf, signed once for all who listen."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from broker.domain.policy import Receipts
from broker.service.ports import CertificateRecord, RevocationRecord, SigningKey
from broker.token.restoration import MAX_RESTORATIONS
from broker.token.revocation import Shape
from broker.v1 import feed_pb2

FRAME_CONTEXT = b"broker.v1.FrameBody\x00"
ECHO_CONTEXT = b"broker.v1.EchoBody\x00"
KEPT_CONTEXT = b"broker.v1.ReceiptsKept\x00"
DEMANDS = {
    Receipts.NONE: feed_pb2.RECEIPT_DEMAND_UNSPECIFIED,
    Receipts.SUMMED: feed_pb2.RECEIPT_DEMAND_SUMMED,
    Receipts.EACH: feed_pb2.RECEIPT_DEMAND_EACH,
}
# Verifiers refuse frames above 4 MiB; a part stays well below.
PART_BYTES = 2 << 20
# Without values, an entry takes about so many bytes.
ENTRY_OVERHEAD_BYTES = 32


@dataclass(frozen=True, slots=True)
class Stamp:
    """What every frame of one reading has in common."""

    realm: str
    incarnation: str
    boot: str
    head: int
    as_of_ns: int
    wall: datetime
    lease_ms: int
    heartbeat_ms: int
    receipts: Receipts = Receipts.NONE
    restorations: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Contents:
    """What a frame adds to the state."""

    revocations: Sequence[RevocationRecord] = ()
    certificates: Sequence[CertificateRecord] = ()

    def __bool__(self) -> bool:
        return bool(self.revocations or self.certificates)


def delta(stamp: Stamp, previous_head: int, contents: Contents, key: SigningKey) -> bytes:
    """Return a ListenResponse with a delta from `previous_head` to the stamp's head."""
    body = _body(stamp, contents)
    body.kind = feed_pb2.FRAME_KIND_DELTA
    body.previous_head = previous_head
    return _signed_frame(body, key)


def snapshot(stamp: Stamp, contents: Contents, key: SigningKey) -> list[bytes]:
    """Return the ListenResponses that together replace a verifier's state; at least one."""
    slices = list(_parts(contents))
    messages = []
    for part, piece in enumerate(slices):
        body = _body(stamp, piece)
        body.kind = feed_pb2.FRAME_KIND_SNAPSHOT
        body.part = part
        body.parts = len(slices)
        body.restorations.extend(stamp.restorations[-MAX_RESTORATIONS:])
        messages.append(_signed_frame(body, key))
    return messages


def fits_one_frame(contents: Contents) -> bool:
    """Tell whether a delta can carry it."""
    return sum(1 for _ in _parts(contents)) == 1


def echo(
    *, realm: str, boot: str, nonce: bytes, verifier_clock_ns: int, broker_clock_ns: int, verifier: str, key: SigningKey
) -> bytes:
    """Return the ListenResponse that answers an echo."""
    body = feed_pb2.EchoBody(
        realm=realm,
        boot=boot,
        nonce=nonce,
        verifier_clock_ns=verifier_clock_ns,
        broker_clock_ns=broker_clock_ns,
        verifier=verifier,
    ).SerializeToString()
    [signature] = key.sign([ECHO_CONTEXT + body]).result()
    signed = feed_pb2.SignedEcho(body=body, signature=signature, certificate=key.certificate)
    return feed_pb2.ListenResponse(echo=signed).SerializeToString()


def receipts_kept(
    *, realm: str, incarnation: str, wall: datetime, kid: str, through: int, refusal: str, detail: str, key: SigningKey
) -> bytes:
    """Return the ListenResponse that answers receipts."""
    body = feed_pb2.ReceiptsKept(
        realm=realm,
        key=kid,
        through=through,
        incarnation=incarnation,
        wall_ms=int(wall.timestamp() * 1000),
        refusal=refusal,
        detail=detail,
    ).SerializeToString()
    [signature] = key.sign([KEPT_CONTEXT + body]).result()
    signed = feed_pb2.SignedReceiptsKept(body=body, signature=signature, certificate=key.certificate)
    return feed_pb2.ListenResponse(receipts_kept=signed).SerializeToString()


def _body(stamp: Stamp, contents: Contents) -> feed_pb2.FrameBody:
    body = feed_pb2.FrameBody(
        realm=stamp.realm,
        incarnation=stamp.incarnation,
        boot=stamp.boot,
        head=stamp.head,
        as_of_ns=stamp.as_of_ns,
        wall_ms=int(stamp.wall.timestamp() * 1000),
        lease_ms=stamp.lease_ms,
        heartbeat_ms=stamp.heartbeat_ms,
        receipts=DEMANDS[stamp.receipts],
        keys=[record.certificate for record in contents.certificates],
    )
    numbers: dict[Shape, list[int]] = {}
    keep: dict[datetime, int] = {}
    for record in contents.revocations:
        shape = record.selector.dimensions
        if shape not in numbers:
            numbers[shape] = [int(dimension) for dimension in shape]
        keep_s = keep.get(record.keep_until)
        if keep_s is None:
            seconds = (record.keep_until - stamp.wall).total_seconds()
            keep_s = keep[record.keep_until] = max(1, int(seconds) + 1)
        body.revocations.add(
            index=record.index,
            dimensions=numbers[shape],
            values=[value for _, value in record.selector.conditions],
            keep_s=keep_s,
        )
    return body


def _signed_frame(body: feed_pb2.FrameBody, key: SigningKey) -> bytes:
    data = body.SerializeToString()
    [signature] = key.sign([FRAME_CONTEXT + data]).result()
    frame = feed_pb2.SignedFrame(body=data, signature=signature, certificate=key.certificate)
    return feed_pb2.ListenResponse(frame=frame).SerializeToString()


def _parts(contents: Contents) -> Iterator[Contents]:
    """Cut contents into pieces of at most PART_BYTES; certificates go first."""
    size = sum(len(record.certificate) for record in contents.certificates)
    certificates = contents.certificates
    piece: list[RevocationRecord] = []
    for record in contents.revocations:
        need = ENTRY_OVERHEAD_BYTES + sum(len(value) + 4 for _, value in record.selector.conditions)
        if piece and size + need > PART_BYTES:
            yield Contents(tuple(piece), certificates)
            piece, certificates, size = [], (), 0
        piece.append(record)
        size += need
    yield Contents(tuple(piece), certificates)
