"""The hub of the feed: polls the publisher, and carries each frame to all who listen."""

import asyncio
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from broker.edge.grpc.names import Names
from broker.edge.grpc.questions import Questions
from broker.edge.grpc.subscribing import Subscriber
from broker.errors import Failure
from broker.service.listening import Census, Listener, Listeners
from broker.service.metering import Meter
from broker.service.policies import Policies
from broker.service.ports import Clock
from broker.service.publish import Published, Publisher

log = logging.getLogger("broker.feed")

METER_EVERY_S = 1.0


def _nothing() -> None:
    """Nobody asked to be told."""


def _ignored(listener: Listener, index: int, uses: int) -> None:
    del listener, index, uses


class FeedHub:
    """Polls the publisher, fans frames out, and knows when a revocation is complete. One event loop owns it."""

    def __init__(
        self,
        publisher: Publisher,
        policies: Policies,
        listeners: Listeners,
        clock: Clock,
        meter: Meter,
    ) -> None:
        self.publisher = publisher
        self.listeners = listeners
        self.on_published: Callable[[], None] = _nothing
        """Called in the loop after each publication."""
        self._policies = policies
        self._clock = clock
        self._meter = meter
        # In the order of joining, so that a run of the simulation can be repeated.
        self._subscribers: dict[str, dict[Subscriber, None]] = {}
        self.names = Names()
        self.questions = Questions(self.live)
        self.survey = self.questions.survey
        self.on_cuts: Callable[[Listener, int, int], None] = _ignored
        """Called in the loop with a listener, the index of a revocation, and how many of its uses that cut."""
        self.on_coming_or_going: Callable[[Listener], None] = lambda _: None
        """Called in the loop after a stream began or ended, with whose it is."""
        self._wake = asyncio.Event()
        # The publisher is owned by this one thread.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="feed")
        self._loop = asyncio.get_running_loop()
        self._metered_at = -math.inf

    def wake(self) -> None:
        """Publish now instead of at the next heartbeat. Callable from any thread."""
        try:
            self._loop.call_soon_threadsafe(self._wake.set)
        except RuntimeError:
            log.debug("the loop has ended")

    async def run(self) -> None:
        """Publish for as long as the task lives."""
        while True:
            self._wake.clear()
            try:
                published = await self._loop.run_in_executor(self._thread, self.publisher.poll)
                self._fan_out(published)
                self.on_published()
            except Failure as failure:
                # No frame, so leases run out: the store is the only one who knows what is revoked.
                log.warning("the feed cannot read the store", extra={"fields": {"reason": failure.reason}})
                await asyncio.sleep(0.2)
            # Not wait_for, which in 3.11 swallows a cancellation that comes together with a wake.
            with suppress(TimeoutError):
                async with asyncio.timeout(self._heartbeat_s()):
                    await self._wake.wait()

    async def snapshot(self, realm: str) -> tuple[list[bytes], int]:
        """Return what brings a subscriber to the present, and the head it is then at."""
        messages, head = await self._loop.run_in_executor(self._thread, self.publisher.snapshot, realm)
        return list(messages), head

    def live(self, realm: str | None = None) -> Iterator[Subscriber]:
        """Return the streams that are open now, of one realm or of all."""
        for name, subscribers in tuple(self._subscribers.items()):
            if realm in (None, name):
                yield from tuple(subscribers)

    def subscribe(
        self,
        realm: str,
        listener: Listener,
        speaks: frozenset[str] = frozenset(),
        wake: Callable[[], None] = _nothing,
    ) -> Subscriber:
        """Register a stream; from now on it gets every frame of its realm, and `wake` is called with each."""
        subscriber = Subscriber(realm, listener, speaks, wake=wake)
        self._subscribers.setdefault(realm, {})[subscriber] = None
        return subscriber

    def unsubscribe(self, subscriber: Subscriber) -> None:
        """Forget a stream."""
        self._subscribers.get(subscriber.realm, {}).pop(subscriber, None)

    def _fan_out(self, published: Mapping[str, Published]) -> None:
        realms = self._policies.current().policy.realms
        for realm, message in published.items():
            longest = 0
            lease_ms = realms[realm].lease_ms if realm in realms else 0
            for subscriber in self._subscribers.get(realm, ()):
                subscriber.listener.lease_ms = max(subscriber.listener.lease_ms, lease_ms)
                if not subscriber.offer(message):
                    self._meter.resynchronised(realm)
                longest = max(longest, len(subscriber.queue))
            self._meter.queued(realm, longest)
        now_s = self._clock.boottime_ns() / 1e9
        if now_s - self._metered_at >= METER_EVERY_S:
            self._metered_at = now_s
            self._gauge()

    def _gauge(self) -> None:
        now_ns = self._clock.boottime_ns()
        head = self.publisher.head
        found = self.listeners.census(now_ns)
        for realm in self._policies.current().policy.realms:
            census = found.get(realm, Census())
            for state in ("fresh", "joining", "lapsed"):
                self._meter.verifiers(realm, state, census.states.get(state, 0))
            least = census.least_head
            self._meter.lag(realm, head.size - least if head is not None and least is not None else 0)

    def _heartbeat_s(self) -> float:
        realms = self._policies.current().policy.realms.values()
        return min((realm.heartbeat_ms for realm in realms), default=1000) / 1000
