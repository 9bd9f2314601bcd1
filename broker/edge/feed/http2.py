"""The server's side of one HTTP/2 connection (RFC 9113), bytes in and bytes out: what gRPC's streams use of it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Protocol

from hpack import Decoder, HPACKError

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEADER_BYTES = 9
DATA, HEADERS, PRIORITY, RESET, SETTINGS, PUSH, PING, GOAWAY, WINDOW, CONTINUATION = range(10)
END_STREAM, ACK, END_HEADERS, PADDED, WITH_PRIORITY = 0x1, 0x1, 0x4, 0x8, 0x20
ENABLE_PUSH, MAX_STREAMS, WINDOW_SIZE, FRAME_SIZE, HEADER_LIST = 0x2, 0x3, 0x4, 0x5, 0x6
FIRST_WINDOW = (1 << 16) - 1
LARGEST_WINDOW = (1 << 31) - 1
# §4.2: what a frame may hold unless the other side says more; we never say more.
FIRST_FRAME, LARGEST_FRAME = 1 << 14, (1 << 24) - 1

# Streams of one connection: verifiers of one process share it.
STREAMS = 32
MAX_HEADER_BYTES = 16 << 10
# Some ten are defined.
MAX_SETTINGS_BYTES = 6 * 64
# Given back in one piece, so that small messages cost no frame each.
CREDIT_BYTES = 1 << 15
# What is made ready for the socket at once; the rest stays where all streams share it.
READY_BYTES = 1 << 16
# Streams that were opened and reset before they said a word (CVE-2023-44487).
MAX_WASTED = 100


class Code(IntEnum):
    """§7."""

    NO_ERROR = 0x0
    PROTOCOL_ERROR = 0x1
    FLOW_CONTROL_ERROR = 0x3
    STREAM_CLOSED = 0x5
    FRAME_SIZE_ERROR = 0x6
    REFUSED_STREAM = 0x7
    COMPRESSION_ERROR = 0x9
    ENHANCE_YOUR_CALM = 0xB


class Broken(Exception):
    """The peer broke the protocol: the connection is over. What `Http2.taken` returns then tells it why."""

    def __init__(self, code: Code, why: str) -> None:
        super().__init__(why)
        self.code = code


class Heard(Protocol):
    """Is called with what arrives, in its order, while `Http2.receive` runs."""

    def opened(self, stream: int, headers: Sequence[tuple[bytes, bytes]]) -> None:
        """A stream began."""

    def data(self, stream: int, data: bytes) -> None:
        """Bytes of a stream that is open."""

    def ended(self, stream: int) -> None:
        """The peer sends nothing more on a stream."""

    def reset(self, stream: int) -> None:
        """A stream is over."""


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Return one frame (§4.1)."""
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def literal(name: bytes, value: bytes) -> bytes:
    """Return a header that enters no table (RFC 7541 §6.2.2), in plain octets; `name` has less than 127."""
    return b"\x00" + _string(name) + _string(value)


def _string(octets: bytes) -> bytes:
    # RFC 7541 §5.1: an integer with a prefix of seven bits.
    length = len(octets)
    if length < 0x7F:  # noqa: PLR2004 - the prefix, full
        return bytes((length,)) + octets
    rest, spelled = length - 0x7F, bytearray(b"\x7f")
    while rest > 0x7F:  # noqa: PLR2004 - seven bits
        spelled.append(rest & 0x7F | 0x80)
        rest >>= 7
    spelled.append(rest)
    return bytes(spelled) + octets


@dataclass(slots=True)
class _Stream:
    window: int  # what we may send
    used: int = 0  # of what the peer may send, not given back yet
    is_heard: bool = True  # the peer has not ended its side
    has_spoken: bool = False
    rest: list[memoryview] = field(default_factory=list)  # of a message under way


