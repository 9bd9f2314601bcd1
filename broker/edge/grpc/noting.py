"""Note who listens: about once a second, at once when somebody comes or goes, and when the broker ends."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from broker.edge.grpc.hub import FeedHub
from broker.service.listening import Listener
from broker.service.roster import MAX_SIGHTINGS, Name, RosterKeeper

NOTE_EVERY_S = 1.0
# Many come at once after a start.
COALESCE_S = 0.1
# Looking at all who listen takes at most a twentieth of the loop's time.
REST_PER_LOOK = 19


class Noting:
    """Runs a roster keeper. One event loop owns it; the store is asked in a thread of its own."""

    def __init__(self, keeper: RosterKeeper, hub: FeedHub) -> None:
        self._keeper = keeper
        self._loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        self._news: set[Name] = set()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="roster")
        hub.on_coming_or_going = self._came_or_went

    async def run(self) -> None:
        """Note for as long as the task lives."""
        look_at_s = 0.0
        while True:
            self._wake.clear()
            news, self._news = self._news, set()
            began_s = self._loop.time()
            is_whole = began_s >= look_at_s or len(news) > MAX_SIGHTINGS
            due = self._keeper.due(None if is_whole else news)
            if is_whole:
                took_s = self._loop.time() - began_s
                look_at_s = began_s + max(NOTE_EVERY_S, self._keeper.refresh_s / 2, took_s * REST_PER_LOOK)
            if due:
                is_taken = await self._loop.run_in_executor(self._thread, self._keeper.write, due)
                if is_taken:
                    self._keeper.wrote(due)
                else:
                    self._news |= news
            await asyncio.sleep(COALESCE_S)
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, look_at_s - self._loop.time())):
                    await self._wake.wait()

    async def close(self) -> None:
        """Note that nobody listens any more. Call when the streams have ended, before the store is closed."""
        words = self._keeper.last_words()
        if words:
            await self._loop.run_in_executor(self._thread, self._keeper.write, words)
        self._thread.shutdown(wait=False)

    def _came_or_went(self, listener: Listener) -> None:
        self._news.add((listener.verifier, listener.realm))
        self._wake.set()
