"""Note who listens: about once a second, at once when somebody comes or goes, and when the broker ends."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from broker.edge.grpc.hub import FeedHub
from broker.service.roster import RosterKeeper

NOTE_EVERY_S = 1.0
# Many come at once after a start.
COALESCE_S = 0.1
# Looking at all who listen takes at most a tenth of the loop's time.
REST_PER_LOOK = 9


class Noting:
    """Runs a roster keeper. One event loop owns it; the store is asked in a thread of its own."""

    def __init__(self, keeper: RosterKeeper, hub: FeedHub) -> None:
        self._keeper = keeper
        self._loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="roster")
        hub.on_coming_or_going = self._wake.set

    async def run(self) -> None:
        """Note for as long as the task lives."""
        while True:
            self._wake.clear()
            began_s = self._loop.time()
            due = self._keeper.due()
            took_s = self._loop.time() - began_s
            if due:
                is_taken = await self._loop.run_in_executor(self._thread, self._keeper.write, due)
                if is_taken:
                    self._keeper.wrote(due)
            await asyncio.sleep(max(COALESCE_S, took_s * REST_PER_LOOK))
            with suppress(TimeoutError):
                async with asyncio.timeout(NOTE_EVERY_S):
                    await self._wake.wait()

    async def close(self) -> None:
        """Note that nobody listens any more. Call when the streams have ended, before the store is closed."""
        words = self._keeper.last_words()
        if words:
            await self._loop.run_in_executor(self._thread, self._keeper.write, words)
        self._thread.shutdown(wait=False)
