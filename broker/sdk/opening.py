"""Opens what a broker signed for a realm: from bytes to a checked body, or a refusal. Pure."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from broker.errors import (
    FrameRefused,
    FrameTooLarge,
    FrameUntrusted,
    FrameWrongRealm,
    Invalid,
    Malformed,
    Untrusted,
)
from broker.token.keys import Purpose, RealmTrust, TrustedKey, check_certificate, verify_es256
from broker.token.lease import drift_ns
from broker.token.restoration import MAX_RESTORATIONS, Restoration, check_restoration
from broker.token.revocation import Dimension, Shape, checks_of
from broker.v1 import feed_pb2

FRAME_CONTEXT = b"broker.v1.FrameBody\x00"
ECHO_CONTEXT = b"broker.v1.EchoBody\x00"
KEPT_CONTEXT = b"broker.v1.ReceiptsKept\x00"
MAX_BODY_BYTES = 4 << 20
# The body, its signature and a certificate.
MAX_MESSAGE_BYTES = MAX_BODY_BYTES + (16 << 10)
# The policy allows a lease of 1 s to 60 s; a stolen feed key shall not make it a month.
MAX_LEASE_MS = 60_000
MAX_PARTS = 1024
MAX_NAME_CHARS = 128
NS_PER_S = 1_000_000_000
MS_PER_S = 1000

_DEMANDS = frozenset(feed_pb2.ReceiptDemand.values())
_DIMENSIONS: Mapping[int, Dimension] = {int(dimension): dimension for dimension in Dimension}


@dataclass(frozen=True, slots=True)
class OpenedFrame:
    """Signed by a key that the realm's root certified for the feed, for this realm, and well-formed."""

    body: feed_pb2.FrameBody
    key: TrustedKey


@dataclass(frozen=True, slots=True)
class OpenedEcho:
    """As OpenedFrame. What it answers is not checked yet."""

    body: feed_pb2.EchoBody
    key: TrustedKey


@dataclass(frozen=True, slots=True)
class OpenedKept:
    """As OpenedFrame, of the answer to receipts."""

    body: feed_pb2.ReceiptsKept
    key: TrustedKey


class Opener:
    """Checks form, signature and realm of what one realm's feed carries. Judges no time and no order."""

    def __init__(self, trust: RealmTrust) -> None:
        self._trust = trust
        # The feed key changes once in hours: its certificate is checked once, not with each heartbeat.
        self._known: tuple[str, TrustedKey] | None = None

    def open(self, message: bytes) -> OpenedFrame | OpenedEcho | OpenedKept:
        """Open a serialized ListenResponse.

        Raises:
            FrameTooLarge: Before anything is parsed.
            FrameUntrusted, FrameWrongRealm, FrameRefused: It is not for us.
        """
        # 1. The size, before a parser sees it.
        if len(message) > MAX_MESSAGE_BYTES:
            raise FrameTooLarge(f"a message of {len(message)} bytes")
        # 2. The envelope.
        try:
            unverified = feed_pb2.ListenResponse.FromString(message)
        except DecodeError as bad:
            raise FrameRefused("a message that cannot be parsed") from bad
        match unverified.WhichOneof("message"):
            case "frame":
                return self._frame(unverified.frame)
            case "echo":
                return self._echo(unverified.echo)
            case "receipts_kept":
                return self._kept(unverified.receipts_kept)
            case _:
                raise FrameRefused("a message that is neither frame nor echo")

    def token_keys(self, certificates: Sequence[str]) -> dict[str, TrustedKey]:
        """Return the token keys that `certificates` vouch for. Raises FrameUntrusted if one does not."""
        keys: dict[str, TrustedKey] = {}
        for certificate in certificates:
            key = self._certified(certificate, Purpose.TOKEN)
            keys[key.kid] = later(keys.get(key.kid), key)
        return keys

    def restorations(self, texts: list[str]) -> list[Restoration]:
        """Return what the realm's root said. Raises FrameUntrusted if one is not its word."""
        if len(texts) > MAX_RESTORATIONS:
            raise FrameRefused("a frame with too many restorations")
        try:
            return [check_restoration(text, self._trust) for text in texts]
        except (Malformed, Untrusted) as bad:
            raise FrameUntrusted(bad.message) from bad

    def _frame(self, signed: feed_pb2.SignedFrame) -> OpenedFrame:
        if len(signed.body) > MAX_BODY_BYTES:
            raise FrameTooLarge(f"a body of {len(signed.body)} bytes")
        # 3. The signature, over a prefix that no other kind of message has.
        key = self._signed_by(signed.certificate, signed.signature, FRAME_CONTEXT + signed.body)
        # 4. The body.
        try:
            body = feed_pb2.FrameBody.FromString(signed.body)
        except DecodeError as bad:
            raise FrameRefused("a frame that cannot be parsed") from bad
        # 5. The realm (P8).
        self._must_be_ours(body.realm)
        # 6. The form.
        if not 0 < len(body.incarnation) <= MAX_NAME_CHARS or not 0 < len(body.boot) <= MAX_NAME_CHARS:
            raise FrameRefused("a frame without incarnation or boot id")
        if not 0 < body.lease_ms <= MAX_LEASE_MS or body.wall_ms <= 0:
            raise FrameRefused("a frame with an impossible lease or wall clock")
        if body.receipts not in _DEMANDS:
            raise FrameRefused("a frame that demands unknown receipts", hint="update the SDK")
        return OpenedFrame(body, key)

    def _echo(self, signed: feed_pb2.SignedEcho) -> OpenedEcho:
        key = self._signed_by(signed.certificate, signed.signature, ECHO_CONTEXT + signed.body)
        try:
            body = feed_pb2.EchoBody.FromString(signed.body)
        except DecodeError as bad:
            raise FrameRefused("an echo that cannot be parsed") from bad
        self._must_be_ours(body.realm)
        if not 0 < len(body.boot) <= MAX_NAME_CHARS:
            raise FrameRefused("an echo without boot id")
        return OpenedEcho(body, key)

    def _kept(self, signed: feed_pb2.SignedReceiptsKept) -> OpenedKept:
        key = self._signed_by(signed.certificate, signed.signature, KEPT_CONTEXT + signed.body)
        try:
            body = feed_pb2.ReceiptsKept.FromString(signed.body)
        except DecodeError as bad:
            raise FrameRefused("an answer to receipts that cannot be parsed") from bad
        self._must_be_ours(body.realm)
        return OpenedKept(body, key)

    def _must_be_ours(self, realm: str) -> None:
        if realm != self._trust.realm:
            raise FrameWrongRealm(f"a message for another realm than {self._trust.realm}")

    def _signed_by(self, certificate: str, signature: bytes, message: bytes) -> TrustedKey:
        if self._known is not None and self._known[0] == certificate:
            key = self._known[1]
        else:
            key = self._certified(certificate, Purpose.FEED)
            self._known = (certificate, key)
        if not verify_es256(key.public_key, signature, message):
            raise FrameUntrusted("a message with a wrong signature")
        return key

    def _certified(self, certificate: str, purpose: Purpose) -> TrustedKey:
        try:
            return check_certificate(certificate, self._trust, purpose)
        except (Malformed, Untrusted) as bad:
            raise FrameUntrusted(f"{purpose} key: {bad.message}") from bad


