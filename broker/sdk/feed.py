"""The background connection: a daemon thread with a loop of its own keeps one follower listening to some broker."""

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc.aio

from broker.errors import Failure, FrameRefused
from broker.sdk.answering import Answers
from broker.sdk.failures import failure_of
from broker.sdk.following import Follower, Step
from broker.sdk.identity import Identity, channel_credentials
from broker.sdk.opening import MAX_MESSAGE_BYTES
from broker.sdk.outside import OUTSIDE, Outside
from broker.sdk.receipting import Receipts
from broker.sdk.remembered import Remembered
from broker.sdk.stream import Keeper, Pace, Stream

log = logging.getLogger("broker.sdk")

CHANNEL_OPTIONS: Sequence[tuple[str, Any]] = (
    # What is too large for us shall reach us, so that it is refused by name; far beyond that, gRPC ends the stream.
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES + (1 << 20)),
    # What is under way of a large snapshot, beside the part that is applied: more would be memory that stays for ever.
    # Without probes for bandwidth, a ping for each burst of frames; 4 MiB are 40 MiB/s at a distance of 100 ms.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 4 << 20),
    # With the defaults a silent partition is not noticed in 92 s; so it takes 8 s.
    ("grpc.keepalive_time_ms", 5_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.keepalive_permit_without_calls", 1),
    # The backoff is ours: a shared subchannel would wait by gRPC's.
    ("grpc.use_local_subchannel_pool", 1),
)
DRAIN_S = 0.05
LEAVE_S = 0.5
# What gRPC says of a call that ended while something was being sent: the status that came is lost.
LOST_BY_GRPC = "Internal error from Core"


OpenChannel = Callable[[str, Identity | None], AbstractAsyncContextManager[grpc.aio.Channel]]
"""Opens a channel to an endpoint, for as long as the context lasts."""


def secure_channel(endpoint: str, identity: Identity | None) -> AbstractAsyncContextManager[grpc.aio.Channel]:
    """Open a channel over TLS. Files are read each time, so that renewed certificates are taken up."""
    return grpc.aio.secure_channel(endpoint, channel_credentials(identity), options=CHANNEL_OPTIONS)


@dataclass(frozen=True, slots=True)
class Connection:
    """How to reach the brokers of a realm."""

    endpoints: tuple[str, ...]
    realm: str
    identity: Identity | None
    pace: Pace
    outside: Outside = OUTSIDE
    open_channel: OpenChannel = secure_channel


