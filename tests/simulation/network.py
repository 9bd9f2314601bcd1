"""The network between verifiers and brokers: gRPC streams over links that delay, cut, hold back and lose."""

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import asynccontextmanager
from random import Random
from typing import Any, Protocol

import grpc
import grpc.aio

from broker.edge.grpc.failures import code_of
from broker.errors import Failure
from tests.simulation.loop import SimLoop
from tests.simulation.nodes import NODE, NS_PER_S, Node

MS = 1_000_000
# What gRPC's keepalive takes to notice that the other side is silent (sdk/feed.py, edge/grpc/server.py).
CLIENT_NOTICES_NS = 8 * NS_PER_S
SERVER_NOTICES_NS = 15 * NS_PER_S
# Messages under way on one stream, before the sender has to wait: HTTP/2's flow control.
WINDOW = 24
UP, DOWN = 0, 1

Listen = Callable[[Any, "Context"], Any]


class Taps(Protocol):
    """Hears what is sent, at the instant at which it is."""

    def sent_up(self, connection: "Connection", request: Any) -> None:
        """A verifier has sent a request."""

    def sent_down(self, connection: "Connection", message: bytes) -> None:
        """A broker has sent a message."""


class Link:
    """The way between one verifier's machine and one broker's, as long as the run."""

    def __init__(self, loop: SimLoop, random: Random, *, base_ns: int, jitter_ns: int) -> None:
        self.loop = loop
        self.random = random
        self.base_ns, self.jitter_ns = base_ns, jitter_ns
        self.lag_ns = [0, 0]
        self.is_cut = [False, False]
        self.connections: list[Connection] = []
        self.taps: Taps | None = None
        self._cuts = 0

    def delay_ns(self, way: int) -> int:
        """Return how long a message takes now."""
        return self.base_ns + int(self.random.random() * self.jitter_ns) + self.lag_ns[way]

    def cut(self, *ways: int) -> None:
        """Let nothing through in these directions. Who waits for an answer notices in the end."""
        for way in ways:
            self.is_cut[way] = True
        self._cuts += 1
        self.suspect()

    def heal(self) -> None:
        """Let everything through again: what was held back is sent anew, in its order."""
        self.is_cut = [False, False]
        self.lag_ns = [0, 0]
        self._cuts += 1
        for connection in self.connections:
            connection.retransmit()

    def suspect(self) -> None:
        """From now on the keepalive of the streams that are there goes unanswered, until the link heals."""
        for connection in self.connections:
            connection.suspect(self._cuts)

    def is_same(self, cuts: int) -> bool:
        """Tell whether it is still cut as it was."""
        return self._cuts == cuts and any(self.is_cut)

    def reset(self) -> None:
        """Break every stream: both sides are told."""
        for connection in tuple(self.connections):
            connection.break_client("the connection was reset")
            connection.break_server()


class _Pipe:
    """One direction of one stream: in order, nothing twice, nothing lost but the end."""

    def __init__(self, link: Link, way: int) -> None:
        self._link, self._way = link, way
        self._last_ns = 0
        self._sent_ns = -1
        self._held: list[Callable[[], None]] = []

    def carry(self, deliver: Callable[[], None]) -> None:
        """Call `deliver` when it has arrived."""
        link = self._link
        if link.is_cut[self._way]:
            self._held.append(deliver)
            return
        # What is sent at once often travels in one packet, and is all there when the first of it is read.
        if self._sent_ns != link.loop.now_ns or link.random.random() < 0.5:
            self._last_ns = max(self._last_ns + 1, link.loop.now_ns + link.delay_ns(self._way))
        self._sent_ns = link.loop.now_ns
        link.loop.schedule(link.loop.world, self._last_ns, deliver)

    def retransmit(self) -> None:
        held, self._held = self._held, []
        for deliver in held:
            self.carry(deliver)


class Host:
    """Where a broker can be reached: the machine stays, its processes come and go."""

    def __init__(self) -> None:
        self.node: Node | None = None
        self.listen: Listen | None = None
        # A machine without power answers nothing; one without a process refuses.
        self.has_power = True


class Context:
    """What a handler sees of its call."""

    def __init__(self, principal: str) -> None:
        self.principal = principal

    def peer(self) -> str:
        return f"ipv4:10.0.0.1:{len(self.principal)}"


