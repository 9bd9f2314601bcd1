"""FeedService, and the hub that carries each frame to all who listen."""

import asyncio
import logging
import math
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field

import grpc
from grpc.aio import ServicerContext

from broker.domain.policy import Role
from broker.edge.grpc.names import Names, certificate_of
from broker.edge.grpc.questions import MAX_USES, Questions
from broker.edge.grpc.receiving import Receiving, Sending, must_keep_receipts
from broker.errors import Failure, Forbidden, Invalid, SignerUnavailable
from broker.service.calling import Caller
from broker.service.keep_receipts import Source
from broker.service.listening import Listener, Listeners
from broker.service.metering import Meter
from broker.service.policies import Policies
from broker.service.ports import Clock
from broker.service.publish import Published, Publisher
from broker.v1 import feed_pb2

log = logging.getLogger("broker.feed")

# What one slow subscriber can cost; beyond it, the queue is dropped and a snapshot takes its place.
MAX_QUEUED = 64
NONCE_BYTES = 16
# Questions that wait for one subscriber, beyond its frames.
MAX_QUESTIONS = 8
# Of what a verifier says, so much is read.
MAX_CUTS = 1024
MAX_SPOKEN = 16
MAX_TEXT = 64
NS_PER_MS = 1_000_000
METER_EVERY_S = 1.0


def _nothing() -> None:
    """Nobody asked to be told."""


def _ignored(listener: Listener, index: int, uses: int) -> None:
    del listener, index, uses


@dataclass(slots=True, eq=False)
class Subscriber:
    """One stream: what is still to be sent on it."""

    realm: str
    listener: Listener
    speaks: frozenset[str] = frozenset()
    # Frames, and questions in their order among them: a canary is judged by what was known when it was sent.
    queue: deque[Published | bytes] = field(default_factory=deque)
    questions: int = 0
    echoes: deque[feed_pb2.Echo] = field(default_factory=deque)
    # The newest answer about each key of receipts.
    kept: dict[str, bytes] = field(default_factory=dict)
    # The head that the verifier is at when it has read all that was sent; None: it needs a snapshot.
    position: int | None = None
    has_work: asyncio.Event = field(default_factory=asyncio.Event)

    def offer(self, published: Published) -> bool:
        """Queue a frame; return False when the queue was dropped instead."""
        self.has_work.set()
        if len(self.queue) - self.questions >= MAX_QUEUED:
            self.drop_frames()
            self.position = None
            return False
        self.queue.append(published)
        return True

    def ask(self, message: bytes) -> bool:
        """Queue a question behind the frames; return False when too many wait."""
        if self.questions >= MAX_QUESTIONS:
            return False
        self.questions += 1
        self.queue.append(message)
        self.has_work.set()
        return True

    def tell(self, kid: str, message: bytes) -> None:
        """Send the newest answer about a key of receipts, soon."""
        self.kept[kid] = message
        self.has_work.set()

    def drop_frames(self) -> None:
        """Drop the frames that a snapshot will replace. Questions stay."""
        self.queue = deque(message for message in self.queue if isinstance(message, bytes))

    def next_message(self) -> bytes | None:
        """Take the first of the queue; return what to send of it, if anything."""
        queued = self.queue.popleft()
        if isinstance(queued, bytes):
            self.questions -= 1
            return queued
        if self.position is None or queued.previous_head > self.position:
            self.position = None
            return None
        if queued.previous_head < self.position:
            return None
        self.position = queued.head
        return queued.message


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
        self.on_coming_or_going: Callable[[], None] = lambda: None
        """Called in the loop after a stream began or ended."""
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

    def subscribe(self, realm: str, listener: Listener, speaks: frozenset[str] = frozenset()) -> Subscriber:
        """Register a stream; from now on it gets every frame of its realm."""
        subscriber = Subscriber(realm, listener, speaks)
        self._subscribers.setdefault(realm, {})[subscriber] = None
        return subscriber

    def unsubscribe(self, subscriber: Subscriber) -> None:
        """Forget a stream."""
        self._subscribers.get(subscriber.realm, {}).pop(subscriber, None)

    def _fan_out(self, published: Mapping[str, Published]) -> None:
        realms = self._policies.current().policy.realms
        for realm, message in published.items():
            longest = 0
            for subscriber in self._subscribers.get(realm, ()):
                if realm in realms:
                    subscriber.listener.lease_ms = max(subscriber.listener.lease_ms, realms[realm].lease_ms)
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
        for realm in self._policies.current().policy.realms:
            listening = self.listeners.present(now_ns, realm)
            for state in ("fresh", "joining", "lapsed"):
                self._meter.verifiers(realm, state, sum(one.state(now_ns) == state for one in listening))
            behind = [head.size - one.head for one in listening if head is not None and one.left_ns is None]
            self._meter.lag(realm, max(behind, default=0))

    def _heartbeat_s(self) -> float:
        realms = self._policies.current().policy.realms.values()
        return min((realm.heartbeat_ms for realm in realms), default=1000) / 1000


