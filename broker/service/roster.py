"""Keep the roster of verifiers up to date with who listens to this broker."""

import asyncio
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

from broker.errors import Failure
from broker.service.listening import Listener, Listeners
from broker.service.ports import Clock
from broker.service.proof_ports import Roster, Sighting

log = logging.getLogger("broker.roster")

NS_PER_US = 1_000
Name = tuple[str, str]
"""A verifier and its realm."""


Mark = tuple[bool, int, int, str, str]
"""Whether it is present, its head, when it was heard, version and address: what is noted anew when it changes."""


@dataclass(frozen=True, slots=True)
class Noted:
    """A sighting on its way to the roster, and what it was made of."""

    sighting: Sighting
    mark: Mark

    @property
    def name(self) -> Name:
        """Whose it is."""
        return self.sighting.verifier, self.sighting.realm


class RosterKeeper:
    """Notes who listens to this broker. Listeners belong to the event loop: only `write` may run in a thread.

    What the store did not take is still due, and noted with the next attempt. One who only goes on listening is noted
    again after `refresh`: at once where other brokers ask the roster how far it is.
    """

    def __init__(self, roster: Roster, listeners: Listeners, clock: Clock, *, refresh: timedelta = timedelta()) -> None:
        self._refresh_ns = refresh // timedelta(microseconds=1) * NS_PER_US
        self._roster = roster
        self._listeners = listeners
        self._clock = clock
        # What is on the roster.
        self._marks: dict[Name, Mark] = {}
        self._is_failing = False
        self.turn = asyncio.Lock()
        """Held while notes are on their way, and while one is forgotten: or its leaving would be noted after that."""
        # One reading for good, so that one instant has one name: the roster takes no sighting older than its own.
        self._began_at = clock.now() - _us(clock.boottime_ns())

    @property
    def refresh_s(self) -> float:
        """After how many seconds one who only goes on listening is noted again."""
        return self._refresh_ns / 1e9

    def names(self) -> list[Name]:
        """Return of whom `due` may have something to say."""
        return list(self._listeners.by_name())

    def due(self, names: Collection[Name]) -> Sequence[Noted]:
        """Return which of these changed since they were noted, in their order."""
        return [self._noted(name, mark) for name, mark in self._now(names).items() if self._is_due(name, mark)]

    def write(self, due: Sequence[Noted]) -> bool:
        """Put them on the roster; return whether the store took them. Raises nothing: the feed goes on without."""
        try:
            self._roster.note([one.sighting for one in due])
        except Failure as failure:
            if not self._is_failing:
                self._is_failing = True
                log.warning(
                    "cannot note who listens; tries again",
                    extra={"fields": {"reason": failure.reason, "detail": failure.message}},
                )
            return False
        self._is_failing = False
        return True

    def wrote(self, due: Sequence[Noted]) -> None:
        """Remember what the store took."""
        for one in due:
            self._marks[one.name] = one.mark

    def last_words(self) -> Sequence[Noted]:
        """Return what to note when the broker ends: nobody listens to it any more."""
        return [
            self._noted(name, (False, *mark[1:]))
            for name, mark in self._now().items()
            if mark[0] or self._marks.get(name) != mark
        ]

    def gone(self) -> Sequence[Sighting]:
        """Return who has left, and is not on the roster yet."""
        return [
            self._noted(name, mark).sighting
            for name, mark in self._now().items()
            if not mark[0] and self._marks.get(name) != mark
        ]

    def forget(self, verifier: str, realm: str) -> None:
        """Note nothing any more of one who has left."""
        mark = self._now().get((verifier, realm))
        if mark is not None and not mark[0]:
            self._marks[verifier, realm] = mark

    def _now(self, names: Collection[Name] | None = None) -> Mapping[Name, Mark]:
        by_name = self._listeners.by_name()
        if names is not None:
            return {name: _mark(by_name[name]) for name in names if name in by_name}
        return {name: _mark(streams) for name, streams in by_name.items()}

    def _noted(self, name: Name, mark: Mark) -> Noted:
        is_present, head, heard_ns, version, address = mark
        seen_at = self._began_at + _us(heard_ns)
        return Noted(Sighting(*name, version, address, head, seen_at, is_present), mark)

    def _is_due(self, name: Name, mark: Mark) -> bool:
        before = self._marks.get(name)
        if before is None or (before[0], *before[3:]) != (mark[0], *mark[3:]):
            return True
        # Head, and when it was heard: earlier than before, where the replica that was heard last has left.
        return before != mark and not 0 <= mark[2] - before[2] < self._refresh_ns


def _mark(streams: Sequence[Listener]) -> Mark:
    """Return what is known of one verifier by all its streams; of replicas, the one furthest behind counts."""
    live = streams if len(streams) == 1 else [one for one in streams if one.left_ns is None] or streams[-1:]
    newest = live[-1]
    head = min(one.head for one in live)
    heard_ns = max(one.acknowledged_ns or one.joined_ns for one in live)
    return newest.left_ns is None, head, heard_ns, newest.version, newest.address


def _us(span_ns: int) -> timedelta:
    return timedelta(microseconds=span_ns // NS_PER_US)
