"""One TLS connection of the feed's door: a socket, HTTP/2 on it, and the calls on that."""

import select
import ssl
import time
from collections.abc import Sequence
from typing import Protocol

from broker.edge.feed.call import Call, Peer, peer_of
from broker.edge.feed.http2 import Broken, Code, Http2

# One that reads without end gives way to the others after so many times what is made ready at once.
ROUNDS = 8
READABLE, WRITABLE = select.EPOLLIN, select.EPOLLOUT


class Gone(Exception):
    """The connection is over, and can be closed."""


class Keeper(Protocol):
    """The door that a connection came by."""

    buffer: memoryview
    """For what is read, as large as a record of TLS; of nobody between two reads."""

    def call(self, peer: Peer, line: "Line") -> Call:
        """Return a new call."""

    def want(self, line: "Line") -> None:
        """Have `Connection.pump` called soon for a call that has something to send."""

    def want_snapshot(self, line: "Line") -> None:
        """Bring a snapshot to the session of a call."""


class Line:
    """A call on its stream."""

    __slots__ = ("call", "connection", "farewell", "is_stalled", "is_wanted", "number", "waits_for_snapshot")

    def __init__(self, connection: "Connection", number: int) -> None:
        self.connection = connection
        self.number = number
        self.call: Call
        self.is_wanted = self.is_stalled = False
        self.waits_for_snapshot = False
        self.farewell: bytes | None = None

    def say(self, block: bytes, *, is_last: bool = False) -> None:
        """Send a header block; the last one once all messages are under way."""
        if is_last:
            self.farewell = block
            self.want()
        else:
            self.connection.http2.headers(self.number, block)

    def want(self) -> None:
        """There is something to send."""
        if not self.is_wanted:
            self.is_wanted = True
            self.connection.keeper.want(self)


class Connection:
    """From the handshake to the end. One event loop owns it; no method blocks.

    `ready` and `pump` raise Gone when it is over; then `close` it.
    """

    __slots__ = (
        "_address",
        "_lines",
        "_peer",
        "_socket",
        "_stalled",
        "_unsent",
        "heard_s",
        "http2",
        "interest",
        "is_open",
        "is_shaken",
        "keeper",
        "number",
        "watched",
    )

    def __init__(self, keeper: Keeper, socket: ssl.SSLSocket, address: tuple[str, int]) -> None:
        self.keeper = keeper
        self._socket = socket
        self._address = address
        self._peer: Peer
        self.is_open = True
        # One for each stream that HTTP/2 has open.
        self._lines: dict[int, Line] = {}
        self._stalled: list[Line] = []
        self._unsent = b""
        self.http2 = Http2(self)
        self.is_shaken = False
        self.interest = self.watched = READABLE
        """What of the socket to wait for; and what the door waits for."""
        self.number = socket.fileno()
        """The socket's descriptor."""
        self.heard_s = time.monotonic()
        """When something was heard last; before that, when it was accepted."""

    @property
    def has_calls(self) -> bool:
        """Whether a call is under way."""
        return bool(self._lines)

    def ready(self) -> None:
        """The socket is."""
        if not self.is_shaken:
            self._shake()
            return
        if self.interest == WRITABLE:
            # It takes what was held up, so it is there: what it says meanwhile is not read.
            self.heard_s = time.monotonic()
            self._advance()
        if not self._unsent:
            # Whoever does not read is not read: answers would gather.
            self._read()

    def pump(self, line: Line) -> None:
        """Send what a call has to send, as far as it goes."""
        self._fill(line)
        self._advance()

    def _advance(self) -> None:
        """Send as far as windows and the socket let it, and not so long that others wait."""
        for _ in range(ROUNDS):
            self._flush()
            if self._unsent or not self._stalled:
                break
            stalled, self._stalled = self._stalled, []
            for line in stalled:
                line.is_stalled = False
                self.http2.go_on(line.number)
                self._fill(line)
            if not self.http2.has_more:
                break
        self.interest = WRITABLE if self._unsent or self.http2.has_more else READABLE

    def _flush(self) -> None:
        """Write what is ready. Raises Gone."""
        out = self._unsent or self.http2.taken()
        try:
            while out:
                out = out[self._socket.send(out) :]
        except ssl.SSLWantWriteError:
            pass
        except OSError as broken:
            raise Gone from broken
        finally:
            self._unsent = out

    def ping(self) -> None:
        """Ask whether the peer is there. Raises Gone."""
        self.http2.ping()
        self._advance()

    def leave(self) -> None:
        """Say that the broker goes. Raises Gone."""
        self.http2.go_away(Code.NO_ERROR)
        self._advance()

    def close(self) -> None:
        """Close it; what runs on it ends."""
        self.is_open = False
        for line in list(self._lines.values()):
            line.call.lost()
        self._lines.clear()
        self._socket.close()

    def opened(self, stream: int, headers: Sequence[tuple[bytes, bytes]]) -> None:
        """A call began."""
        line = self._lines[stream] = Line(self, stream)
        line.call = self.keeper.call(self._peer, line)
        line.call.begin(headers)

    def data(self, stream: int, data: bytes) -> None:
        """Bytes of a call."""
        self._lines[stream].call.data(data)

    def ended(self, stream: int) -> None:
        """The verifier says nothing more."""
        self._lines[stream].call.half_closed()

    def reset(self, stream: int) -> None:
        """The verifier has gone from a call."""
        self._lines.pop(stream).call.lost()

    def _shake(self) -> None:
        try:
            self._socket.do_handshake()
        except ssl.SSLWantReadError:
            self.interest = READABLE
            return
        except ssl.SSLWantWriteError:
            self.interest = WRITABLE
            return
        except OSError as failed:
            raise Gone from failed
        der = self._socket.getpeercert(binary_form=True)
        if self._socket.selected_alpn_protocol() != "h2" or der is None:
            raise Gone
        self._peer = peer_of(der, self._address)
        self.is_shaken = True
        self.heard_s = time.monotonic()
        self.interest = READABLE
        # Mostly the preface is there; our settings go with the answer to it.
        self._read()

    def _read(self) -> None:
        # A whole record: what else there is makes the socket ready again, once others had their turn.
        buffer = self.keeper.buffer
        try:
            size = self._socket.recv_into(buffer)
        except ssl.SSLWantReadError:
            return
        except OSError as broken:
            raise Gone from broken
        if not size:
            raise Gone
        self.heard_s = time.monotonic()
        try:
            self.http2.receive(bytes(buffer[:size]))
        except Broken as broken:
            self._flush()
            raise Gone from broken
        # If it opened a window, what waits for that goes on already.
        if self.http2.has_more:
            self._advance()

    def _fill(self, line: Line) -> None:
        while self._lines.get(line.number) is line:
            if self._unsent or self.http2.is_full or not self.http2.is_ready(line.number):
                if not line.is_stalled:
                    line.is_stalled = True
                    self._stalled.append(line)
                return
            if line.farewell is not None:
                self.http2.headers(line.number, line.farewell, is_last=True)
                del self._lines[line.number]
                return
            message = line.call.next()
            if message is not None:
                self.http2.send(line.number, message)
            elif line.farewell is None:
                self._want_snapshot(line)
                return

    def _want_snapshot(self, line: Line) -> None:
        session = line.call.session
        if session is not None and not line.waits_for_snapshot and session.needs_snapshot():
            line.waits_for_snapshot = True
            self.keeper.want_snapshot(line)