class Connection:
    """One stream."""

    def __init__(self, link: Link, client: Node, host: Host, principal: str) -> None:
        self._link, self._client, self._host = link, client, host
        self._principal = principal
        self._pipes = (_Pipe(link, UP), _Pipe(link, DOWN))
        self._inbox: deque[Any] = deque()
        self._reader: asyncio.Future[None] | None = None
        self._client_end: BaseException | object | None = None
        self._requests = _Requests()
        self._server: Node | None = None
        self._handler: asyncio.Task[None] | None = None
        self._room = WINDOW
        self._sender: asyncio.Future[None] | None = None
        self._is_over = False
        link.connections.append(self)
        self._pipes[UP].carry(self._arrive)

    # The verifier's side.

    async def read(self) -> Any:
        """The next message, or EOF. Raises AioRpcError."""
        while not self._inbox:
            if self._client_end is not None:
                if isinstance(self._client_end, BaseException):
                    raise self._client_end
                return self._client_end
            self._reader = self._link.loop.create_future()
            await self._reader
        message = self._inbox.popleft()
        self._link.loop.schedule(self._link.loop.world, self._link.loop.now_ns + MS, self._make_room)
        return message

    async def write(self, request: Any) -> None:
        """Send one. Raises when the stream is over."""
        if self._client_end is not None:
            raise asyncio.InvalidStateError("the stream is over")
        if self._link.taps is not None:
            self._link.taps.sent_up(self, request)
        self._pipes[UP].carry(lambda: self._to_server(self._requests.put, request))

    async def done_writing(self) -> None:
        """No more will come."""
        self._pipes[UP].carry(lambda: self._to_server(self._requests.end))

    def cancel(self) -> None:
        """The client is done with it; the server learns it when the word arrives."""
        if self._client_end is None:
            self._client_end = asyncio.CancelledError()
            self._pipes[UP].carry(self._cancel_handler)
        self._forget_if_over()

    def client_died(self) -> None:
        """The client's kernel says so for its process."""
        self._client_end = asyncio.CancelledError()
        self._pipes[UP].carry(self._cancel_handler)

    def break_client(self, why: str, code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE) -> None:
        """End the client's side with an error."""
        failed = grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details=why)
        self._client.call(self._end_client, failed)

    def break_server(self) -> None:
        """End the server's side, as when the connection is gone."""
        self._cancel_handler()

    def suspect(self, cuts: int) -> None:
        """Break each side when it has waited long enough for an answer, if the link is still as it is."""
        loop = self._link.loop

        def client_notices() -> None:
            if self._link.is_same(cuts):
                self.break_client("keepalive: no answer")

        def server_notices() -> None:
            if self._link.is_same(cuts):
                self.break_server()

        loop.schedule(loop.world, loop.now_ns + CLIENT_NOTICES_NS, client_notices)
        loop.schedule(loop.world, loop.now_ns + SERVER_NOTICES_NS, server_notices)

    def retransmit(self) -> None:
        """The link is whole again."""
        for pipe in self._pipes:
            pipe.retransmit()

    def _end_client(self, how: BaseException | object) -> None:
        if self._client_end is None:
            self._client_end = how
        self._wake_reader()

    def _take(self, message: Any) -> None:
        self._inbox.append(message)
        self._wake_reader()

    def _wake_reader(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    # The broker's side.

    def _arrive(self) -> None:
        host = self._host
        if not host.has_power:
            return
        if host.node is None or host.node.is_dead or host.listen is None:
            self._pipes[DOWN].carry(lambda: self.break_client("connection refused"))
            self._forget()
            return
        self._server = host.node
        listen = host.listen
        host.node.call(lambda: self._begin(listen))

    def _begin(self, listen: Listen) -> None:
        assert self._server is not None
        self._handler = self._server.spawn(self._serve(listen))

    async def _serve(self, listen: Listen) -> None:
        messages = listen(self._requests, Context(self._principal))
        end: Any = EOF
        try:
            async for message in messages:
                while self._room <= 0:
                    self._sender = self._link.loop.create_future()
                    await self._sender
                self._room -= 1
                if self._link.taps is not None and self._server is not None and not self._server.is_dead:
                    self._link.taps.sent_down(self, message)
                self._pipes[DOWN].carry(lambda message=message: self._client.call(self._take, message))
        except Failure as failure:
            end = grpc.aio.AioRpcError(
                code_of(failure), grpc.aio.Metadata(), grpc.aio.Metadata(), details=failure.message
            )
        except Exception as defect:
            self._link.loop.problems.append(f"the broker's stream ended with {defect!r}")
            raise
        finally:
            await messages.aclose()
            self._is_over = True
            self._requests.end()
        self._pipes[DOWN].carry(lambda: self._client.call(self._end_client, end))
        self._forget_if_over()

    def _make_room(self) -> None:
        self._room += 1
        sender = self._sender
        if sender is not None and self._server is not None:
            self._server.call(lambda: sender.done() or sender.set_result(None))

    def _to_server(self, call: Callable[..., None], *arguments: Any) -> None:
        if self._server is not None:
            self._server.call(call, *arguments)

    def _cancel_handler(self) -> None:
        if self._server is not None:
            # Behind what came before it.
            self._server.call(lambda: self._handler is not None and self._handler.cancel())
        self._forget_if_over()

    def server_died(self) -> None:
        """The broker's kernel says so for its process."""
        self._is_over = True
        self._pipes[DOWN].carry(lambda: self.break_client("connection reset by peer"))

    @property
    def host(self) -> Host:
        """Where it leads."""
        return self._host

    @property
    def server(self) -> Node | None:
        """The process that serves it."""
        return self._server

    @property
    def client(self) -> Node:
        """The process that listens."""
        return self._client

    def _forget_if_over(self) -> None:
        if self._is_over and self._client_end is not None:
            self._forget()

    def _forget(self) -> None:
        if self in self._link.connections:
            self._link.connections.remove(self)


EOF: Any = vars(grpc.aio)["EOF"]


class _Requests:
    """What came in, as the handler iterates over it."""

    def __init__(self) -> None:
        self._queue: deque[Any] = deque()
        self._is_ended = False
        self._waiter: asyncio.Future[None] | None = None

    def put(self, request: Any) -> None:
        self._queue.append(request)
        self._wake()

    def end(self) -> None:
        self._is_ended = True
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def __aiter__(self) -> "_Requests":
        return self

    async def __anext__(self) -> Any:
        while not self._queue:
            if self._is_ended:
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        return self._queue.popleft()


class Network:
    """All links and hosts of a run."""

    def __init__(self, loop: SimLoop, random: Random) -> None:
        self._loop, self._random = loop, random
        self.hosts: dict[str, Host] = {}
        self.taps: Taps | None = None
        self.links: dict[tuple[str, str], Link] = {}

    def link(self, verifier: str, endpoint: str) -> Link:
        """Return the way between two places."""
        link = self.links.get((verifier, endpoint))
        if link is None:
            base_ns = self._random.choice((MS // 5, MS, 5 * MS, 40 * MS))
            link = Link(self._loop, self._random, base_ns=base_ns, jitter_ns=self._random.choice((0, MS, 20 * MS)))
            link.taps = self.taps
            self.links[verifier, endpoint] = link
        return link

    def opener(self, verifier: str, principal: str) -> Callable[[str, object], Any]:
        """Return what a verifier opens channels with."""

        @asynccontextmanager
        async def open_channel(endpoint: str, _identity: object) -> Any:
            channel = _Channel(self.link(verifier, endpoint), self.hosts[endpoint], principal)
            try:
                yield channel
            finally:
                channel.close()

        return open_channel

    def process_died(self, node: Node, *, silently: bool) -> None:
        """Tell the other ends, unless the machine died with its process."""
        for link in self.links.values():
            for connection in tuple(link.connections):
                if connection.client is node and not silently:
                    connection.client_died()
                if connection.server is node and not silently:
                    connection.server_died()
                if silently and node in (connection.client, connection.server):
                    self._later_noticed(connection, node)

    def froze(self, node: Node) -> None:
        """Whoever talks to it gets no answer any more, and notices in the end."""
        for link in self.links.values():
            for connection in link.connections:
                if node in (connection.client, connection.server):
                    self._later_noticed(connection, node)

    def _later_noticed(self, connection: Connection, node: Node) -> None:
        def notice() -> None:
            if node.is_frozen or node.is_dead:
                if connection.client is node:
                    connection.break_server()
                else:
                    connection.break_client("keepalive: no answer")

        after_ns = SERVER_NOTICES_NS if connection.client is node else CLIENT_NOTICES_NS
        self._loop.schedule(self._loop.world, self._loop.now_ns + after_ns, notice)


class _Channel:
    def __init__(self, link: Link, host: Host, principal: str) -> None:
        self._link, self._host, self._principal = link, host, principal
        self._connections: list[Connection] = []

    def stream_stream(self, _method: str, _serializer: object, _deserializer: object) -> Callable[[], Connection]:
        def begin() -> Connection:
            connection = Connection(self._link, NODE.get(), self._host, self._principal)
            self._connections.append(connection)
            return connection

        return begin

    def close(self) -> None:
        for connection in self._connections:
            connection.cancel()
