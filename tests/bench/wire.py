"""One verifier's end of the feed on a TLS connection of its own: just enough HTTP/2 and gRPC, without threads.

It exists so that ten thousand verifiers fit beside the broker they load. The broker cannot tell it from gRPC's own
client, except that it asks for no bandwidth probes and opens its windows once for all.
"""

import os
import socket
import ssl
from typing import Any, Protocol

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RESET, SETTINGS, PING, GOAWAY, WINDOW = 0x0, 0x1, 0x3, 0x4, 0x6, 0x7, 0x8
END_STREAM, END_HEADERS, ACK = 0x1, 0x4, 0x1
HEADER_BYTES = 9
PREFIX_BYTES = 5
STREAM = 1
LARGEST_WINDOW = (1 << 31) - 1
FIRST_WINDOW = (1 << 16) - 1
INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE = 0x4, 0x5
LARGEST_FRAME = (1 << 24) - 1
READ_BYTES = 1 << 18


class Ended(Exception):
    """The connection or its stream is over."""


class Heard(Protocol):
    """What is called with each message, in order."""

    def __call__(self, message: bytes) -> None: ...


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Return one HTTP/2 frame (RFC 9113 §4.1)."""
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def opening(authority: str, path: str) -> bytes:
    """Return what a client says first: preface, settings, the largest window, and the headers of one call."""
    settings = b"".join(
        name.to_bytes(2, "big") + value.to_bytes(4, "big")
        for name, value in ((INITIAL_WINDOW_SIZE, LARGEST_WINDOW), (MAX_FRAME_SIZE, LARGEST_FRAME))
    )
    # RFC 7541 §6: indexed where the static table has it, else literal without indexing.
    headers = b"".join(
        (
            b"\x83\x87",
            b"\x04" + _text(path),
            b"\x01" + _text(authority),
            b"\x0f\x10" + _text("application/grpc"),
            b"\x00" + _text("te") + _text("trailers"),
        )
    )
    return b"".join(
        (
            PREFACE,
            frame(SETTINGS, 0, 0, settings),
            frame(WINDOW, 0, 0, (LARGEST_WINDOW - FIRST_WINDOW).to_bytes(4, "big")),
            frame(HEADERS, END_HEADERS, STREAM, headers),
        )
    )


def _text(text: str) -> bytes:
    data = text.encode("ascii")
    assert len(data) < 0x7F
    return bytes((len(data),)) + data


class Wire:
    """One connection. Call `advance` whenever its socket is ready, then wait for what `wants_write` says."""

    __slots__ = (
        "_arrived",
        "_greeting",
        "_heard",
        "_is_shaken",
        "_left",
        "_message",
        "_out",
        "_papers",
        "_socket",
        "wants_write",
    )

    def __init__(self, address: tuple[str, int], papers: ssl.SSLContext, path: str, heard: Heard) -> None:
        plain = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        plain.setblocking(False)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        plain.connect_ex(address)
        self._socket: Any = plain
        # Until there is TLS.
        self._papers: ssl.SSLContext | None = papers
        self._greeting = opening(f"{address[0]}:{address[1]}", path)
        self._heard = heard
        self._is_shaken = False
        # What arrived of an HTTP/2 frame, and of a message.
        self._arrived = b""
        self._message = b""
        self._out = b""
        # What the broker's windows still let us send: of the connection, and of the stream.
        self._left = [FIRST_WINDOW, FIRST_WINDOW]
        self.wants_write = True
        """Whether to wait until the socket can be written, rather than read."""

    def fileno(self) -> int:
        """Return the socket's descriptor."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close without a word, as a process that dies."""
        self._socket.close()

    def advance(self) -> bool:
        """Go on as far as it goes; return whether messages can be sent now. Raises Ended."""
        try:
            if not self._is_shaken:
                self._shake()
            if self._is_shaken:
                self._put(b"")
                self._receive()
        except OSError as broken:
            raise Ended(type(broken).__name__) from broken
        return self._is_shaken

    def send(self, message: bytes) -> None:
        """Send one message; what does not fit goes with the next `advance`. Raises Ended."""
        self._left = [left - PREFIX_BYTES - len(message) for left in self._left]
        if min(self._left) < 0:
            raise Ended("the broker's window is shut")
        try:
            self._put(frame(DATA, 0, STREAM, b"\0" + len(message).to_bytes(4, "big") + message))
        except OSError as broken:
            raise Ended(type(broken).__name__) from broken

    def _shake(self) -> None:
        if self._papers is not None:
            number = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if number:
                raise OSError(number, os.strerror(number))
            host = self._socket.getpeername()[0]
            self._socket = self._papers.wrap_socket(self._socket, server_hostname=host, do_handshake_on_connect=False)
            self._papers = None
        try:
            self._socket.do_handshake()
        except ssl.SSLWantReadError:
            self.wants_write = False
            return
        except ssl.SSLWantWriteError:
            self.wants_write = True
            return
        self._is_shaken = True
        self._out = self._greeting

    def _put(self, data: bytes) -> None:
        out = self._out + data if self._out else data
        while out:
            try:
                out = out[self._socket.send(out) :]
            except ssl.SSLWantWriteError:
                break
        self._out = out
        self.wants_write = bool(out)

    def _receive(self) -> None:
        while True:
            try:
                data = self._socket.recv(READ_BYTES)
            except ssl.SSLWantReadError:
                return
            if not data:
                raise Ended("the broker closed the connection")
            self._read(self._arrived + data if self._arrived else data)
            # A short record is mostly all there is; what is not makes the socket ready again.
            if not self._socket.pending():
                return

    def _read(self, data: bytes) -> None:
        at, end = 0, len(data)
        while end - at >= HEADER_BYTES:
            stop = at + HEADER_BYTES + int.from_bytes(data[at : at + 3], "big")
            if stop > end:
                break
            kind, flags = data[at + 3], data[at + 4]
            payload = data[at + HEADER_BYTES : stop]
            at = stop
            if kind == DATA:
                self._take(payload)
            elif kind == WINDOW:
                self._left[data[stop - 5]] += int.from_bytes(payload, "big")
            elif kind == PING and not flags & ACK:
                self._put(frame(PING, ACK, 0, payload))
            elif kind == SETTINGS and not flags & ACK:
                self._settle(payload)
            elif kind in (GOAWAY, RESET) or (kind == HEADERS and flags & END_STREAM):
                raise Ended(f"the broker ended the stream with frame {kind}")
        self._arrived = data[at:]

    def _settle(self, payload: bytes) -> None:
        for at in range(0, len(payload), 6):
            if int.from_bytes(payload[at : at + 2], "big") == INITIAL_WINDOW_SIZE:
                self._left[STREAM] += int.from_bytes(payload[at + 2 : at + 6], "big") - FIRST_WINDOW
        self._put(frame(SETTINGS, ACK, 0))

    def _take(self, payload: bytes) -> None:
        data = self._message + payload if self._message else payload
        at, end = 0, len(data)
        while end - at >= PREFIX_BYTES:
            stop = at + PREFIX_BYTES + int.from_bytes(data[at + 1 : at + PREFIX_BYTES], "big")
            if stop > end:
                break
            self._heard(data[at + PREFIX_BYTES : stop])
            at = stop
        self._message = data[at:]
