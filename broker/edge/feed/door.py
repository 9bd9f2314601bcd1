"""The feed's own door: one socket and one epoll for all who listen, turn by turn beside everything else of the loop."""

import asyncio
import errno
import logging
import select
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable

from broker.edge.feed.call import Call, Peer
from broker.edge.feed.connection import READABLE, Connection, Gone, Line
from broker.edge.grpc.outermost import Outermost, failure_of
from broker.edge.grpc.session import Desk
from broker.errors import SignerUnavailable

log = logging.getLogger("broker.feed")

# What is done before others of the loop have their turn: some milliseconds.
EVENTS, PUMPED, ACCEPTED = 32, 64, 8
EVENTS_WHILE_PUMPING = 4
# Who has connected and is not accepted yet: about a second's work. More would wait longer than they have patience, and
# each would be work for nothing; those beyond it, the kernel lets knock again.
BACKLOG = 512
# Linux, tcp(7), TCP_INFO: its first byte is the state, and this one says that the peer has closed.
CLOSE_WAIT = 8
# Whoever connects and says nothing, or no more, holds a handle.
SHAKE_S = 20.0
# A verifier speaks every other second, and is asked when it does not.
SILENT_S, UNANSWERED_S = 10.0, 5.0
SWEEP_S = 1.0
NO_SNAPSHOT_S = 0.2
NO_HANDLES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
# Longer than the socket itself keeps quiet after that.
NO_HANDLES_S = 1.0
RECORD_BYTES = 1 << 14


