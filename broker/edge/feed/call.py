"""One call of Listen: messages of gRPC on a stream of HTTP/2, and the session that they belong to."""

import hashlib
import time
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import quote

from google.protobuf.message import DecodeError

from broker.domain.policy import Role
from broker.edge.feed.http2 import literal
from broker.edge.grpc.callers import PeerCertificate, read_certificate
from broker.edge.grpc.failures import code_of, details_of
from broker.edge.grpc.login import must_not_authorize
from broker.edge.grpc.outermost import Outermost, failure_of, status_message_of, unreadable
from broker.edge.grpc.session import Desk, Session
from broker.errors import Failure, Invalid, Unauthenticated
from broker.service.calling import Caller
from broker.v1 import feed_pb2

LISTEN = b"/broker.v1.FeedService/Listen"
METHOD = "FeedService/Listen"
# The largest that a verifier says is a batch of receipts, 48 KiB.
MAX_MESSAGE_BYTES = 256 << 10
PREFIX_BYTES = 5
DETAILS = b"grpc-status-details-bin"
# Clients refuse more metadata than some 8 KiB, and with it the status.
MAX_DETAILS_BYTES = 6 << 10
# `:status: 200` of the static table (RFC 7541, appendix A).
OK = b"\x88"
CONTENT_TYPE = literal(b"content-type", b"application/grpc")
BEGINNING = OK + CONTENT_TYPE
EXHAUSTED, UNIMPLEMENTED = 8, 12
# What gRPC lets through as it is: all that is printable but `%`.
_PLAIN = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end of a connection, or why it is nobody; and from where, as gRPC spells it."""

    certificate: PeerCertificate | Unauthenticated
    digest: bytes
    address: str
    ip: str


class Line(Protocol):
    """The stream that a call is on."""

    def say(self, block: bytes, *, is_last: bool = False) -> None:
        """Send a header block; the last one once all messages are under way."""

    def want(self) -> None:
        """There is something to send."""


class Refusal(Exception):
    """The call cannot be one of ours: a status of gRPC without a failure of the broker's."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


