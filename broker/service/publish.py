"""Read what changed and publish it: one signed frame for all verifiers of a realm."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from types import MappingProxyType
from typing import TypeVar

from broker.errors import NotFound, SignerUnavailable, StoreUnavailable
from broker.service import frames
from broker.service.frames import Contents, Stamp
from broker.service.policies import Policies
from broker.service.ports import CertificateRecord, Changes, Clock, Head, Ledger, RevocationRecord, Signer
from broker.token.keys import Purpose

# The shortest that a frame can name; counted from before it was made, it is over when it arrives.
NO_LEASE_MS = 1
# A kept snapshot is followed by one delta that bridges to the present; beyond this it is made anew.
MAX_BRIDGE_ENTRIES = 1000

Record = TypeVar("Record", RevocationRecord, CertificateRecord)


@dataclass(frozen=True, slots=True)
class Published:
    """One message for a realm, ready to be sent to each of its subscribers at `previous_head`."""

    message: bytes
    previous_head: int
    head: int
    as_of_ns: int
    has_contents: bool


@dataclass(frozen=True, slots=True)
class _Reading:
    """The head, and the instant before which everything committed has a smaller index."""

    head: Head
    as_of_ns: int
    wall: datetime


@dataclass(frozen=True, slots=True)
class _Snapshot:
    kid: str
    messages: tuple[bytes, ...]
    head: int


@dataclass(frozen=True, slots=True)
class _Bridged:
    """A snapshot with its bridge to one reading, under one stamp."""

    kid: str
    messages: tuple[bytes, ...]
    of: tuple[_Reading, Stamp]


class Publisher:
    """Reads what changed and turns it into frames. Not safe for several threads: one loop owns it.

    The clock is read before the head (design.md, the feed and the lease), so that a frame never
    claims to be newer than what it holds (P5).
    """

    def __init__(
        self,
        ledger: Ledger,
        policies: Policies,
        signer: Signer,
        clock: Clock,
        *,
        boot: str,
        restorations: Mapping[str, Sequence[str]] = MappingProxyType({}),
    ) -> None:
        self._restorations = {realm: tuple(documents) for realm, documents in restorations.items()}
        self._ledger = ledger
        self._policies = policies
        self._signer = signer
        self._clock = clock
        self._boot = boot
        # By index, ascending, because they are read in that order.
        self._revocations: dict[int, RevocationRecord] = {}
        self._certificates: dict[int, CertificateRecord] = {}
        self._reading: _Reading | None = None
        self._snapshots: dict[str, _Snapshot] = {}
        self._bridged: dict[str, _Bridged] = {}

    def poll(self) -> Mapping[str, Published]:
        """Read once and return each realm's delta since the last poll; without changes it is the heartbeat.

        The first poll fills the state and returns nothing. A realm that cannot be signed for is left
        out, and its verifiers' leases run out, as they should.

        Raises:
            StoreUnavailable: Nothing is known, so nothing may be sent.
        """
        as_of_ns = self._clock.boottime_ns()
        wall = self._clock.now()
        before = self._reading
        changes = self._ledger.changes(before.head.size if before else 0, now=wall)
        if before is not None and changes.head.size < before.head.size:
            raise StoreUnavailable("the ledger went back", hint="a broker must not follow a store that lost entries")
        if before is not None and changes.head.policy_version != before.head.policy_version:
            self._policies.refresh()
        reading = _Reading(changes.head, as_of_ns, wall)
        self._take_in(changes, wall)
        self._reading = reading
        if before is None:
            return {}
        published = {}
        everything = Contents(changes.revocations, changes.certificates)
        for realm in self._policies.current().policy.realms:
            contents = _concerning(everything, realm)
            if not frames.fits_one_frame(contents):
                # Subscribers notice the gap and are given a snapshot.
                self._snapshots.pop(realm, None)
                continue
            try:
                message = frames.delta(
                    self._stamp(realm, reading), before.head.size, contents, self._signer.current(realm, Purpose.FEED)
                )
            except SignerUnavailable:
                continue
            published[realm] = Published(message, before.head.size, reading.head.size, reading.as_of_ns, bool(contents))
        return published

    def snapshot(self, realm: str) -> tuple[Sequence[bytes], int]:
        """Return the messages that bring a new subscriber to the head of the last poll, and that head.

        Snapshots are signed once and kept. By themselves they let nobody accept: who joins after a completion
        must not go by one from before it, not even until the next message (P6). The bridge, which is
        always fresh, brings the lease.

        Raises:
            NotFound: The policy has no such realm.
            SignerUnavailable: The realm has no feed key.
            StoreUnavailable: Nothing was read yet.
        """
        if self._reading is None:
            raise StoreUnavailable("the feed has not read the ledger yet", hint="retry")
        key = self._signer.current(realm, Purpose.FEED)
        stamp = self._stamp(realm, self._reading)
        # When ten thousand come back at once, they come between two polls, and all are given the same.
        bridged = self._bridged.get(realm)
        if bridged is not None and bridged.kid == key.kid and bridged.of == (self._reading, stamp):
            return bridged.messages, stamp.head
        kept = self._snapshots.get(realm)
        # One that an ended or revoked key signed is refused by all who know that, for ever.
        if kept is not None and kept.kid == key.kid:
            bridge = _concerning(self._since(kept.head), realm)
            if len(bridge.revocations) + len(bridge.certificates) <= MAX_BRIDGE_ENTRIES:
                messages = (*kept.messages, frames.delta(stamp, kept.head, bridge, key))
                self._bridged[realm] = _Bridged(key.kid, messages, (self._reading, stamp))
                return messages, stamp.head
        without_lease = replace(stamp, lease_ms=NO_LEASE_MS)
        messages = tuple(frames.snapshot(without_lease, _concerning(self._since(0), realm), key))
        self._snapshots[realm] = _Snapshot(key.kid, messages, stamp.head)
        return (*messages, frames.delta(stamp, stamp.head, Contents(), key)), stamp.head

    def answer_echo(self, realm: str, *, nonce: bytes, verifier_clock_ns: int, verifier: str) -> bytes:
        """Return the answer to an echo, with this process's clock read now. Raises SignerUnavailable."""
        key = self._signer.current(realm, Purpose.FEED)
        return frames.echo(
            realm=realm,
            boot=self._boot,
            nonce=nonce,
            verifier_clock_ns=verifier_clock_ns,
            broker_clock_ns=self._clock.boottime_ns(),
            verifier=verifier,
            key=key,
        )

    def in_force(self, realm: str) -> int:
        """Return how many revocations verifiers of a realm hold."""
        return sum(record.selector.concerns(realm) for record in tuple(self._revocations.values()))

    def certificates(self, realm: str) -> Sequence[CertificateRecord]:
        """Return the certificates of a realm's keys for tokens and completions that have not ended, oldest first."""
        now = self._clock.now()
        return [
            record
            for record in tuple(self._certificates.values())
            if record.realm == realm and record.purpose is not Purpose.FEED and record.expires_at > now
        ]

    @property
    def head(self) -> Head | None:
        """The head of the last poll."""
        return self._reading.head if self._reading else None

    def _since(self, index: int) -> Contents:
        return Contents(
            _tail(self._revocations, index),
            _tail(self._certificates, index),
        )

    def _take_in(self, changes: Changes, now: datetime) -> None:
        self._revocations.update((record.index, record) for record in changes.revocations)
        self._certificates.update((record.index, record) for record in changes.certificates)
        # Ended certificates are of no use to anyone; revocations are over when no token they match can live.
        self._certificates = {i: record for i, record in self._certificates.items() if record.expires_at > now}
        oldest = next(iter(self._revocations.values()), None)
        if oldest is not None and oldest.keep_until <= now:
            self._revocations = {i: record for i, record in self._revocations.items() if record.keep_until > now}
            self._snapshots.clear()

    def _stamp(self, realm: str, reading: _Reading) -> Stamp:
        known = self._policies.current().policy.realms.get(realm)
        if known is None:
            raise NotFound(f"there is no realm {realm}")
        return Stamp(
            realm=realm,
            incarnation=reading.head.incarnation,
            boot=self._boot,
            head=reading.head.size,
            as_of_ns=reading.as_of_ns,
            wall=reading.wall,
            lease_ms=known.lease_ms,
            heartbeat_ms=known.heartbeat_ms,
            receipts=known.receipts,
            restorations=self._restorations.get(realm, ()),
        )


def _is_token_key(record: CertificateRecord, realm: str) -> bool:
    return record.realm == realm and record.purpose is Purpose.TOKEN


def _concerning(contents: Contents, realm: str) -> Contents:
    """A verifier gets what concerns its realm (P8)."""
    return Contents(
        tuple(record for record in contents.revocations if record.selector.concerns(realm)),
        tuple(record for record in contents.certificates if _is_token_key(record, realm)),
    )


def _tail(records: "dict[int, Record]", index: int) -> tuple["Record", ...]:
    """Return the records at `index` and after; walks from the end, so that it looks at little more."""
    tail = []
    for at in reversed(records):
        if at < index:
            break
        tail.append(records[at])
    return tuple(reversed(tail))
