"""Canaries before the verifiers that listen to this broker: shown to their streams, and what they report of them."""

import asyncio
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress

from broker.edge.grpc.hub import FeedHub
from broker.edge.grpc.questions import Report, probe_message
from broker.edge.grpc.subscribing import Subscriber
from broker.service.drill import Showing
from broker.service.ports import Clock
from broker.v1 import feed_pb2

COALESCE_S = 0.02


class Shown:
    """One canary that is before some streams."""

    def __init__(self, hub: FeedHub, streams: Mapping[int, Subscriber], showing: Showing, probe: bytes) -> None:
        self._hub = hub
        self._streams = streams
        self._probe = probe
        self._has_news = asyncio.Event()
        self.showing = showing
        """What they said of it."""

    def ask(self) -> None:
        """Show it to each stream."""
        for stream, one in self._streams.items():
            if not self._hub.questions.probe(one, self._probe):
                self.showing.cannot(stream)

    def ask_again(self) -> None:
        """Show it again to those that refused it: they may have been behind, without the newest key or a lease."""
        for stream in self.showing.ask_again():
            self._hub.questions.probe(self._streams[stream], self._probe)

    async def news(self, timeout_s: float) -> None:
        """Return when something was reported, or after a while."""
        self._has_news.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._has_news.wait()
                # Reports come in a burst, each with its time; a look at all of them after each would hold up the feed.
                await asyncio.sleep(COALESCE_S)
        for stream, one in self._streams.items():
            if one.listener.gave_up_ns is not None:
                self.showing.leave(stream)

    def take(self, report: Report, now_ns: int) -> None:
        """Take what a stream said."""
        self.showing.report(report.stream, report.verifier, report.verdict, is_end=report.is_end, now_ns=now_ns)
        self._has_news.set()


class ShownCanaries:
    """All that are before streams of this broker. One event loop owns it."""

    def __init__(self, hub: FeedHub, clock: Clock) -> None:
        self._hub = hub
        self._clock = clock
        self._shown: dict[str, Shown] = {}
        hub.questions.on_report = self._take

    @contextmanager
    def show(self, realm: str, probe: feed_pb2.Probe, elsewhere: Collection[str] = ()) -> Iterator[Shown]:
        """Have a canary before the streams of a realm that live now; `elsewhere` as in `Showing`. `ask` shows it."""
        streams = {one.listener.stream: one for one in self._hub.live(realm)}
        showing = Showing({stream: one.listener.verifier for stream, one in streams.items()}, elsewhere)
        shown = self._shown[probe.id] = Shown(self._hub, streams, showing, probe_message(probe))
        try:
            yield shown
        finally:
            del self._shown[probe.id]

    def _take(self, report: Report) -> None:
        shown = self._shown.get(report.probe)
        if shown is not None:
            shown.take(report, self._clock.boottime_ns())
