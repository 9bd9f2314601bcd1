"""One stream of the feed, from hello to its end: frames in, echoes, acknowledgements and refusals out."""

import asyncio
import functools
import logging
import math
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import grpc.aio

from broker.errors import Failure, FrameRefused, Stale
from broker.sdk.answering import Answers, question_of
from broker.sdk.following import Follower, Mark, Step
from broker.sdk.outside import OUTSIDE, Outside
from broker.sdk.receipting import Receipts
from broker.sdk.remembered import Remembered
from broker.v1 import feed_pb2

EOF: Any = vars(grpc.aio)["EOF"]  # the stubs lack it
log = logging.getLogger("broker.sdk")

LISTEN = "/broker.v1.FeedService/Listen"
# What the broker may send besides frames and echoes, and that receipts are kept where they are demanded.
SPEAKS = ("probe", "survey")
SPEAKS_OF_RECEIPTS = "receipts"
NONCE_BYTES = 16
MAX_DETAIL_CHARS = 200
MAX_UNSENT = 256
MAX_PATIENCE_MS = 60_000
MS_PER_S = 1000
NS_PER_MS = 1_000_000


@dataclass(frozen=True, slots=True)
class Pace:
    """How often what is done, in seconds."""

    # Clocks drift apart by so little meanwhile that a lease loses 1 % at most; each answer is signed for one alone.
    echo_every_s: float = 30.0
    # While what is left of the lease is less than half, see `echo_after_s`.
    echo_poor_s: float = 10.0
    # Until the first answer of a broker process: without one there is no lease.
    echo_again_s: float = 1.0
    # When nothing has changed; what changes something is acknowledged at once. At most half a lease, see `ack_after_s`.
    ack_every_s: float = 2.0
    persist_every_s: float = 10.0
    # A new stream may begin with a large snapshot that the broker has yet to make.
    first_frame_s: float = 10.0
    backoff_first_s: float = 0.2
    backoff_most_s: float = 5.0

    def echo_after_s(self, follower: Follower, now_ns: int) -> float:
        """Return how long after the last echo the next is asked for, by what is left of the lease.

        Frames come before half of it has passed, so less means that the best answer was a slow one, and a better one
        gives a longer lease. None left, as behind a large snapshot: nothing is accepted until there is one.
        """
        left_ns = follower.state.accept_until_ns - now_ns
        if follower.needs_echo or left_ns < 0:
            return self.echo_again_s
        is_poor = left_ns * 2 < follower.state.lease_ms * NS_PER_MS
        return min(self.echo_poor_s, self.echo_every_s) if is_poor else self.echo_every_s

    def ack_after_s(self, lease_ms: int) -> float:
        """Return how long after the last acknowledgement the next is due.

        The broker holds who is silent for a lease for lapsed.
        """
        return min(self.ack_every_s, lease_ms / MS_PER_S / 2)


@functools.cache
def sdk_version() -> str:
    """Return the version that the broker is told."""
    try:
        return version("credential-broker")
    except PackageNotFoundError:
        return "unknown"


class Keeper:
    """Puts the mark on disk when it must be: not once for each heartbeat."""

    def __init__(self, remembered: Remembered | None, pace: Pace, outside: Outside = OUTSIDE) -> None:
        self._remembered = remembered
        self._outside = outside
        self._every_s = pace.persist_every_s
        self._kept: Mark | None = None
        self._kept_at_s = 0.0
        self._owes = False

    def owe(self) -> None:
        """Note that what was just applied may not be forgotten once it is acknowledged, on whatever stream."""
        self._owes = True

    async def keep(self, mark: Mark) -> None:
        """Return when `mark` may be acknowledged. Raises Failure as `Remembered.save`."""
        now_s = self._outside.monotonic_s()
        if self._remembered is None or mark == self._kept:
            return
        if self._owes or self._kept is None or now_s - self._kept_at_s >= self._every_s:
            self._owes = False
            try:
                # In a thread, so that a slow disk delays the acknowledgement and not the frames.
                await asyncio.to_thread(self._remembered.save, mark)
            except BaseException:
                self._owes = True
                raise
            self._kept, self._kept_at_s = mark, now_s


