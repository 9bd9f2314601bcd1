"""What brokers on one store do in each other's drills: who listens to them, calls, and what comes back."""

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Protocol

from broker.service.policies import Policies
from broker.service.ports import Clock
from broker.service.proof_ports import DrillCall, DrillCalls, Roster
from broker.service.verifiers import listens_still

# By two clocks. No drill takes so long, and no canary lives much longer.
OLDEST = timedelta(minutes=2)
OWN = 1_000


class OtherBrokers(Protocol):
    """The other brokers on the same store. Every method but those of `Alone` raises StoreUnavailable."""

    async def listening(self, realm: str) -> frozenset[str]:
        """Return the names of those that listen to any broker, as far as the roster knows."""

    async def call(self, call: DrillCall) -> None:
        """As `DrillCalls.call`."""

    async def called(self) -> Sequence[DrillCall]:
        """As `DrillCalls.called`, those of other brokers alone, and without what one left that died."""

    async def tell(self, canary: str, part: bytes) -> None:
        """As `DrillCalls.tell`, in the name of this broker."""

    async def told(self, canary: str) -> Mapping[str, bytes]:
        """As `DrillCalls.told`."""

    async def end(self, canary: str) -> None:
        """As `DrillCalls.end`."""


class Alone:
    """There are none."""

    async def listening(self, realm: str) -> frozenset[str]:
        """Return nobody."""
        del realm
        return frozenset()

    async def call(self, call: DrillCall) -> None:
        """Call nobody."""

    async def called(self) -> Sequence[DrillCall]:
        """Return that nobody called."""
        return ()

    async def tell(self, canary: str, part: bytes) -> None:
        """Tell nobody."""

    async def told(self, canary: str) -> Mapping[str, bytes]:
        """Return that nobody told anything."""
        del canary
        return {}

    async def end(self, canary: str) -> None:
        """Nothing began."""


class OnOneStore:
    """Some, by way of the store that they share. `name` is that of this process."""

    def __init__(self, calls: DrillCalls, roster: Roster, policies: Policies, clock: Clock, *, name: str) -> None:
        self._calls = calls
        self._roster = roster
        self._policies = policies
        self._clock = clock
        self._name = name
        # Those called from here: there are never many at once.
        self._own: deque[str] = deque(maxlen=OWN)

    async def listening(self, realm: str) -> frozenset[str]:
        """As the protocol says."""
        known = await asyncio.to_thread(self._roster.known, realm)
        policy, now = self._policies.current().policy, self._clock.now()
        return frozenset(one.verifier for one in known if listens_still(one, policy, now))

    async def call(self, call: DrillCall) -> None:
        """As the protocol says."""
        self._own.append(call.canary)
        await asyncio.to_thread(self._calls.call, call)

    async def called(self) -> Sequence[DrillCall]:
        """As the protocol says."""
        calls, now = await asyncio.to_thread(self._calls.called), self._clock.now()
        return [call for call in calls if call.canary not in self._own and abs(now - call.called_at) <= OLDEST]

    async def tell(self, canary: str, part: bytes) -> None:
        """As the protocol says."""
        await asyncio.to_thread(self._calls.tell, canary, self._name, part)

    async def told(self, canary: str) -> Mapping[str, bytes]:
        """As the protocol says."""
        return await asyncio.to_thread(self._calls.told, canary)

    async def end(self, canary: str) -> None:
        """As the protocol says."""
        await asyncio.to_thread(self._calls.end, canary)