class Feed:
    """Feeds one follower, reconnecting for as long as it runs. `start` and `stop` may alternate.

    `on_step` is called in the feed's thread after each message that was taken, before it is acknowledged,
    and after each trouble.
    """

    def __init__(
        self,
        connection: Connection,
        follower: Follower,
        remembered: Remembered | None,
        on_step: Callable[[Step], None],
        answers: Answers | None = None,
        receipts: Receipts | None = None,
    ) -> None:
        self._answers = answers
        self._receipts = receipts
        self._connection = connection
        self._follower = follower
        self._keeper = Keeper(remembered, connection.pace, connection.outside)
        self._on_step = on_step
        self._turn = threading.Lock()
        self._thread: threading.Thread | None = None
        self._last: threading.Thread | None = None
        self._halt: Callable[[Callable[[], object]], object] | None = None
        self._stream: Stream | None = None
        self._main: asyncio.Task[None] | None = None
        self._leaving = threading.Event()
        # Verifiers spread over the brokers.
        self._next = int(connection.outside.fraction() * len(connection.endpoints))
        self.endpoint = ""
        """The broker that it listens to, or tries to."""
        self.problem = "not connected yet"
        """What went wrong last; empty while all is well."""

    @property
    def is_running(self) -> bool:
        """Whether the thread is there."""
        return self._thread is not None

    def start(self) -> None:
        """Start the thread. Does not wait for anything."""
        with self._turn:
            if self._thread is None:
                self._leaving = threading.Event()
                loop = asyncio.new_event_loop()
                main = loop.create_task(self._reconnect())
                self._main = main
                self._halt = loop.call_soon_threadsafe
                self._thread = threading.Thread(
                    target=_run, args=(loop, main, self._last), name="broker-feed", daemon=True
                )
                self._thread.start()

    def stop(self, timeout_s: float = 5.0, *, leave: bool = False) -> None:
        """End the connection and the thread; harmless when there is none.

        Args:
            timeout_s: How long to wait for the thread.
            leave: Tell the broker first that this verifier accepts nothing any more, which must be so.
        """
        with self._turn:
            thread, halt, main = self._thread, self._halt, self._main
            self._thread = self._halt = None
        if halt is None or main is None:
            return
        self._last = thread
        halt(partial(self._leave, main) if leave else main.cancel)
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout_s)

    async def run(self) -> None:
        """Feed in the running loop instead of a thread, until `stop` or a cancellation. Not beside `start`."""
        loop, self._main = asyncio.get_running_loop(), asyncio.current_task()
        self._leaving = threading.Event()
        self._halt = loop.call_soon_threadsafe
        await self._reconnect()

    def _leave(self, main: "asyncio.Task[None]") -> None:
        """In the feed's thread: say so, and cancel when the broker does not take it in time."""
        self._leaving.set()
        if self._stream is None:
            main.cancel()
            return
        self._stream.leave()
        asyncio.get_running_loop().call_later(LEAVE_S, main.cancel)

    async def _reconnect(self) -> None:
        pace, outside = self._connection.pace, self._connection.outside
        failures = 0
        while not self._leaving.is_set():
            self.endpoint = self._connection.endpoints[self._next % len(self._connection.endpoints)]
            stream = Stream(
                self._follower, self._keeper, pace, self._note, self._trouble, outside, self._answers, self._receipts
            )
            self._stream = stream
            await self._listen(stream)
            self._stream = None
            if self._leaving.is_set():
                break
            # A stream that was good for a while begins anew; one that was not makes the next wait longer.
            failures = 0 if stream.was_steady else min(failures + 1, 16)
            self._next += 1
            longest_s = min(pace.backoff_most_s, pace.backoff_first_s * 2**failures)
            await asyncio.sleep(outside.fraction() * longest_s)

    async def _listen(self, stream: Stream) -> None:
        try:
            connection = self._connection
            async with connection.open_channel(self.endpoint, connection.identity) as channel:
                await stream.listen(channel, connection.realm)
        except FrameRefused as refused:
            self._trouble(f"refused a frame, {refused.reason}: {refused}")
        except Failure as failure:
            self._trouble(str(failure))
        except grpc.aio.AioRpcError as failed:
            if failed.details() == LOST_BY_GRPC and self.problem.startswith(f"{self.endpoint}: "):
                log.warning("the feed is interrupted again, and gRPC lost why: %s", self.endpoint)
                self._on_step(Step())
            else:
                self._trouble(str(failure_of(failed)))
        except Exception as defect:
            # Whatever it is, the thread must live: the lease runs out, and it tries again.
            log.exception("a defect in the feed")
            self._trouble(f"a defect in the feed, {type(defect).__name__}")

    def _note(self, step: Step) -> None:
        # A disk that fails stays the problem until it does not, whatever frames arrive meanwhile.
        if step.in_force and not (self._stream is not None and self._stream.is_unkept):
            self.problem = ""
        self._on_step(step)

    def _trouble(self, problem: str) -> None:
        if self._leaving.is_set():
            return
        self.problem = f"{self.endpoint}: {problem}"
        log.warning("the feed is interrupted: %s", self.problem)
        self._on_step(Step())


def _run(loop: asyncio.AbstractEventLoop, main: "asyncio.Task[None]", last: threading.Thread | None) -> None:
    if last is not None:
        # A follower has one feeder.
        last.join()
    asyncio.set_event_loop(loop)
    try:
        loop.run_until_complete(main)
    except asyncio.CancelledError:
        log.debug("the feed was stopped")
    finally:
        # gRPC hands an event to any loop, which hands it on: what is still on its way here must find this loop.
        loop.run_until_complete(asyncio.sleep(DRAIN_S))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