def later(one: TrustedKey | None, other: TrustedKey) -> TrustedKey:
    """Return which of two certificates of a key lasts longer."""
    return one if one is not None and one.expires >= other.expires else other


_Checks = tuple[Callable[[str], object], ...]
_Form = tuple[Shape, _Checks, Shape, _Checks]
Entry = tuple[Shape, tuple[str, ...], int, int]
"""A revocation as the matcher takes it: shape, values, index, and the instant at which it may be dropped."""


def revocations_of(body: feed_pb2.FrameBody, *, first: int, stop: int, arrived_ns: int) -> list[Entry]:
    """Return the frame's revocations.

    Kept from the arrival on, which is never before `as_of`, and with drift, so that none is dropped too early
    (P4). The realm, where it is one condition of several, is left out: no token of another is ever looked at,
    and a million entries need half the memory without it.

    Raises:
        FrameRefused: One is malformed, out of order, or has an index outside `first` to `stop` (excluded).
    """
    keep: dict[int, int] = {}
    found: list[Entry] = []
    realm = body.realm
    last = first
    # A million come in one snapshot, nearly all of one form, and each message's field costs more than a comparison.
    numbers: Sequence[int] = ()
    form: _Form = ((), (), (), ())
    for entry in body.revocations:
        index = entry.index
        if not last <= index < stop:
            raise FrameRefused("a revocation out of the frame's range or order")
        last = index
        these = entry.dimensions[:]
        if these != numbers:
            numbers = these
            form = _form(tuple(numbers))
        shape, checks, without_realm, other_checks = form
        values = entry.values[:]
        if len(values) != len(checks):
            raise FrameRefused("a revocation with a malformed selector")
        if without_realm and values[0] == realm:
            # The frame's realm is ours, so this value is well formed.
            shape, checks = without_realm, other_checks
            del values[0]
        for is_valid, value in zip(checks, values):  # noqa: B905 - as many, see above
            if not is_valid(value):
                raise FrameRefused("a revocation with a malformed selector")
        keep_s = entry.keep_s
        drop_at_ns = keep.get(keep_s)
        if drop_at_ns is None:
            keep_ns = keep_s * NS_PER_S
            drop_at_ns = keep[keep_s] = arrived_ns + keep_ns + drift_ns(keep_ns)
        found.append((shape, tuple(values), index, drop_at_ns))
    return found


@functools.lru_cache(256)
def _form(numbers: tuple[int, ...]) -> _Form:
    """Return a shape and the checks of its values, and both without the realm, if it is one condition of several."""
    shape = _shape(numbers)
    try:
        checks = checks_of(shape)
    except Invalid as bad:
        raise FrameRefused("a revocation with a malformed selector") from bad
    return (shape, checks, shape[1:], checks[1:]) if shape[0] is Dimension.REALM else (shape, checks, (), ())


def _shape(numbers: tuple[int, ...]) -> Shape:
    # An unknown dimension would make the selector wider or narrower than it was meant.
    if any(number not in _DIMENSIONS for number in numbers):
        raise FrameRefused("a revocation with an unknown dimension", hint="update the SDK")
    return tuple(_DIMENSIONS[number] for number in numbers)
