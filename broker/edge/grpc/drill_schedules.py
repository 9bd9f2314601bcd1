"""Drill by the schedules, each realm by one broker at a time."""

import asyncio
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from broker.edge.grpc.drilling import Drilling
from broker.edge.grpc.other_brokers import Alone, OtherBrokers
from broker.errors import Failure
from broker.service.policies import Policies
from broker.service.ports import Clock

log = logging.getLogger("broker.drills")

TICK_S = 1.0
READ_EVERY_TICKS = 3
# After a start, brokers do not drill all at once, nor before their verifiers are back.
FIRST_AFTER_S = 15.0
JITTER = 0.1


@dataclass(slots=True)
class _Due:
    """When the next drill of a schedule is due."""

    every_s: int
    at_ns: int


class DrillSchedules:
    """Begins what is due. One event loop owns it."""

    def __init__(
        self,
        drilling: Drilling,
        policies: Policies,
        clock: Clock,
        others: OtherBrokers | None = None,
        *,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._drilling = drilling
        self._book = drilling.book
        self._policies = policies
        self._clock = clock
        self._others = others or Alone()
        self._draw = draw
        self._due: dict[str, _Due] = {}
        # By realm, the newest drill that was looked at.
        self._seen: dict[str, int] = {}

    async def run(self) -> None:
        """Drill by the schedules, for as long as the task lives."""
        is_reminded = False
        while True:
            try:
                is_reminded = is_reminded or await self._remember()
                await self._read()
            except Failure as failure:
                log.debug("cannot read the schedule of drills", extra={"fields": {"reason": failure.reason}})
            for _ in range(READ_EVERY_TICKS):
                await self._begin_due()
                await asyncio.sleep(TICK_S)

    async def _remember(self) -> bool:
        """Raise again the alarms that stood when a broker ended."""
        for realm in self._policies.current().policy.realms:
            await self._last_s(realm)
        return True

    async def _last_s(self, realm: str) -> float | None:
        """Return how long ago the last drill of a realm began, if there was one; take up how it ended."""
        for last in await asyncio.to_thread(self._book.past, realm, 1):
            if self._seen.get(realm) != last.index:
                self._seen[realm] = last.index
                self._drilling.recall(last)
            return (self._clock.now() - last.at) / timedelta(seconds=1)
        return None

    async def _read(self) -> None:
        schedules = dict(await asyncio.to_thread(self._book.schedules))
        for realm in self._due.keys() - schedules.keys():
            del self._due[realm]
        for realm, every_s in schedules.items():
            due = self._due.get(realm)
            if due is None or due.every_s != every_s:
                self._due[realm] = _Due(every_s, await self._first_ns(realm, every_s))

    async def _first_ns(self, realm: str, every_s: int) -> int:
        """Return when the next one is due: an interval after the last one, but not at once after a start."""
        last_s = await self._last_s(realm)
        rest_s = 0.0 if last_s is None else every_s - last_s
        soonest_s = min(every_s, FIRST_AFTER_S) * (1 + self._draw()) / 2
        return self._clock.boottime_ns() + int(min(every_s, max(rest_s, soonest_s)) * 1e9)

    async def _begin_due(self) -> None:
        for realm, due in list(self._due.items()):
            if self._clock.boottime_ns() >= due.at_ns and not self._drilling.is_under_way(realm):
                try:
                    await self._begin(realm, due)
                except Failure as failure:
                    log.debug("cannot tell whether a drill is due", extra={"fields": {"reason": failure.reason}})

    async def _begin(self, realm: str, due: _Due) -> None:
        """Begin a drill unless another broker has just made it, or is about it, or nobody listens."""
        if not await self._drilling.has_verifiers(realm):
            return
        last_s = await self._last_s(realm)
        every_s = due.every_s * (1 + JITTER * (2 * self._draw() - 1))
        # By two clocks; whoever's is astray drills once too often.
        if last_s is not None and abs(last_s) < due.every_s * (1 - 2 * JITTER):
            due.at_ns = self._clock.boottime_ns() + int((every_s - last_s) * 1e9)
        elif all(call.realm != realm for call in await self._others.called()):
            due.at_ns = self._clock.boottime_ns() + int(every_s * 1e9)
            self._drilling.begin(realm)
