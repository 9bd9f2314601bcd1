"""Keep the index of the ledger near its end, a step at a time."""

import threading
from collections import OrderedDict

from broker.audit.events import Event, MintAt, events_of
from broker.errors import Overloaded, StoreCorrupt
from broker.ledger.entry import Kind, decode_entry
from broker.service.ports import Clock, Ledger
from broker.service.question_ports import EventIndex

STEP = 500
KNOWN_TOKENS = 50_000
LONGEST_WAIT_NS = 5_000_000_000
_MINTS = (Kind.TOKEN_MINTED, Kind.CANARY_MINTED)


class Indexer:
    """Safe to call from any thread; one step is made at a time."""

    def __init__(self, ledger: Ledger, index: EventIndex, clock: Clock) -> None:
        self._ledger = ledger
        self._index = index
        self._clock = clock
        self._turn = threading.Lock()
        self._minted: OrderedDict[int, Event | None] = OrderedDict()

    def step(self) -> int:
        """Index some entries; return how many. Raises StoreUnavailable."""
        with self._turn:
            start = self._index.size()
            data = self._ledger.entries(start, start + STEP)
            if not data:
                return 0
            events: list[Event] = []
            for at, one in enumerate(data, start):
                made = _events(one, at, self._mint_at)
                events += made
                self._remember(at, made)
            self._index.add(events, start + len(data))
            return len(data)

    def must_cover(self, size: int) -> None:
        """Index up to `size` entries, now.

        Raises:
            Overloaded: It takes longer than a question may; ask again.
            StoreUnavailable: It cannot be read or written.
        """
        until = self._clock.boottime_ns() + LONGEST_WAIT_NS
        while (covered := self._index.size()) < size:
            if self._clock.boottime_ns() > until:
                raise Overloaded(
                    f"the index covers {covered} of {size} entries", hint="ask again in a while: it is being made"
                )
            self.step()

    def _remember(self, at: int, made: list[Event]) -> None:
        if made and any(one in made[0].facets for one in _MINT_FACETS):
            self._minted[at] = made[0]
            if len(self._minted) > KNOWN_TOKENS:
                self._minted.popitem(last=False)

    def _mint_at(self, index: int) -> Event | None:
        if index not in self._minted:
            found = self._ledger.entries(index, index + 1)
            made = _events(found[0], index, lambda _: None) if found else []
            self._minted[index] = None
            self._remember(index, made)
        return self._minted.get(index)


def _events(data: bytes, at: int, minted: MintAt) -> list[Event]:
    try:
        return list(events_of(decode_entry(data), minted))
    except StoreCorrupt:
        # Who checks the log names it; here it must not hide what comes after it.
        return [Event(at, 0, 0, -1, frozenset())]


_MINT_FACETS = tuple(f"kind:{kind.value}" for kind in _MINTS)
