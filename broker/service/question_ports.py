"""What questions about the past need: an index of the ledger that can be thrown away and made again."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from broker.audit.events import AccessPath, Event

Ref = tuple[int, int]
"""Where an event is: ledger index, and line of receipts or 0."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Events that have all of `facets`, within Unix milliseconds `from_ms` <= at < `until_ms`."""

    facets: frozenset[str] = frozenset()
    from_ms: int | None = None
    until_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Refs:
    """Some events in ledger order. `after`: where to go on, or None: there are no more.

    There can be more although there is none here: looking ends after a while.
    """

    refs: Sequence[Ref]
    after: Ref | None


@dataclass(frozen=True, slots=True)
class Times:
    """How often something happened, and the newest of it: Unix milliseconds, and the entry that tells of it."""

    count: int
    at_ms: int
    index: int


@dataclass(frozen=True, slots=True)
class Reached:
    """What is known of a path to a model: tokens that were minted by it, and accepted uses of them. None: never."""

    path: AccessPath
    model: str
    minted: Times | None
    used: Times | None


class EventIndex(Protocol):
    """Events by facet. No part of the ledger: it is behind it, and is made anew if it is lost.

    Safe to call from any thread. Every method raises StoreUnavailable.
    """

    def size(self) -> int:
        """Return how many entries are indexed, from the first on."""

    def add(self, events: Sequence[Event], size: int) -> None:
        """Add the events of the entries up to `size`, all of them or none."""

    def find(self, wanted: Wanted, after: Ref | None, limit: int) -> Refs:
        """Return at most `limit` events behind `after`, in ledger order, in bounded time."""

    def last(self, facets: Collection[str], before: int) -> int | None:
        """Return the newest entry below `before` with all of `facets`, or None."""

    def highest_head(self, facets: Collection[str]) -> int | None:
        """Return the highest head that receipts with all of `facets` tell, of the newest that there are; or None."""

    def reached(self, realm: str | None, partner: str | None, model: str | None, limit: int) -> Sequence[Reached]:
        """Return at most `limit` paths by which tokens were ever minted, sorted; None: of each."""
