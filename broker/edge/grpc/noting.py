"""Note who listens: about once a second, at once when somebody comes or goes, and when the broker ends."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from broker.edge.grpc.hub import FeedHub
from broker.service.listening import Listener
from broker.service.roster import Name, RosterKeeper

NOTE_EVERY_S = 1.0
# Many come at once after a start.
COALESCE_S = 0.1
# Written in one turn, and in a round over all who listen: the store has other things to do.
MAX_SIGHTINGS = 4_000
# Looked at in one turn of the loop: a millisecond or two, while a revocation may be on its way to all of them.
AT_ONCE = 250


class Noting:
    """Runs a roster keeper. One event loop owns it; the store is asked in a thread of its own."""

    def __init__(self, keeper: RosterKeeper, hub: FeedHub) -> None:
        self._keeper = keeper
        self._loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        # In their order, so that a run of the simulation can be repeated.
        self._news: dict[Name, None] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="roster")
        hub.on_coming_or_going = self._came_or_went

    async def run(self) -> None:
        """Note for as long as the task lives."""
        every_s = max(NOTE_EVERY_S, self._keeper.refresh_s / 2)
        # Of a round over all who listen: who is left, when the next of them are looked at, and the next round.
        left: list[Name] = []
        next_at_s = round_at_s = 0.0
        while True:
            self._wake.clear()
            now_s = self._loop.time()
            if not left and now_s >= round_at_s:
                left, round_at_s = self._keeper.names(), now_s + every_s
            names = news = self._some_news()
            if now_s >= next_at_s:
                some = min(AT_ONCE, MAX_SIGHTINGS - len(news))
                names = news | dict.fromkeys(left[:some])
                del left[:some]
            async with self._keeper.turn:
                due = self._keeper.due(list(names))
                if due:
                    if await self._loop.run_in_executor(self._thread, self._keeper.write, due):
                        self._keeper.wrote(due)
                    else:
                        self._news |= news
            next_at_s = max(next_at_s, now_s + len(due) * every_s / MAX_SIGHTINGS)
            await asyncio.sleep(COALESCE_S)
            look_at_s = next_at_s if left else max(next_at_s, round_at_s)
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, look_at_s - self._loop.time())):
                    await self._wake.wait()

    def _some_news(self) -> dict[Name, None]:
        """Take those who came or went, as many as are written at once."""
        news, self._news = self._news, {}
        if len(news) > MAX_SIGHTINGS:
            self._news = dict.fromkeys(list(news)[MAX_SIGHTINGS:])
            self._wake.set()
        return dict.fromkeys(list(news)[:MAX_SIGHTINGS])

    async def close(self) -> None:
        """Note that nobody listens any more. Call when the streams have ended, before the store is closed."""
        words = self._keeper.last_words()
        if words:
            await self._loop.run_in_executor(self._thread, self._keeper.write, words)
        self._thread.shutdown(wait=False)

    def _came_or_went(self, listener: Listener) -> None:
        self._news[listener.verifier, listener.realm] = None
        self._wake.set()