class Http2:
    """One connection. Bytes go in by `receive`; what is to be sent comes out by `taken`.

    Only streams of the peer exist; only whole header blocks, without trailers from the peer. Not safe for threads.
    """

    __slots__ = (
        "_arrived",
        "_decoder",
        "_first_window",
        "_frame_size",
        "_header_block",
        "_heard",
        "_is_greeted",
        "_is_set",
        "_last",
        "_out",
        "_out_bytes",
        "_streams",
        "_used",
        "_wasted",
        "_window",
        "is_answered",
    )

    def __init__(self, heard: Heard) -> None:
        self._heard = heard
        self._decoder = Decoder(MAX_HEADER_BYTES)
        self._streams: dict[int, _Stream] = {}
        self._arrived = b""
        self._is_greeted = self._is_set = False
        # A header block that goes on in CONTINUATION: stream, flags, and what there is of it.
        self._header_block: tuple[int, int, bytes] | None = None
        self._last = 0
        self._window, self._first_window, self._frame_size = FIRST_WINDOW, FIRST_WINDOW, FIRST_FRAME
        self._used = 0
        self._wasted = 0
        self.is_answered = True
        """Whether nothing was asked by `ping` that is not answered yet."""
        self._out: list[bytes] = []
        self._out_bytes = 0
        settings = ((MAX_STREAMS, STREAMS), (HEADER_LIST, MAX_HEADER_BYTES))
        self._put(frame(SETTINGS, 0, 0, b"".join(n.to_bytes(2, "big") + v.to_bytes(4, "big") for n, v in settings)))

    def taken(self) -> bytes:
        """Return what is to be sent now, in its order, and forget it."""
        if not self._out:
            return b""
        out = self._out[0] if len(self._out) == 1 else b"".join(self._out)
        self._out.clear()
        self._out_bytes = 0
        return out

    @property
    def has_more(self) -> bool:
        """Whether `taken` would return something."""
        return bool(self._out)

    @property
    def is_full(self) -> bool:
        """Whether enough is ready to be sent."""
        return self._out_bytes >= READY_BYTES

    def receive(self, data: bytes) -> None:
        """Take what arrived. Raises Broken; nothing may be received after that."""
        try:
            self._receive(self._arrived + data if self._arrived else data)
        except Broken as broken:
            self.go_away(broken.code)
            raise

    def headers(self, stream: int, block: bytes, *, is_last: bool = False) -> None:
        """Send a header block, whole in one frame; the last one ends the stream on our side and closes it."""
        self._put(frame(HEADERS, END_HEADERS | (END_STREAM if is_last else 0), stream, block))
        if is_last:
            closed = self._streams.pop(stream)
            if closed.is_heard:
                # §8.1: that is all; whatever else the peer would send is not read.
                self._put(frame(RESET, 0, stream, Code.NO_ERROR.to_bytes(4, "big")))

    def send(self, stream: int, message: bytes) -> None:
        """Send a gRPC message (prefix and all) once the one before it is under way in full: see `is_ready`."""
        prefix = b"\0" + len(message).to_bytes(4, "big")
        to = self._streams[stream]
        size = len(prefix) + len(message)
        if size <= self._frame_size and size <= to.window and size <= self._window:
            to.window -= size
            self._window -= size
            self._put(size.to_bytes(3, "big") + b"\0\0" + stream.to_bytes(4, "big") + prefix + message)
            return
        # The message itself is shared by all who get it, so it is not copied for a stream that waits.
        to.rest = [memoryview(piece) for piece in (prefix, message) if piece]
        self.go_on(stream)

    def is_ready(self, stream: int) -> bool:
        """Return whether `stream` is open, and the messages given to it are under way in full."""
        known = self._streams.get(stream)
        return known is not None and not known.rest

    def go_on(self, stream: int) -> None:
        """Send more of a message under way, as far as windows and what is ready for the socket allow."""
        to = self._streams.get(stream)
        while to is not None and to.rest and self._out_bytes < READY_BYTES:
            size = min(len(to.rest[0]), self._frame_size, to.window, self._window)
            if size <= 0:
                return
            piece, left = to.rest[0][:size], to.rest[0][size:]
            to.rest[:1] = [left] if left else []
            to.window -= size
            self._window -= size
            self._put(frame(DATA, 0, stream, bytes(piece)))

    def waiting(self) -> list[int]:
        """Return the streams with a message under way."""
        return [number for number, stream in self._streams.items() if stream.rest]

    def ping(self) -> None:
        """Ask whether the peer is there."""
        self.is_answered = False
        self._put(frame(PING, 0, 0, bytes(8)))

    def go_away(self, code: Code) -> None:
        """Say that the connection is over, and why."""
        self._put(frame(GOAWAY, 0, 0, self._last.to_bytes(4, "big") + code.to_bytes(4, "big")))

    def _put(self, data: bytes) -> None:
        self._out.append(data)
        self._out_bytes += len(data)

    def _receive(self, data: bytes) -> None:
        at, end = 0, len(data)
        if not self._is_greeted:
            if data[: len(PREFACE)] != PREFACE[:end]:
                raise Broken(Code.PROTOCOL_ERROR, "no preface")
            if end < len(PREFACE):
                self._arrived = data
                return
            self._is_greeted = True
            at = len(PREFACE)
        while end - at >= HEADER_BYTES:
            length = int.from_bytes(data[at : at + 3], "big")
            if length > FIRST_FRAME:
                raise Broken(Code.FRAME_SIZE_ERROR, f"a frame of {length} bytes")
            stop = at + HEADER_BYTES + length
            if stop > end:
                break
            stream = int.from_bytes(data[at + 5 : at + 9], "big") & LARGEST_WINDOW
            self._take(data[at + 3], data[at + 4], stream, data[at + HEADER_BYTES : stop])
            at = stop
        self._arrived = data[at:]

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if not self._is_set:
            # §3.4: the preface is followed by settings.
            if kind != SETTINGS or flags & ACK:
                raise Broken(Code.PROTOCOL_ERROR, "no settings")
            self._is_set = True
        if self._header_block is not None and kind != CONTINUATION:
            raise Broken(Code.PROTOCOL_ERROR, "a header block was cut off")
        take = _TAKE.get(kind)
        # §4.1: what is not known is ignored.
        if take is not None:
            take(self, flags, stream, payload)

    def _take_data(self, flags: int, number: int, payload: bytes) -> None:
        self._must_be_known(number)
        # All is taken at once, so nobody can send more than is allowed: there is credit for two whole frames at least.
        size = len(payload)
        self._used += size
        if self._used >= CREDIT_BYTES:
            self._put(frame(WINDOW, 0, 0, self._used.to_bytes(4, "big")))
            self._used = 0
        if flags & PADDED:
            payload = _unpadded(payload)
        stream = self._streams.get(number)
        if stream is None:
            # Sent before the peer knew that it is over.
            return
        if not stream.is_heard:
            raise Broken(Code.STREAM_CLOSED, "data after the end")
        stream.used += size
        if stream.used >= CREDIT_BYTES:
            self._put(frame(WINDOW, 0, number, stream.used.to_bytes(4, "big")))
            stream.used = 0
        if payload:
            stream.has_spoken = True
            self._heard.data(number, payload)
        elif not flags & END_STREAM:
            self._waste()
        if flags & END_STREAM:
            self._end(number)

    def _end(self, number: int) -> None:
        # What was just heard may have closed it.
        stream = self._streams.get(number)
        if stream is not None:
            stream.is_heard = False
            self._heard.ended(number)

    def _take_headers(self, flags: int, number: int, payload: bytes) -> None:
        if flags & PADDED:
            payload = _unpadded(payload)
        if flags & WITH_PRIORITY:
            if len(payload) < 5:  # noqa: PLR2004 - §6.2
                raise Broken(Code.FRAME_SIZE_ERROR, "a priority")
            payload = payload[5:]
        self._take_block(flags, number, payload)

    def _take_continuation(self, flags: int, number: int, payload: bytes) -> None:
        if self._header_block is None or self._header_block[0] != number:
            raise Broken(Code.PROTOCOL_ERROR, "a header block goes on that did not begin")
        _, first, so_far = self._header_block
        if not payload and not flags & END_HEADERS:
            # CVE-2024-27316: without end, and without content that would count.
            self._waste()
        self._header_block = None
        self._take_block(first & END_STREAM | flags & END_HEADERS, number, so_far + payload)

    def _take_block(self, flags: int, number: int, block: bytes) -> None:
        if len(block) > MAX_HEADER_BYTES:
            raise Broken(Code.ENHANCE_YOUR_CALM, "too many headers")
        if not flags & END_HEADERS:
            self._header_block = (number, flags, block)
            return
        if not number % 2:
            raise Broken(Code.PROTOCOL_ERROR, "a client's streams are odd")
        try:
            # In any case, for the table that it changes is of the connection.
            headers = self._decoder.decode(block, raw=True)
        except HPACKError as bad:
            raise Broken(Code.COMPRESSION_ERROR, "headers that cannot be read") from bad
        if number <= self._last:
            self._take_trailers(flags, number)
            return
        self._last = number
        if len(self._streams) >= STREAMS:
            self._waste()
            self._put(frame(RESET, 0, number, Code.REFUSED_STREAM.to_bytes(4, "big")))
            return
        self._streams[number] = _Stream(self._first_window)
        self._heard.opened(number, [(bytes(one[0]), bytes(one[1])) for one in headers])
        if flags & END_STREAM:
            self._end(number)

    def _take_trailers(self, flags: int, number: int) -> None:
        stream = self._streams.get(number)
        if stream is None:
            self._waste()
            return
        if not stream.is_heard:
            raise Broken(Code.STREAM_CLOSED, "headers after the end")
        if not flags & END_STREAM:
            raise Broken(Code.PROTOCOL_ERROR, "headers in the middle")
        self._end(number)

    def _take_reset(self, _flags: int, number: int, payload: bytes) -> None:
        if len(payload) != 4:  # noqa: PLR2004 - §6.4
            raise Broken(Code.FRAME_SIZE_ERROR, "a reset")
        self._must_be_known(number)
        stream = self._streams.pop(number, None)
        if stream is None or not stream.has_spoken:
            self._waste()
        if stream is not None:
            self._heard.reset(number)

    def _take_window(self, _flags: int, number: int, payload: bytes) -> None:
        if len(payload) != 4:  # noqa: PLR2004 - §6.9
            raise Broken(Code.FRAME_SIZE_ERROR, "a window")
        more = int.from_bytes(payload, "big") & LARGEST_WINDOW
        if not more:
            raise Broken(Code.PROTOCOL_ERROR, "a window grows by nothing")
        if number:
            self._must_be_known(number)
            stream = self._streams.get(number)
            if stream is not None:
                stream.window = _grown(stream.window, more)
                self.go_on(number)
            return
        self._window = _grown(self._window, more)
        self._go_on_all()

    def _go_on_all(self) -> None:
        for waiting in self.waiting():
            self.go_on(waiting)

    def _take_ping(self, flags: int, number: int, payload: bytes) -> None:
        _must_be_of_connection(number)
        if len(payload) != 8:  # noqa: PLR2004 - §6.7
            raise Broken(Code.FRAME_SIZE_ERROR, "a ping")
        if flags & ACK:
            self.is_answered = True
        else:
            self._put(frame(PING, ACK, 0, payload))

    def _take_settings(self, flags: int, number: int, payload: bytes) -> None:
        _must_be_of_connection(number)
        if len(payload) % 6 or (flags & ACK and payload):
            raise Broken(Code.FRAME_SIZE_ERROR, "settings")
        if len(payload) > MAX_SETTINGS_BYTES:
            # Each can change the windows of all streams.
            raise Broken(Code.ENHANCE_YOUR_CALM, "too many settings")
        if not flags & ACK:
            for at in range(0, len(payload), 6):
                self._set(int.from_bytes(payload[at : at + 2], "big"), int.from_bytes(payload[at + 2 : at + 6], "big"))
            # First, for the peer may count on what it said from there on only.
            self._put(frame(SETTINGS, ACK, 0))
            self._go_on_all()

    def _take_priority(self, _flags: int, number: int, payload: bytes) -> None:
        if not number:
            raise Broken(Code.PROTOCOL_ERROR, "it is of the connection")
        if len(payload) != 5:  # noqa: PLR2004 - §6.3
            raise Broken(Code.FRAME_SIZE_ERROR, "a priority")

    def _take_push(self, _flags: int, _number: int, _payload: bytes) -> None:
        raise Broken(Code.PROTOCOL_ERROR, "a client pushes nothing")

    def _take_goodbye(self, _flags: int, number: int, _payload: bytes) -> None:
        # What runs goes on; that nothing new comes needs no answer.
        _must_be_of_connection(number)

    def _set(self, name: int, value: int) -> None:
        if name == WINDOW_SIZE:
            if value > LARGEST_WINDOW:
                raise Broken(Code.FLOW_CONTROL_ERROR, "a first window")
            # §6.9.2: what streams have left changes with it, also below nothing.
            more, self._first_window = value - self._first_window, value
            for stream in self._streams.values():
                stream.window = _grown(stream.window, more)
        elif name == FRAME_SIZE:
            if not FIRST_FRAME <= value <= LARGEST_FRAME:
                raise Broken(Code.PROTOCOL_ERROR, "a frame size")
            self._frame_size = min(value, READY_BYTES)
        elif name == ENABLE_PUSH and value > 1:
            raise Broken(Code.PROTOCOL_ERROR, "push")

    def _must_be_known(self, number: int) -> None:
        # §5.1: an idle stream has nothing.
        if not number % 2 or number > self._last:
            raise Broken(Code.PROTOCOL_ERROR, "a stream that never began")

    def _waste(self) -> None:
        self._wasted += 1
        if self._wasted > MAX_WASTED:
            raise Broken(Code.ENHANCE_YOUR_CALM, "work for nothing")