class FeedService:
    """Serves one stream for each verifier. Messages go out as the bytes that were made once for all."""

    def __init__(
        self,
        hub: FeedHub,
        policies: Policies,
        clock: Clock,
        caller: Callable[[ServicerContext], Caller],
        certificate: Callable[[ServicerContext], bytes] = certificate_of,
        receiving: Receiving | None = None,
    ) -> None:
        self._hub = hub
        self._certificate = certificate
        self._policies = policies
        self._clock = clock
        self._caller = caller
        self._receiving = receiving

    def handler(self) -> grpc.GenericRpcHandler:
        """Return the handler to register: like the generated one, but it sends bytes as they are."""
        return grpc.method_handlers_generic_handler(
            "broker.v1.FeedService",
            {"Listen": grpc.stream_stream_rpc_method_handler(self.listen, feed_pb2.ListenRequest.FromString, bytes)},
        )

    async def listen(
        self, requests: AsyncIterator[feed_pb2.ListenRequest], context: ServicerContext
    ) -> AsyncIterator[bytes]:
        """Say hello, then carry frames out and acknowledgements in until either side ends it."""
        caller = self._admitted(context)
        first = await anext(aiter(requests), None)
        if first is None or first.WhichOneof("message") != "hello":
            raise Invalid("message", "is not a hello", hint="begin the stream with one")
        hello = first.hello
        if caller.realm != hello.realm:
            raise Forbidden(
                f"{caller.principal} may not listen in this realm",
                hint="ask for the realm that the policy gives to this verifier",
            )
        realm = self._policies.current().policy.realms.get(hello.realm)
        if realm is None:
            raise Forbidden("the policy has no such realm", hint="ask an admin")
        must_keep_receipts(realm, hello.speaks)
        # Two with one name would answer for each other; so the name is taken before anything is sent.
        self._hub.names.claim(realm.name, caller.principal, self._certificate(context))
        listener = self._hub.listeners.join(
            verifier=caller.principal,
            realm=realm.name,
            version=_plain(hello.version),
            address=context.peer(),
            lease_ms=realm.lease_ms,
            now_ns=self._clock.boottime_ns(),
        )
        subscriber = self._hub.subscribe(realm.name, listener, frozenset(hello.speaks[:MAX_SPOKEN]))
        sending = Sending(Source(caller.principal, realm.name), subscriber)
        reading = asyncio.create_task(self._read(requests, subscriber, sending))
        self._hub.on_coming_or_going()
        try:
            async for message in self._messages(subscriber, reading, context):
                yield message
        finally:
            reading.cancel()
            self._hub.unsubscribe(subscriber)
            self._hub.names.release(realm.name, caller.principal)
            self._hub.listeners.leave(listener, self._clock.boottime_ns())
            self._hub.on_coming_or_going()

    async def _messages(
        self, subscriber: Subscriber, reading: "asyncio.Task[None]", context: ServicerContext
    ) -> AsyncIterator[bytes]:
        version = self._policies.current().version
        while not reading.done():
            if self._policies.current().version != version:
                # The principal is judged as long as the stream lasts, not once.
                version = self._policies.current().version
                if self._admitted(context).realm != subscriber.realm:
                    raise Forbidden("this verifier is no longer of this realm", hint="ask an admin")
                must_keep_receipts(self._policies.current().policy.realms.get(subscriber.realm), subscriber.speaks)
            while subscriber.echoes:
                yield self._answer(subscriber, subscriber.echoes.popleft())
            while subscriber.kept:
                yield subscriber.kept.pop(next(iter(subscriber.kept)))
            if subscriber.position is None:
                subscriber.drop_frames()
                try:
                    messages, subscriber.position = await self._hub.snapshot(subscriber.realm)
                except SignerUnavailable:
                    await asyncio.sleep(0.2)
                    continue
                for message in messages:
                    yield message
                continue
            if subscriber.queue:
                following = subscriber.next_message()
                if following is not None:
                    yield following
                continue
            subscriber.has_work.clear()
            await subscriber.has_work.wait()
        await reading

    async def _read(
        self, requests: AsyncIterator[feed_pb2.ListenRequest], subscriber: Subscriber, sending: Sending
    ) -> None:
        try:
            async for request in requests:
                if request.WhichOneof("message") == "leave":
                    self._hub.listeners.give_up(subscriber.listener, self._clock.boottime_ns())
                    break
                if self._receiving is None or not self._receiving.took(sending, request):
                    self._take(request, subscriber)
        finally:
            subscriber.has_work.set()

    def _take(self, request: feed_pb2.ListenRequest, subscriber: Subscriber) -> None:
        head = self._hub.publisher.head
        match request.WhichOneof("message"):
            case "echo":
                if len(request.echo.nonce) != NONCE_BYTES:
                    raise Invalid("echo.nonce", f"has {len(request.echo.nonce)} bytes", hint="use 16 random ones")
                # One at a time: a newer question replaces one that was not answered yet.
                subscriber.echoes.clear()
                subscriber.echoes.append(request.echo)
                subscriber.has_work.set()
            case "ack":
                if head is not None and request.ack.incarnation == head.incarnation:
                    self._acknowledge(request.ack, subscriber.listener, head.size)
            case "nack":
                subscriber.listener.last_nack = _plain(request.nack.reason)
                log.warning(
                    "a verifier refused a frame",
                    extra={"fields": {"verifier": subscriber.listener.verifier, "reason": _plain(request.nack.reason)}},
                )
                subscriber.position = None
                subscriber.has_work.set()
            case "survey":
                self._hub.questions.answer(subscriber.listener, request.survey)
            case "probe":
                self._hub.questions.reported(subscriber.listener, request.probe)
            case _:
                raise Invalid(
                    "message", "is none of what may follow a hello", hint="send an echo, an ack, a nack or leave"
                )

    def _acknowledge(self, ack: feed_pb2.Ack, listener: Listener, size: int) -> None:
        now_ns = self._clock.boottime_ns()
        listener.uses = min(ack.uses, MAX_USES)
        # What it says can shorten the lease that it may have, never lengthen it.
        fresh_ms = min(ack.fresh_for_ms or listener.lease_ms, listener.lease_ms)
        listener.fresh_until_ns = now_ns + fresh_ms * NS_PER_MS
        # Before the head: a completion that this acknowledgement settles has to count them.
        for cut in ack.cuts[:MAX_CUTS]:
            if cut.uses and cut.index < size:
                self._hub.on_cuts(listener, cut.index, min(cut.uses, MAX_USES))
        # Nobody can have applied what was not published.
        self._hub.listeners.acknowledge(listener, min(ack.head, size), now_ns)

    def _answer(self, subscriber: Subscriber, echo: feed_pb2.Echo) -> bytes:
        return self._hub.publisher.answer_echo(
            subscriber.realm,
            nonce=echo.nonce,
            verifier_clock_ns=echo.verifier_clock_ns,
            verifier=subscriber.listener.verifier,
        )

    def _admitted(self, context: ServicerContext) -> Caller:
        caller = self._caller(context)
        caller.must_be(Role.VERIFIER)
        return caller


def _plain(text: str) -> str:
    """Return what a stranger sent, short and in one line."""
    if not text[:MAX_TEXT].isprintable():
        return ""
    # Cut once more: an escape is longer than what it stands for, and the roster keeps no more than that.
    return text[:MAX_TEXT].encode("ascii", "backslashreplace").decode("ascii")[:MAX_TEXT]
