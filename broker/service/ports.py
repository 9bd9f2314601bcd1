"""What the use cases need of the outside world; each docstring is the contract its suite tests."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from broker.errors import LimitReached
from broker.service.approval_ports import (
    ApprovalAsked,
    ApprovalEnded,
    ApprovalIsOpen,
    HasNotVoted,
    RoomToAsk,
    VoteCast,
)
from broker.service.derivation_ports import TokenIsAlive
from broker.service.limit_ports import TokensCounted, WithinLimits
from broker.service.proof_ports import (
    Completed,
    CompletionAwaited,
    CompletionIsDue,
    DrillRecorded,
    DrillsScheduled,
    VerifierForgotten,
)
from broker.service.receipt_ports import ReceiptKeyEnrolled, ReceiptKeyIsNew, ReceiptsFollow, ReceiptsWritten
from broker.token.keys import Purpose, RealmTrust
from broker.token.revocation import Selector

Draft = Callable[[int], bytes]
"""Makes an entry's exact bytes once its ledger index is known. Pure and fast: it runs inside the append."""


@dataclass(frozen=True, slots=True)
class RequestKey:
    """Makes a write happen once: who asked, under which id, with which contents.

    `proof` is the id of the proof of a run's key that came with it: a repeat comes with another one.
    """

    principal: str
    request_id: str
    digest: bytes  # SHA-256 of the request's contents
    proof: str = ""


@dataclass(frozen=True, slots=True)
class RunIsOpen:
    """Guard: the run exists, is of this partner and realm, open, and its lease has not run out at `at`.

    Refused with `NotFound` (absent, or of another partner) or `RunEnded`.
    """

    run: str
    partner: str
    realm: str
    at: datetime


@dataclass(frozen=True, slots=True)
class RunHasLapsed:
    """Guard: the run is neither closed nor ended yet, and its lease has run out at `at`. Refused with `RunEnded`."""

    run: str
    at: datetime


@dataclass(frozen=True, slots=True)
class BlockIsSet:
    """Guard: exactly this block is in force. Refused with `NotFound`."""

    selector: Selector


@dataclass(frozen=True, slots=True)
class KeyIsTrusted:
    """Guard: no revocation by this key alone is in force. Refused with `Blocked`."""

    kid: str


Guard = (
    RunIsOpen
    | RunHasLapsed
    | BlockIsSet
    | KeyIsTrusted
    | CompletionIsDue
    | WithinLimits
    | RoomToAsk
    | ApprovalIsOpen
    | HasNotVoted
    | TokenIsAlive
    | ReceiptKeyIsNew
    | ReceiptsFollow
)


@dataclass(frozen=True, slots=True)
class PolicyReplaced:
    """Effect: `document` is the policy from the first draft's index on. Moves the policy version."""

    document: str
    by: str
    at: datetime
    reason: str = ""


@dataclass(frozen=True, slots=True)
class RevocationAdded:
    """Effect: `selector` is revoked at the first draft's index; droppable after `keep_until`.

    With `blocks` it also sets a block, which stays until reinstated, and moves the policy version.
    A revocation by key alone moves the policy version too. A revocation that names a run and nothing
    but (optionally) that run's realm and partner closes the run.
    """

    selector: Selector
    reason: str
    by: str
    at: datetime
    keep_until: datetime
    blocks: bool


@dataclass(frozen=True, slots=True)
class TokensRevoked:
    """Effect: the i-th selector, which blocks nothing, is revoked at the i-th draft's index."""

    selectors: tuple[Selector, ...]
    reason: str
    by: str
    at: datetime
    keep_until: datetime


@dataclass(frozen=True, slots=True)
class BlockLifted:
    """Effect: the block with exactly this selector is gone. Moves the policy version."""

    selector: Selector


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A run as stored."""

    id: str
    realm: str
    partner: str
    models: tuple[str, ...]
    opened_by: str
    opened_at: datetime
    lease_s: int
    lease_ends_at: datetime
    is_closed: bool
    # Ended because its lease ran out. Then it is closed, too.
    is_lapsed: bool = False
    # Whom its tokens are for; without both, any principal of the partner.
    user: str | None = None
    workload: str | None = None
    # From where it was opened.
    environment: str | None = None
    # Model and grant of each decision at the opening.
    grants: tuple[tuple[str, str], ...] = ()
    # Public JWK; without one, whoever speaks for the partner may use the run.
    key: Mapping[str, str] | None = None
    approval: str | None = None


@dataclass(frozen=True, slots=True)
class RunOpened:
    """Effect: the run exists."""

    run: RunRecord


@dataclass(frozen=True, slots=True)
class RunKept:
    """Effect: the run's lease ends at `lease_ends_at`, never earlier than before."""

    run: str
    lease_ends_at: datetime