def _unpadded(payload: bytes) -> bytes:
    if not payload or payload[0] >= len(payload):
        raise Broken(Code.PROTOCOL_ERROR, "padding")
    return payload[1 : len(payload) - payload[0]]


def _grown(window: int, more: int) -> int:
    if window + more > LARGEST_WINDOW:
        raise Broken(Code.FLOW_CONTROL_ERROR, "a window beyond all bounds")
    return window + more


def _must_be_of_connection(number: int) -> None:
    if number:
        raise Broken(Code.PROTOCOL_ERROR, "it is of a stream")


_TAKE: Mapping[int, Callable[[Http2, int, int, bytes], None]] = {
    DATA: Http2._take_data,  # noqa: SLF001 - its own
    HEADERS: Http2._take_headers,  # noqa: SLF001
    PRIORITY: Http2._take_priority,  # noqa: SLF001
    RESET: Http2._take_reset,  # noqa: SLF001
    SETTINGS: Http2._take_settings,  # noqa: SLF001
    PUSH: Http2._take_push,  # noqa: SLF001
    PING: Http2._take_ping,  # noqa: SLF001
    GOAWAY: Http2._take_goodbye,  # noqa: SLF001
    WINDOW: Http2._take_window,  # noqa: SLF001
    CONTINUATION: Http2._take_continuation,  # noqa: SLF001
}