class Stream:
    """One stream. `note` is called after each message that was taken, before it is acknowledged."""

    def __init__(
        self,
        follower: Follower,
        keeper: Keeper,
        pace: Pace,
        note: Callable[[Step], None],
        trouble: Callable[[str], None],
        outside: Outside = OUTSIDE,
        answers: Answers | None = None,
        receipts: Receipts | None = None,
    ) -> None:
        self._receipts = receipts
        # Behind all that is urgent; a few, by the window that each key has.
        self._outgoing: deque[feed_pb2.ListenRequest] = deque()
        self._outside = outside
        self._answers = answers
        # A broker that asks and does not read the answers fills no memory.
        self._told: deque[feed_pb2.ListenRequest] = deque(maxlen=MAX_UNSENT)
        self.is_unkept = False
        """Whether what was applied could not be kept, and so is not acknowledged."""
        self._follower = follower
        self._keeper = keeper
        self._pace = pace
        self._note = note
        self._trouble = trouble
        self._wake = asyncio.Event()
        self._nacks: deque[feed_pb2.Nack] = deque()
        self._nacks_sent = asyncio.Event()
        self._is_ack_due = False
        self._is_ack_urgent = False
        self._acked_at_s = 0.0
        self._echoed_at_s = 0.0
        self._good_since_s: float | None = None
        self._is_leaving = False

    @property
    def was_steady(self) -> bool:
        """Whether it extended the lease for a few seconds."""
        return (
            self._good_since_s is not None
            and self._outside.monotonic_s() - self._good_since_s > self._pace.backoff_most_s
        )

    def leave(self) -> None:
        """Tell the broker that the verifier accepts nothing any more; it then ends the stream."""
        self._is_leaving = True
        self._wake.set()

    async def listen(self, channel: grpc.aio.Channel, realm: str) -> None:
        """Listen until something ends it.

        Raises:
            FrameRefused: A message was refused, and the broker told.
            Stale: The broker is silent or ended the stream.
            AioRpcError: gRPC ended it.
        """
        self._follower.begin_stream()
        # The messages stay bytes: the follower judges them before anything parses them.
        method: Any = channel.stream_stream(LISTEN, feed_pb2.ListenRequest.SerializeToString, None)
        call = method()
        writing = asyncio.create_task(self._write(call, realm))
        if self._receipts is not None:
            self._receipts.begin_stream(self._sender())
        try:
            await self._read(call, writing)
        finally:
            if self._receipts is not None:
                self._receipts.end_stream()
            if self._answers is not None:
                self._answers.end_stream()
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)
            call.cancel()

    def _sender(self) -> Callable[[feed_pb2.ListenRequest], None]:
        """Return how the receipts' thread hands over what it sends."""
        loop = asyncio.get_running_loop()

        def hand(request: feed_pb2.ListenRequest) -> None:
            self._outgoing.append(request)
            self._wake.set()

        def send(request: feed_pb2.ListenRequest) -> None:
            with suppress(RuntimeError):  # the loop may be closed already
                loop.call_soon_threadsafe(hand, request)

        return send

    def _tell(self, answer: feed_pb2.ListenRequest) -> None:
        self._told.append(answer)
        self._wake.set()

    async def _read(self, call: Any, writing: "asyncio.Task[None]") -> None:
        deadline_s = self._outside.monotonic_s() + self._pace.first_frame_s
        while True:
            try:
                # Not wait_for: it makes a task for each frame.
                async with asyncio.timeout(deadline_s - self._outside.monotonic_s()):
                    message = await call.read()
            except TimeoutError as silent:
                raise Stale("no frame extended the lease in time", hint="the broker or the network hangs") from silent
            if self._is_leaving:
                if message is EOF:
                    return
                continue
            if message is EOF:
                raise Stale("the broker ended the stream", hint="it is probably restarting")
            if self._answered(message):
                continue
            before_ns = self._follower.state.accept_until_ns
            try:
                step = self._follower.take(message, self._outside.boottime_ns())
            except FrameRefused as refused:
                await self._refuse(refused, writing)
                raise
            if self._is_answer(step):
                continue
            self._note(step)
            # The lease is what counts: a stream that does not extend it is as good as silent.
            if self._follower.state.accept_until_ns > before_ns:
                self._good_since_s = self._good_since_s or self._outside.monotonic_s()
                deadline_s = self._outside.monotonic_s() + self._patience_s()
            elif step.is_part:
                deadline_s = self._outside.monotonic_s() + self._pace.first_frame_s
            self._is_ack_due |= step.in_force
            if step.in_force and step.has_contents:
                self._is_ack_urgent = True
                self._keeper.owe()
            self._wake.set()

    def _is_answer(self, step: Step) -> bool:
        """Hand over the broker's answer to receipts, which is no frame."""
        if step.kept is not None and self._receipts is not None:
            self._receipts.take(step.kept)
        return step.kept is not None

    def _answered(self, message: bytes) -> bool:
        """Answer a message if it is a question."""
        question = question_of(message) if self._answers is not None else None
        if self._answers is None or question is None:
            return False
        self._answers.answer(question, self._tell)
        return True

    def _patience_s(self) -> float:
        state = self._follower.state
        return min(MAX_PATIENCE_MS, max(state.lease_ms, 3 * state.heartbeat_ms)) / MS_PER_S

    async def _refuse(self, refused: FrameRefused, writing: "asyncio.Task[None]") -> None:
        """Report a refusal. A broker that does not take it holds up nothing."""
        self._is_ack_due = False
        self._nacks.append(
            feed_pb2.Nack(
                reason=refused.reason, detail=refused.message[:MAX_DETAIL_CHARS], head=self._follower.state.head
            )
        )
        self._wake.set()
        sent = asyncio.create_task(self._nacks_sent.wait())
        await asyncio.wait({sent, writing}, timeout=1.0, return_when=asyncio.FIRST_COMPLETED)
        sent.cancel()

    async def _write(self, call: Any, realm: str) -> None:
        mark = self._follower.mark
        hello = feed_pb2.Hello(
            realm=realm,
            version=sdk_version(),
            incarnation=mark.incarnation,
            head=mark.head,
            speaks=self._speaks(),
        )
        await call.write(feed_pb2.ListenRequest(hello=hello))
        await self._ask_echo(call)
        while True:
            if not self._wake.is_set():
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._rest_s()):
                        await self._wake.wait()
            self._wake.clear()
            if self._is_leaving:
                await call.write(feed_pb2.ListenRequest(leave=feed_pb2.Leave()))
                await call.done_writing()
                return
            if self._outside.monotonic_s() >= self._echo_at_s():
                await self._ask_echo(call)
            while self._told:
                await call.write(self._told.popleft())
            if self._nacks:
                await call.write(feed_pb2.ListenRequest(nack=self._nacks.popleft()))
                self._nacks_sent.set()
            if self._is_ack_due and self._outside.monotonic_s() >= self._ack_at_s():
                await self._acknowledge(call)
            if self._outgoing:
                # One at a time, so that an acknowledgement never waits behind many.
                await call.write(self._outgoing.popleft())
                if self._outgoing:
                    self._wake.set()

    def _speaks(self) -> list[str]:
        return [
            *(SPEAKS if self._answers is not None else ()),
            *((SPEAKS_OF_RECEIPTS,) if self._receipts is not None else ()),
        ]

    def _rest_s(self) -> float | None:
        until_s = min(self._echo_at_s(), self._ack_at_s()) if self._is_ack_due else self._echo_at_s()
        return None if until_s == math.inf else max(0.0, until_s - self._outside.monotonic_s())

    def _echo_at_s(self) -> float:
        if self._follower.is_echo_under_way:
            # A second question would make a late answer to the first one that nobody asked for.
            return math.inf
        return self._echoed_at_s + self._pace.echo_after_s(self._follower, self._outside.boottime_ns())

    def _ack_at_s(self) -> float:
        return 0.0 if self._is_ack_urgent else self._acked_at_s + self._pace.ack_after_s(self._follower.state.lease_ms)

    async def _ask_echo(self, call: Any) -> None:
        nonce, now_ns = self._outside.random_bytes(NONCE_BYTES), self._outside.boottime_ns()
        self._follower.ask_echo(nonce, now_ns)
        self._echoed_at_s = self._outside.monotonic_s()
        await call.write(feed_pb2.ListenRequest(echo=feed_pb2.Echo(nonce=nonce, verifier_clock_ns=now_ns)))

    async def _acknowledge(self, call: Any) -> None:
        """Say what is applied, once it is kept. What cannot be kept is not acknowledged."""
        is_urgent, mark = self._is_ack_urgent, self._follower.mark
        self._is_ack_due = self._is_ack_urgent = False
        try:
            await self._keeper.keep(mark)
        except Failure as bad:
            # Tried again with the next frame, which does not come at once.
            self._is_ack_urgent = self._is_ack_urgent or is_urgent
            self.is_unkept = True
            self._trouble(f"cannot keep what was applied: {bad}")
            return
        self.is_unkept = False
        self._acked_at_s = self._outside.monotonic_s()
        left_ns = self._follower.state.accept_until_ns - self._outside.boottime_ns()
        ack = feed_pb2.Ack(head=mark.head, incarnation=mark.incarnation, fresh_for_ms=max(0, left_ns // NS_PER_MS))
        if self._answers is None:
            await call.write(feed_pb2.ListenRequest(ack=ack))
            return
        ack = self._answers.acknowledgement(ack)
        try:
            await call.write(feed_pb2.ListenRequest(ack=ack))
        except BaseException:
            # A stream that broke, or is being ended: the next one tells it.
            self._answers.take_back(ack)
            raise
