"""A small broker for tests: FeedService over mutual TLS with real keys, which can misbehave on demand."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

import grpc
import grpc.aio

from broker.v1 import feed_pb2
from tests.authority import Issued
from tests.realm_keys import RealmKeys, entry, indexed

_T = TypeVar("_T")
HEARTBEAT_S = 0.05
DEADLINE_S = 10.0


def boottime_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def eventually(condition: Callable[[], object], what: str, *, within_s: float = DEADLINE_S) -> None:
    """Wait until `condition` holds, or fail."""
    ends_at = time.monotonic() + within_s
    waiting = threading.Event()
    while not condition():
        assert time.monotonic() < ends_at, f"not within {within_s} s: {what}"
        waiting.wait(0.005)


@dataclass(eq=False)
class Listening:
    """One stream, with all that the verifier said on it."""

    hello: feed_pb2.Hello
    queue: "asyncio.Queue[bytes | None]"
    acks: list[feed_pb2.Ack] = field(default_factory=list)
    nacks: list[feed_pb2.Nack] = field(default_factory=list)
    echoes: list[feed_pb2.Echo] = field(default_factory=list)
    peer: str = ""
    said: list[feed_pb2.ListenRequest] = field(default_factory=list)


class FeedServer:
    """Runs in a thread of its own; methods may be called from any thread.

    `heartbeats` False is silence; `answers_echoes` False is a broker that withholds its clock;
    `frame_of` can spoil each frame on its way out.
    """

    def __init__(self, keys: RealmKeys, issued: Issued, *, boot: str = "boot-1", lease_ms: int = 1000) -> None:
        self.keys = keys
        self.boot = boot
        self.incarnation = "ledger-1"
        self.head = 10
        self.lease_ms = lease_ms
        self.heartbeats = True
        self.answers_echoes = True
        self.echo_delay_s = 0.0
        self.sends_snapshot = True
        self.entries: list[feed_pb2.FeedRevocation] = []
        self.streams: list[Listening] = []
        self.token_keys = [keys.token.certificate]
        self.port = 0
        self._open: set[Listening] = set()
        self._issued = issued
        self._loop = asyncio.new_event_loop()
        self._server: grpc.aio.Server | None = None
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True, name="feed-server")
        self._thread.start()
        self._beating: asyncio.Task[None] | None = None
        self.start()

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        """Listen, on the port of last time if there was one."""
        self._run(self._start())

    def stop(self) -> None:
        """As a killed broker: every stream ends."""
        self._run(self._stop())

    def close(self) -> None:
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(DEADLINE_S)
        self._loop.close()

    def __enter__(self) -> "FeedServer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def listening(self) -> int:
        return len(self._open)

    @property
    def acked_head(self) -> int:
        """The largest head that anyone acknowledged."""
        return max((ack.head for stream in list(self.streams) for ack in list(stream.acks)), default=-1)

    def nack_reasons(self) -> list[str]:
        return [nack.reason for stream in list(self.streams) for nack in list(stream.nacks)]

    def revoke(self, keep_s: int = 3600, **conditions: str) -> int:
        """Commit a revocation and push it; return its index."""
        return self._run(self._revoke(keep_s, conditions))

    def advance(self, entries: int) -> None:
        """Let the ledger grow by entries that concern no verifier."""
        self._run(self._advance(entries))

    def send(self, message: bytes) -> None:
        """Send these bytes to all who listen, whatever they are."""
        self._run(self._send(message))

    def body(self, **fields: Any) -> feed_pb2.FrameBody:
        """A frame of now at the present head."""
        return self.keys.body(
            **{
                "incarnation": self.incarnation,
                "boot": self.boot,
                "previous_head": self.head,
                "head": self.head,
                "as_of_ns": boottime_ns(),
                "wall_ms": int(time.time() * 1000),
                "lease_ms": self.lease_ms,
                "heartbeat_ms": int(HEARTBEAT_S * 1000),
                **fields,
            }
        )

    def snapshot(self) -> bytes:
        return self.keys.signed_frame(
            self.body(
                kind=feed_pb2.FRAME_KIND_SNAPSHOT,
                previous_head=0,
                parts=1,
                revocations=indexed(self.entries, 0, self.head),
                keys=self.token_keys,
            )
        )

    def _run(self, work: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(DEADLINE_S)

    async def _start(self) -> None:
        handler = grpc.stream_stream_rpc_method_handler(self._listen, feed_pb2.ListenRequest.FromString, bytes)
        self._server = grpc.aio.server(options=(("grpc.http2.min_recv_ping_interval_without_data_ms", 1000),))
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("broker.v1.FeedService", {"Listen": handler}),)
        )
        credentials = grpc.ssl_server_credentials(
            [(self._issued.key.read_bytes(), self._issued.certificate.read_bytes())],
            root_certificates=self._issued.ca.read_bytes(),
            require_client_auth=True,
        )
        self.port = self._server.add_secure_port(f"127.0.0.1:{self.port}", credentials)
        await self._server.start()
        self._beating = asyncio.create_task(self._beat())

    async def _stop(self) -> None:
        if self._beating is not None:
            self._beating.cancel()
            await asyncio.gather(self._beating, return_exceptions=True)
        if self._server is not None:
            await self._server.stop(None)
        self._server = None

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            if self.heartbeats:
                await self._send(self.keys.signed_frame(self.body()))

    async def _revoke(self, keep_s: int, conditions: dict[str, str]) -> int:
        index = self.head
        self.entries.append(entry(index, keep_s, **conditions))
        self.head += 1
        frame = self.body(previous_head=index, revocations=indexed(self.entries, index, self.head))
        await self._send(self.keys.signed_frame(frame))
        return index

    async def _advance(self, entries: int) -> None:
        before = self.head
        self.head += entries
        await self._send(self.keys.signed_frame(self.body(previous_head=before)))

    async def _send(self, message: bytes) -> None:
        for listening in self._open:
            listening.queue.put_nowait(message)

    async def _listen(
        self, requests: AsyncIterator[feed_pb2.ListenRequest], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[bytes]:
        first = await anext(aiter(requests))
        listening = Listening(first.hello, asyncio.Queue())
        listening.peer = next(iter(context.auth_context().get("peer_spiffe_id", ())), b"").decode()
        self.streams.append(listening)
        if self.sends_snapshot:
            listening.queue.put_nowait(self.snapshot())
        self._open.add(listening)
        reading = asyncio.create_task(self._read(requests, listening))
        try:
            while (message := await listening.queue.get()) is not None:
                yield message
        finally:
            self._open.discard(listening)
            reading.cancel()

    async def _read(self, requests: AsyncIterator[feed_pb2.ListenRequest], listening: Listening) -> None:
        try:
            async for request in requests:
                listening.said.append(request)
                match request.WhichOneof("message"):
                    case "ack":
                        listening.acks.append(request.ack)
                    case "nack":
                        listening.nacks.append(request.nack)
                    case "echo":
                        listening.echoes.append(request.echo)
                        if self.answers_echoes:
                            await asyncio.sleep(self.echo_delay_s)
                            listening.queue.put_nowait(self._answer(request.echo))
        finally:
            listening.queue.put_nowait(None)

    def _answer(self, echo: feed_pb2.Echo) -> bytes:
        return self.keys.echo(
            boot=self.boot,
            nonce=echo.nonce,
            verifier_clock_ns=echo.verifier_clock_ns,
            broker_clock_ns=boottime_ns(),
        )
