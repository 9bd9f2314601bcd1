"""Keep the roster of verifiers up to date with who listens to this broker."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from broker.errors import Failure
from broker.service.listening import Listener, Listeners
from broker.service.ports import Clock
from broker.service.proof_ports import Roster, Sighting

log = logging.getLogger("broker.roster")

NS_PER_US = 1_000
# Ten thousand verifiers acknowledge each second; the store is written for those not noted the longest.
MAX_SIGHTINGS = 2_000

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

    What the store did not take is still due, and noted with the next attempt.
    """

    def __init__(self, roster: Roster, listeners: Listeners, clock: Clock) -> None:
        self._roster = roster
        self._listeners = listeners
        self._clock = clock
        # What is on the roster, the longest ago noted first.
        self._marks: dict[Name, Mark] = {}
        self._is_failing = False
        # One reading for good, so that one instant has one name: the roster takes no sighting older than its own.
        self._began_at = clock.now() - _us(clock.boottime_ns())

    def due(self) -> Sequence[Noted]:
        """Return what changed since it was noted: those who came or went first, then those not noted the longest."""
        changed = [one for one in self._sightings() if self._marks.get(one.name) != one.mark]
        if len(changed) <= MAX_SIGHTINGS:
            return changed
        order = {name: place for place, name in enumerate(self._marks)}
        return sorted(changed, key=lambda one: (not self._is_news(one), order.get(one.name, -1)))[:MAX_SIGHTINGS]

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
            self._marks.pop(one.name, None)
            self._marks[one.name] = one.mark

    def last_words(self) -> Sequence[Noted]:
        """Return what to note when the broker ends: nobody listens to it any more."""
        return [
            replace(one, sighting=replace(one.sighting, is_present=False))
            for one in self._sightings()
            if one.sighting.is_present or self._marks.get(one.name) != one.mark
        ]

    def gone(self) -> Sequence[Sighting]:
        """Return who has left, and is not on the roster yet."""
        return [
            one.sighting
            for one in self._sightings()
            if not one.sighting.is_present and self._marks.get(one.name) != one.mark
        ]

    def forget(self, verifier: str, realm: str) -> None:
        """Note nothing any more of one who has left."""
        self.wrote([one for one in self._sightings() if one.name == (verifier, realm) and not one.sighting.is_present])

    def _sightings(self) -> Sequence[Noted]:
        by_name: dict[Name, list[Listener]] = {}
        for listener in self._listeners.present(self._clock.boottime_ns()):
            by_name.setdefault((listener.verifier, listener.realm), []).append(listener)
        return [_noted(streams, self._began_at) for streams in by_name.values()]

    def _is_news(self, one: Noted) -> bool:
        mark = self._marks.get(one.name)
        return mark is None or mark[0] != one.sighting.is_present


def _noted(streams: Sequence[Listener], began_at: datetime) -> Noted:
    """Return what is known of one verifier by all its streams; of replicas, the one furthest behind counts."""
    live = [one for one in streams if one.left_ns is None]
    newest = max(live or streams, key=lambda one: one.joined_ns)
    head = min(one.head for one in live) if live else newest.head
    heard_ns = max(one.acknowledged_ns or one.joined_ns for one in live or streams)
    sighting = Sighting(
        newest.verifier, newest.realm, newest.version, newest.address, head, began_at + _us(heard_ns), bool(live)
    )
    return Noted(sighting, (bool(live), head, heard_ns, newest.version, newest.address))


def _us(span_ns: int) -> timedelta:
    return timedelta(microseconds=span_ns // NS_PER_US)