class Door:
    """Serves Listen to whoever has a certificate. One event loop owns it.

    A verifier costs a socket and what its session needs, no task and no thread: that is what this is for.
    """

    def __init__(self, desk: Desk, outermost: Outermost, tls: ssl.SSLContext, bound: socket.socket) -> None:
        self.buffer = memoryview(bytearray(RECORD_BYTES))
        self._desk = desk
        self._outermost = outermost
        self._tls = tls
        self._bound = bound
        self._loop = asyncio.get_running_loop()
        self._epoll = select.epoll()
        self._connections: dict[int, Connection] = {}
        self._wanted: deque[Line] = deque()
        self._is_pumping = False
        # By realm: who waits for the next snapshot, and the task that brings it.
        self._waiting: dict[str, list[Line]] = {}
        self._bringing: dict[str, asyncio.Task[None]] = {}
        self._sweeping: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to accept."""
        self._bound.setblocking(False)
        self._bound.listen(BACKLOG)
        self._epoll.register(self._bound, READABLE)
        self._loop.add_reader(self._epoll.fileno(), self._turn)
        self._sweeping = asyncio.create_task(self._sweep())

    async def stop(self) -> None:
        """Tell all who listen that the broker goes, and close."""
        self._loop.remove_reader(self._epoll.fileno())
        tasks = [*self._bringing.values(), *([self._sweeping] if self._sweeping is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._bound.close()
        for connection in list(self._connections.values()):
            if connection.is_shaken:
                self._guarded(connection, connection.leave)
            self._close(connection)
        self._epoll.close()

    def call(self, peer: Peer, line: Line) -> Call:
        """Return a new call."""
        return Call(self._desk, self._outermost, peer, line)

    def want(self, line: Line) -> None:
        """Pump a call that has something to send, soon."""
        self._wanted.append(line)
        if not self._is_pumping:
            self._is_pumping = True
            self._loop.call_soon(self._pump)

    def want_snapshot(self, line: Line) -> None:
        """Bring a snapshot to the session of a call: one for all who wait for it."""
        assert line.call.session is not None  # noqa: S101 - it said that it needs one
        realm = line.call.session.realm
        self._waiting.setdefault(realm, []).append(line)
        if realm not in self._bringing:
            self._bringing[realm] = self._loop.create_task(self._bring(realm))

    def _turn(self) -> None:
        # What is to be sent goes before what is said: a revocation to ten thousand before their acknowledgements.
        ready = self._epoll.poll(0, EVENTS if not self._is_pumping else EVENTS_WHILE_PUMPING)
        for number, _ in ready:
            if number == self._bound.fileno():
                # When many come at once, whoever is in goes first: those who wait outside cost nothing yet, and all
                # who are in at once would be too late together.
                self._accept(ACCEPTED if len(ready) < EVENTS_WHILE_PUMPING else 1)
            else:
                # One that was closed a moment ago may be in here yet.
                connection = self._connections.get(number)
                if connection is not None:
                    self._guarded(connection, connection.ready)

    def _pump(self) -> None:
        for _ in range(min(PUMPED, len(self._wanted))):
            line = self._wanted.popleft()
            line.is_wanted = False
            connection = line.connection
            if connection.is_open:
                self._guarded(connection, connection.pump, line)
        self._is_pumping = bool(self._wanted)
        if self._is_pumping:
            self._loop.call_soon(self._pump)

    def _accept(self, most: int) -> None:
        for _ in range(most):
            try:
                plain, address = self._bound.accept()
            except BlockingIOError:
                return
            except OSError as failed:
                if failed.errno in NO_HANDLES:
                    # Those who wait are there again in a moment, and handles perhaps, too.
                    log.warning("no handles are left for those who connect to the feed")
                    self._epoll.unregister(self._bound)
                    self._loop.call_later(NO_HANDLES_S, self._accept_again)
                    return
                continue
            self._welcome(plain, address)

    def _accept_again(self) -> None:
        if not self._epoll.closed:
            self._epoll.register(self._bound, READABLE)

    def _welcome(self, plain: socket.socket, address: tuple[str, int]) -> None:
        try:
            if plain.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == CLOSE_WAIT:
                # It gave up waiting: no handshake for nobody.
                plain.close()
                return
            plain.setblocking(False)
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = Connection(
                self, self._tls.wrap_socket(plain, server_side=True, do_handshake_on_connect=False), address
            )
        except OSError:
            plain.close()
            return
        self._epoll.register(connection.number, connection.watched)
        self._connections[connection.number] = connection

    def _guarded(self, connection: Connection, what: Callable[..., None], *args: Line) -> None:
        """Nothing that happens on one connection ends more than that."""
        try:
            what(*args)
        except Gone:
            self._close(connection)
            return
        except Exception:
            log.exception("a defect in the feed's door")
            self._close(connection)
            return
        if connection.watched != connection.interest:
            self._epoll.modify(connection.number, connection.interest)
            connection.watched = connection.interest

    def _close(self, connection: Connection) -> None:
        if connection.is_open:
            del self._connections[connection.number]
            self._epoll.unregister(connection.number)
            connection.close()

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            now_s = time.monotonic()
            for connection in list(self._connections.values()):
                silent_s = now_s - connection.heard_s
                if not connection.is_shaken or not connection.has_calls:
                    if silent_s > SHAKE_S:
                        self._close(connection)
                elif silent_s > SILENT_S + UNANSWERED_S:
                    self._close(connection)
                elif silent_s > SILENT_S and connection.http2.is_answered:
                    self._guarded(connection, connection.ping)

    async def _bring(self, realm: str) -> None:
        try:
            while lines := self._waiting.pop(realm, []):
                await self._bring_to(realm, lines)
        finally:
            del self._bringing[realm]

    async def _bring_to(self, realm: str, lines: list[Line]) -> None:
        messages: list[bytes] = []
        head = 0
        problem: Exception | None = None
        try:
            messages, head = await self._desk.hub.snapshot(realm)
        except SignerUnavailable:
            # Who has gone meanwhile waits no more.
            self._waiting.setdefault(realm, []).extend(line for line in lines if line.call.session is not None)
            await asyncio.sleep(NO_SNAPSHOT_S)
            return
        except Exception as failed:  # noqa: BLE001 - told to those who wait
            problem = failed
        for line in lines:
            line.waits_for_snapshot = False
            if line.call.session is None:
                continue
            if problem is not None:
                line.call.end(failure_of(problem))
            else:
                line.call.session.bring(messages, head)
                line.want()
