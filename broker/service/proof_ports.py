"""What proving a revocation needs of the store: completions, drills, and who ever listened."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol


@dataclass(frozen=True, slots=True)
class CompletionIsDue:
    """Guard: the revocation at this index waits for its completion. Refused with `NotFound`.

    So there is one completion for each revocation, whatever the number of brokers that would finish it.
    """

    revocation: int


@dataclass(frozen=True, slots=True)
class CompletionAwaited:
    """Effect: the revocation at the write's last index, of entries from its first, waits for its completion.

    `realms`: those that it concerned at the commit; `lease_ms`: the longest freshness lease among them.
    """

    realms: tuple[str, ...]
    lease_ms: int


@dataclass(frozen=True, slots=True)
class Completed:
    """Effect: the revocation at `revocation` is complete; `document` is kept with the first draft's index."""

    revocation: int
    document: bytes


@dataclass(frozen=True, slots=True)
class VerifierForgotten:
    """Effect: the verifier is on the roster of this realm no more."""

    verifier: str
    realm: str


@dataclass(frozen=True, slots=True)
class DrillRecorded:
    """Effect: `document` tells of a drill in `realm`; kept with the first draft's index."""

    realm: str
    document: bytes


@dataclass(frozen=True, slots=True)
class DrillsScheduled:
    """Effect: drill `realm` every so many seconds; 0 ends it."""

    realm: str
    every_s: int


@dataclass(frozen=True, slots=True)
class CompletionRecord:
    """The completion of a revocation, or that it is awaited: then `entry` and `document` are None."""

    revocation: int
    first: int
    realms: tuple[str, ...]
    lease_ms: int
    entry: int | None
    document: bytes | None


@dataclass(frozen=True, slots=True)
class DrillRecord:
    """A drill as stored."""

    index: int
    realm: str
    document: bytes


@dataclass(frozen=True, slots=True)
class Sighting:
    """A verifier as a broker saw it last, by that broker's wall clock. `head`: what it had applied."""

    verifier: str
    realm: str
    version: str
    address: str
    head: int
    seen_at: datetime
    is_present: bool


class Proofs(Protocol):
    """Completions and drills as they are kept. Written by `Ledger.append`; reads are of the primary.

    Safe to call from any thread. Every method raises StoreUnavailable.
    """

    def completion(self, revocation: int) -> CompletionRecord | None:
        """Return the completion of the revocation at this index, or that it is awaited, or None: there is none."""

    def awaited(self) -> Sequence[CompletionRecord]:
        """Return the completions that are awaited, the oldest first."""

    def drills(self, realm: str | None, limit: int) -> Sequence[DrillRecord]:
        """Return past drills, newest first."""

    def drill_schedules(self) -> Sequence[tuple[str, int]]:
        """Return what is scheduled: realm and seconds, by realm."""

    def minted(self, containing: Sequence[bytes], *, since: datetime) -> Iterator[bytes]:
        """Yield the bytes of each token-minted entry written at or after `since` that contains all of `containing`.

        In index order, read in slices, so that nothing is held up. Entries a little older may come too.
        """


class Roster(Protocol):
    """Who listens or ever listened, whatever the broker, until forgotten. No part of the ledger.

    Safe to call from any thread. Every method raises StoreUnavailable.
    """

    def note(self, sightings: Sequence[Sighting]) -> None:
        """Keep the newest sighting of each verifier and realm; a head never goes back. All or nothing."""

    def known(self, realm: str | None) -> Sequence[Sighting]:
        """Return the last sighting of each verifier, by realm and name."""


@dataclass(frozen=True, slots=True)
class DrillCall:
    """A drill that began: each broker is to show `token`, the canary, to the verifiers of `realm` that listen to it.

    They hold it for `hold_ms`. `called_at` is by the wall clock of the broker that called.
    """

    canary: str
    realm: str
    token: str
    hold_ms: int
    called_at: datetime


class DrillCalls(Protocol):
    """Drills under way, known to every broker, and what verifiers elsewhere say of them. No part of the ledger.

    Safe to call from any thread. Every method raises StoreUnavailable.
    """

    def call(self, call: DrillCall) -> None:
        """Tell every broker of a drill. Those called an hour before it or earlier are forgotten: who called died."""

    def called(self) -> Sequence[DrillCall]:
        """Return the drills under way, by when they were called."""

    def tell(self, canary: str, broker: str, part: bytes) -> None:
        """Say how far the verifiers of one broker are, instead of what it said before. Nothing when it is over."""

    def told(self, canary: str) -> Mapping[str, bytes]:
        """Return what each broker said last, by its name."""

    def end(self, canary: str) -> None:
        """Forget a drill and what was said of it."""


@dataclass(frozen=True, slots=True)
class Cut:
    """How many running uses the revocation at an index cut at one verifier, as that told its broker."""

    revocation: int
    verifier: str
    realm: str
    uses: int


class Cuts(Protocol):
    """Uses that were cut, for the completions of other brokers. No part of the ledger.

    Safe to call from any thread. Every method raises StoreUnavailable.
    """

    def note(self, broker: str, cuts: Sequence[Cut], *, keep_until: datetime) -> None:
        """Keep them, each instead of what the same broker noted of the same revocation and verifier. All or nothing."""

    def elsewhere(self, broker: str, first: int, last: int) -> Sequence[Cut]:
        """Return what brokers but this one noted of the revocations from `first` to `last`, by index, in no order."""
