"""Tell other brokers which uses were cut at the verifiers of this one, and ask what they were told."""

import asyncio
import logging
from collections import Counter
from datetime import timedelta

from broker.errors import Failure
from broker.service.listening import MAX_EARLY_CUTS, Listener, Listeners
from broker.service.ports import Clock
from broker.service.proof_ports import Cut, Cuts

log = logging.getLogger("broker.completions")

# Many verifiers tell of one revocation at once; and whoever completes it waits for a lease.
COALESCE_S = 0.1
RETRY_S = 0.5
# A completion that others took over comes late, but not so late.
KEEP = timedelta(hours=1)


class CutsTold:
    """Hands on what verifiers tell this broker. One event loop owns it. `name` is that of this process."""

    def __init__(self, cuts: Cuts, listeners: Listeners, clock: Clock, *, name: str) -> None:
        self._cuts = cuts
        self._listeners = listeners
        self._clock = clock
        self._name = name
        # The newest, by the revocation's index, verifier and realm: what is noted is always the whole.
        self._uses: dict[tuple[int, str, str], int] = {}
        self._due: set[tuple[int, str, str]] = set()
        self._wake = asyncio.Event()

    def cut(self, listener: Listener, index: int, uses: int) -> None:
        """As `Listeners.cut`, and tell the others."""
        self._listeners.cut(listener, index, uses)
        key = (index, listener.verifier, listener.realm)
        self._uses[key] = self._uses.pop(key, 0) + uses
        self._due.add(key)
        if len(self._uses) > MAX_EARLY_CUTS:
            oldest = next(iter(self._uses))
            del self._uses[oldest]
            self._due.discard(oldest)
        self._wake.set()

    async def run(self) -> None:
        """Tell for as long as the task lives."""
        while True:
            await self._wake.wait()
            await asyncio.sleep(COALESCE_S)
            self._wake.clear()
            due, self._due = self._due, set()
            told = [Cut(*key, self._uses[key]) for key in due if key in self._uses]
            try:
                await asyncio.to_thread(self._cuts.note, self._name, told, keep_until=self._clock.now() + KEEP)
            except Failure as failure:
                log.debug("cannot tell of uses that were cut", extra={"fields": {"reason": failure.reason}})
                self._due |= due
                self._wake.set()
                await asyncio.sleep(RETRY_S)

    async def elsewhere(self, first: int, last: int) -> Counter[tuple[str, str]]:
        """Return by verifier and realm how many uses other brokers were told of. Raises StoreUnavailable."""
        found: Counter[tuple[str, str]] = Counter()
        for cut in await asyncio.to_thread(self._cuts.elsewhere, self._name, first, last):
            found[cut.verifier, cut.realm] += cut.uses
        return found
