"""Frames as bytes, made and read apart from the broker's own code: also those that no library would send."""

from collections.abc import Iterator, Sequence
from itertools import cycle

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RESET, SETTINGS, PUSH, PING, GOAWAY, WINDOW, CONTINUATION = range(10)
END_STREAM = ACK = 0x1
END_HEADERS, PADDED, WITH_PRIORITY = 0x4, 0x8, 0x20


def raw(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def number(value: int) -> bytes:
    return value.to_bytes(4, "big")


def setting(name: int, value: int) -> bytes:
    return name.to_bytes(2, "big") + number(value)


HELLO = PREFACE + raw(SETTINGS)


def frames(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Return kind, flags, stream and payload of each frame; nothing may be left over."""
    while data:
        end = 9 + int.from_bytes(data[:3], "big")
        assert len(data) >= end, "a frame was cut off"
        yield data[3], data[4], int.from_bytes(data[5:9], "big"), data[9:end]
        data = data[end:]


def cut(data: bytes, sizes: Sequence[int]) -> Iterator[bytes]:
    """Return `data` in pieces of these sizes, over and over."""
    for size in cycle(sizes):
        if not data:
            return
        yield data[:size]
        data = data[size:]


def continued(data: bytes, at: int) -> bytes:
    """Return a client's bytes with each header block spread over HEADERS and CONTINUATION, of `at` bytes each."""
    begins = len(PREFACE) if data.startswith(PREFACE) else 0
    spread = data[:begins]
    for kind, flags, stream, payload in frames(data[begins:]):
        if kind != HEADERS or len(payload) <= at or flags & (PADDED | WITH_PRIORITY):
            spread += raw(kind, flags, stream, payload)
            continue
        pieces = list(cut(payload, [at]))
        spread += raw(HEADERS, flags & ~END_HEADERS, stream, pieces[0])
        for piece in pieces[1:-1]:
            spread += raw(CONTINUATION, 0, stream, piece)
        spread += raw(CONTINUATION, END_HEADERS, stream, pieces[-1])
    return spread


class Heard:
    """Keeps what an Http2 says that it heard."""

    def __init__(self) -> None:
        self.headers: dict[int, list[tuple[bytes, bytes]]] = {}
        self.said: dict[int, bytes] = {}
        self.ended_: list[int] = []
        self.reset_: list[int] = []

    def opened(self, stream: int, headers: Sequence[tuple[bytes, bytes]]) -> None:
        assert stream not in self.headers
        self.headers[stream] = list(headers)
        self.said[stream] = b""

    def data(self, stream: int, data: bytes) -> None:
        assert data
        assert stream not in self.ended_ + self.reset_
        self.said[stream] += data

    def ended(self, stream: int) -> None:
        assert stream not in self.ended_ + self.reset_
        self.ended_.append(stream)

    def reset(self, stream: int) -> None:
        assert stream not in self.reset_
        self.reset_.append(stream)