class Call:
    """From the headers to the trailers. One event loop owns it."""

    __slots__ = ("_arrived", "_desk", "_line", "_outermost", "_peer", "_principal", "_started", "session")

    def __init__(self, desk: Desk, outermost: Outermost, peer: Peer, line: Line) -> None:
        self._desk = desk
        self._outermost = outermost
        self._peer = peer
        self._line = line
        self._arrived = b""
        self._principal = ""
        self._started = time.monotonic()
        self.session: Session | None = None
        """From the hello on."""

    def begin(self, headers: Sequence[tuple[bytes, bytes]]) -> None:
        """Take the headers, and say whether it may go on."""
        try:
            self._begin(headers)
        except Exception as problem:  # noqa: BLE001 - the outermost place
            self._failed(problem)

    def data(self, data: bytes) -> bool:
        """Take bytes of messages; return whether the call goes on."""
        try:
            if self._started >= 0:
                self._read(data)
        except Exception as problem:  # noqa: BLE001 - the outermost place
            self._failed(problem)
        return self._started >= 0

    def half_closed(self) -> None:
        """The verifier says nothing more: so ends the call."""
        if self._started < 0:
            return
        if self.session is None:
            self.end(Invalid("message", "is not a hello", hint="begin the stream with one"))
        else:
            self.end(None)

    def next(self) -> bytes | None:
        """Take what is to be sent next; None: nothing, or the call has just ended."""
        try:
            return self.session.next() if self.session is not None else None
        except Exception as problem:  # noqa: BLE001 - the outermost place
            self.end(failure_of(problem))
            return None

    def end(self, failure: Failure | None) -> None:
        """Say how it ended, once all that was sent before is under way."""
        if self._forget(failure):
            self._line.say(_trailers(failure), is_last=True)

    def lost(self) -> None:
        """The stream is gone: there is nobody to tell."""
        self._forget(None)

    def _forget(self, failure: Failure | None) -> bool:
        if self._started < 0:
            return False
        if self.session is not None:
            self.session.close()
        self._outermost.note(METHOD, None, self._principal, failure, self._started)
        self.session, self._arrived, self._started = None, b"", -1.0
        return True

    def _failed(self, problem: Exception) -> None:
        """Nothing of what a stranger sends gets out of here but as the end of their call."""
        if not isinstance(problem, Refusal):
            self.end(failure_of(problem))
        else:
            self._forget(None)
            status = literal(b"grpc-status", b"%d" % problem.status)
            self._line.say(status + literal(b"grpc-message", str(problem).encode()), is_last=True)

    def _begin(self, headers: Sequence[tuple[bytes, bytes]]) -> None:
        named = dict(headers)
        self._line.say(BEGINNING)
        if named.get(b":method") != b"POST" or not named.get(b"content-type", b"").startswith(b"application/grpc"):
            raise Refusal(UNIMPLEMENTED, "this is gRPC")
        if named.get(b":path") != LISTEN:
            raise Refusal(UNIMPLEMENTED, "this door has the feed alone, FeedService/Listen; see server.listen")
        must_not_authorize([(name.decode("latin-1"), "") for name, _ in headers if not name.startswith(b":")])
        caller = self._caller()
        self._principal = caller.principal
        caller.must_be(Role.VERIFIER)

    def _caller(self) -> Caller:
        if isinstance(self._peer.certificate, Unauthenticated):
            raise self._peer.certificate
        return self._outermost.caller_by(self._peer.certificate, self._peer.ip)

    def _read(self, data: bytes) -> None:
        data = self._arrived + data if self._arrived else data
        at, end = 0, len(data)
        while end - at >= PREFIX_BYTES:
            size = int.from_bytes(data[at + 1 : at + PREFIX_BYTES], "big")
            if data[at]:
                raise Refusal(UNIMPLEMENTED, "messages are not compressed here")
            if size > MAX_MESSAGE_BYTES:
                raise Refusal(EXHAUSTED, f"a message of {size} bytes; at most {MAX_MESSAGE_BYTES}")
            stop = at + PREFIX_BYTES + size
            if stop > end:
                break
            if not self._take(data[at + PREFIX_BYTES : stop]):
                return
            at = stop
        self._arrived = data[at:]

    def _take(self, message: bytes) -> bool:
        try:
            request = feed_pb2.ListenRequest.FromString(message)
        except DecodeError:
            raise unreadable() from None
        if self.session is None:
            self.session = Session(
                self._desk, request, self._caller, self._peer.digest, self._peer.address, self._line.want
            )
            self._line.want()
        elif not self.session.take(request):
            self.end(None)
        return self._started >= 0


def peer_of(der: bytes, address: tuple[str, int]) -> Peer:
    """Return who presented a certificate."""
    host, port = address[0], address[1]
    spelled = f"ipv6:{quote(f'[{host}]', safe=':')}:{port}" if ":" in host else f"ipv4:{host}:{port}"
    certificate: PeerCertificate | Unauthenticated
    try:
        certificate = read_certificate(der)
    except Unauthenticated as nobody:
        # On the connection, so that each of its calls is told.
        certificate = nobody
    return Peer(certificate, hashlib.sha256(der).digest(), spelled, host)


def _trailers(failure: Failure | None) -> bytes:
    if failure is None:
        return literal(b"grpc-status", b"0")
    status = literal(b"grpc-status", b"%d" % code_of(failure).value[0])
    message = literal(b"grpc-message", quote(status_message_of(failure), safe=_PLAIN).encode("ascii"))
    # Without padding, as gRPC sends it.
    details = literal(DETAILS, b64encode(details_of(failure)).rstrip(b"="))
    return status + message + (details if len(details) <= MAX_DETAILS_BYTES else b"")