@dataclass(frozen=True, slots=True)
class RunLapsed:
    """Effect: the run is closed, and known to have lapsed. Beside the revocation of its tokens."""

    run: str


@dataclass(frozen=True, slots=True)
class CertificateAdded:
    """Effect: a key certificate is published from the first draft's index on, until `expires_at`."""

    realm: str
    purpose: Purpose
    kid: str
    certificate: str
    expires_at: datetime


Effect = (
    PolicyReplaced
    | RevocationAdded
    | TokensRevoked
    | BlockLifted
    | RunOpened
    | RunKept
    | RunLapsed
    | TokensCounted
    | CertificateAdded
    | CompletionAwaited
    | Completed
    | VerifierForgotten
    | DrillRecorded
    | DrillsScheduled
    | ApprovalAsked
    | VoteCast
    | ApprovalEnded
    | ReceiptKeyEnrolled
    | ReceiptsWritten
)


@dataclass(frozen=True, slots=True)
class Write:
    """One unit of work: all of it is done, durably and in one transaction, or none.

    `urgent` writes (revocations) are accepted when the disk is nearly full, and overtake waiting ones.
    """

    drafts: Sequence[Draft]
    request: RequestKey | None = None
    expecting: int | None = None
    guards: tuple[Guard, ...] = ()
    effects: tuple[Effect, ...] = ()
    urgent: bool = False


@dataclass(frozen=True, slots=True)
class Appended:
    """`indices` of the write's entries. With `is_repeat` nothing was written: they are the first answer's.

    `noted`: what limits that are only audited would have refused.
    """

    indices: range
    is_repeat: bool
    policy_version: int
    noted: tuple[LimitReached, ...] = ()


@dataclass(frozen=True, slots=True)
class Head:
    """Where the ledger is: every index below `size` is taken."""

    incarnation: str
    size: int
    policy_version: int


@dataclass(frozen=True, slots=True)
class PolicyRecord:
    """The policy in force with the blocks, as of `version`. Version 0 and an empty document: none was applied."""

    version: int
    document: str
    by: str
    applied_at: datetime | None
    blocks: Mapping[Selector, int]
    revoked_keys: frozenset[str] = frozenset()
    reason: str = ""


@dataclass(frozen=True, slots=True)
class RevocationRecord:
    """A revocation as stored."""

    index: int
    selector: Selector
    reason: str
    by: str
    at: datetime
    keep_until: datetime


@dataclass(frozen=True, slots=True)
class CertificateRecord:
    """A key certificate as stored."""

    index: int
    realm: str
    purpose: Purpose
    kid: str
    certificate: str
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class Changes:
    """What verifiers must learn after some index, with the head at which it was read."""

    head: Head
    revocations: Sequence[RevocationRecord]
    certificates: Sequence[CertificateRecord]


class Ledger(Protocol):
    """Append-only record with the state that it implies, written in the same transactions.

    Indices begin at 0 and are consecutive, whatever the number of writers, threads and processes.
    Safe to call from any thread.
    """

    def append(self, write: Write) -> Future[Appended]:
        """Do `write`, or nothing of it. Writes from all threads are gathered and committed together.

        The order within the transaction: a repeated request id is recognised first, then `expecting`
        is compared, then the guards, then entries and effects. The future resolves only after the
        commit is durable.

        Raises (through the future):
            RequestReused: The request id came before with another digest.
            PolicyMoved: `expecting` is not the version in force.
            NotFound, RunEnded, Revoked, Blocked, LimitReached, ApprovalOver, VotedAlready, RequestReused,
                ReceiptsOutOfOrder: A guard refused.
            StoreFull: Too little space is left, and the write is not urgent.
            Overloaded: Too many writes wait.
            StoreUnavailable: The outcome is unknown; treat it as not done.
        """

    def head(self) -> Head:
        """Read the head from the primary."""

    def entries(self, start: int, stop: int) -> Sequence[bytes]:
        """Return the exact bytes of entries `start` to `stop` (excluded), as many of them as exist."""

    def changes(self, after: int, *, now: datetime) -> Changes:
        """Return revocations and certificates at index >= `after`, of all realms, in index order.

        One consistent read of the primary: all with an index below `head.size` are in it. What may be
        dropped at `now` is left out.
        """

    def policy(self) -> PolicyRecord:
        """Return the policy, blocks and version, in one consistent read."""

    def version_applied_at(self, index: int) -> int:
        """Return the version that the policy applied by the entry at `index` has. Raises StoreCorrupt if it did not."""

    def run(self, run: str) -> RunRecord | None:
        """Return a run, or None."""

    def runs(self, partner: str | None, limit: int) -> Sequence[RunRecord]:
        """Return runs, newest first."""

    def lapsed(self, now: datetime, limit: int) -> Sequence[RunRecord]:
        """Return runs that are not closed and whose lease has run out at `now`, the longest lapsed first."""

    def revocations(self, after: int, limit: int, *, partner: str | None = None) -> Sequence[RevocationRecord]:
        """Return revocations with an index larger than `after`, smallest first; of `partner`: those that name it."""

    def prune(self, now: datetime) -> int:
        """Drop revocations, certificates, request ids and counts that can matter no more; return how many."""

    def wall_clock(self) -> datetime | None:
        """Return the store's own clock, or None where the store has none (SQLite)."""

    def close(self) -> None:
        """Finish what waits, then release everything. Appends after it raise StoreUnavailable."""


class Clock(Protocol):
    """Time of this process."""

    def now(self) -> datetime:
        """Return the wall clock, aware UTC. Within a process it never jumps: it runs on from the start's reading."""

    def boottime_ns(self) -> int:
        """Return CLOCK_BOOTTIME in nanoseconds: it counts while the machine sleeps and never goes back."""

    def is_astray(self) -> str | None:
        """Return None, or what is wrong when the machine's wall clock has left ours by more than 60 s."""


class SigningKey(Protocol):
    """A certified key that can sign now."""

    @property
    def kid(self) -> str:
        """RFC 7638 thumbprint."""

    @property
    def certificate(self) -> str:
        """JWS by the realm's root."""

    @property
    def signs_until(self) -> datetime:
        """The last instant at which it may sign."""

    def sign(self, messages: Sequence[bytes]) -> Future[Sequence[bytes]]:
        """Sign each message with ES256; 64 bytes each, r || s, every one verified if it came from outside.

        Raises (through the future):
            SignerUnavailable: No signature; nothing was signed that anybody saw.
        """


class Signer(Protocol):
    """Keys for signing, one current key for each realm and purpose. Rotates by itself, with overlap."""

    def current(self, realm: str, purpose: Purpose) -> SigningKey:
        """Return the key to sign with now. Never does I/O.

        Raises:
            SignerUnavailable: There is none: the root could not be asked in time.
        """

    def roots(self, realm: str) -> RealmTrust:
        """Return what verifiers of the realm must pin. Raises SignerUnavailable."""

    def close(self) -> None:
        """Forget all keys."""


@dataclass(frozen=True, slots=True)
class RealmKeys:
    """What a signer must know of a realm to certify keys for it."""

    realm: str
    issuer: str
    audience: str
    max_ttl_s: int
    extra: Mapping[str, str] = field(default_factory=dict)


PublishCertificate = Callable[[str, Purpose, str, str, datetime], None]
"""Called with realm, purpose, kid, certificate, expires_at before a key signs anything; raises if it is not durable."""


class Root(Protocol):
    """The realms' root keys; they never leave it (Vault transit, or an encrypted file)."""

    def public_jwk(self, realm: str) -> Sequence[Mapping[str, str]]:
        """Return the realm's public root keys, newest first, as JWKs. Raises SignerUnavailable."""

    def sign(self, realm: str, message: bytes) -> tuple[str, bytes]:
        """Sign with the newest root key: its kid and r || s. Verified before it is returned.

        Raises:
            SignerUnavailable: No answer within the time-out, or a wrong one.
        """
