"""One connection of the feed's door, over real TLS and without a loop: who is slow, who leaves, what waits for what."""

import asyncio
import os
import socket
import ssl
from base64 import b64decode
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import h2.config
import h2.connection
import h2.events
import h2.settings
import pytest

from broker.doors import Doors, feed_door_of
from broker.edge.feed.call import Call, Peer, peer_of
from broker.edge.feed.connection import READABLE, WRITABLE, Connection, Gone, Line
from broker.edge.feed.http2 import Code
from broker.edge.grpc.failures import details_of
from broker.edge.grpc.login import LoginDoor
from broker.edge.grpc.outermost import Outermost
from broker.edge.grpc.session import Desk
from broker.errors import Forbidden, NotFound, Unauthenticated
from broker.service.metering import Unmetered
from broker.v1 import feed_pb2
from tests.authority import Authority
from tests.edge.feed.test_http2 import prefixed, taken_by
from tests.edge.feed.wires import DATA, GOAWAY, HEADERS, HELLO, RESET, SETTINGS, frames, number, raw, setting
from tests.edge.test_one_frame_for_all import Room
from tests.served import POLICY, PRINCIPALS

GATEWAY = PRINCIPALS["gateway"]
LISTEN = [
    (b":method", b"POST"),
    (b":scheme", b"https"),
    (b":authority", b"broker"),
    (b":path", b"/broker.v1.FeedService/Listen"),
    (b"te", b"trailers"),
    (b"content-type", b"application/grpc"),
]
HELLO_MESSAGE = feed_pb2.ListenRequest(hello=feed_pb2.Hello(realm="evaluation", version="1")).SerializeToString()
HUGE = (1 << 31) - 1


class Pair:
    """A connection and its peer; the keeper of the connection is here, too, and does what it wants when told to."""

    def __init__(self, room: Room, folder: Path, alpn: str, holds: int, *, names_nobody: bool) -> None:
        authority = Authority(folder / "ca")
        server = authority.server()
        papers = feed_door_of(
            Doors("127.0.0.1:0", None, server.certificate, server.key, authority.ca, feed="127.0.0.1:0")
        )
        assert papers is not None
        papers[1].close()
        ours, theirs = socket.socketpair()
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, holds)
        theirs.settimeout(5)
        ours.setblocking(False)
        issued = authority.client_without_uri() if names_nobody else authority.client(GATEWAY)
        context = ssl.create_default_context(cafile=str(authority.ca))
        context.load_cert_chain(issued.certificate, issued.key)
        context.set_alpn_protocols([alpn])
        self.buffer = memoryview(bytearray(1 << 14))
        self.wanted: list[Line] = []
        self.asked: list[Line] = []
        self.lines: list[Line] = []
        self._desk = Desk(room.hub, room.world.policies, room.world.clock)
        login = LoginDoor(None, None)  # type: ignore[arg-type] - nobody comes by it
        self._outermost = Outermost(room.world.policies, room.world.clock, Unmetered(), frozenset(), login)
        wrapped = papers[0].wrap_socket(ours, server_side=True, do_handshake_on_connect=False)
        self.connection = Connection(self, wrapped, ("127.0.0.1", 1))
        self.client = context.wrap_socket(theirs, server_hostname="localhost", do_handshake_on_connect=False)
        self.client.setblocking(False)
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding=None))
        self.stack = ExitStack()
        self.events: list[h2.events.Event] = []
        self._arrived = b""

    def call(self, peer: Peer, line: Line) -> Call:
        self.lines.append(line)
        return Call(self._desk, self._outermost, peer, line)

    def want(self, line: Line) -> None:
        self.wanted.append(line)

    def want_snapshot(self, line: Line) -> None:
        self.asked.append(line)

    def plain_pair(self) -> tuple[socket.socket, socket.socket]:
        """Return the sockets below TLS, ours first."""
        both = (self.connection._socket, self.client)
        ours, theirs = (self.stack.enter_context(socket.socket(fileno=os.dup(one.fileno()))) for one in both)
        return ours, theirs

    def close(self) -> None:
        self.stack.close()
        self.client.close()
        if self.connection.is_open:
            self.connection.close()

    def shake(self) -> "Pair":
        for _ in range(10):
            with suppress(ssl.SSLWantReadError):
                self.client.do_handshake()
            if self.connection.is_shaken:
                return self
            self.connection.ready()
        raise AssertionError("no handshake")

    def say(self, data: bytes) -> None:
        """Send it in records of any size, each of which makes the connection ready."""
        while data:
            data = data[self.client.send(data[:5000]) :]
            self.connection.ready()

    def pump(self) -> None:
        """Do what the connection wants, as the door would."""
        while self.wanted:
            line = self.wanted.pop(0)
            line.is_wanted = False
            self.connection.pump(line)

    def hear(self) -> bytes:
        """Return what has arrived."""
        found = b""
        with suppress(ssl.SSLWantReadError):
            while piece := self.client.recv(1 << 16):
                found += piece
        return found

    def listen(self, *, window: int = HUGE) -> Line:
        """Begin a call with h2 as the client, whose windows are never what holds anything up."""
        self.h2.initiate_connection()
        self.h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window})
        self.h2.increment_flow_control_window(HUGE - 65_535)
        self.h2.send_headers(1, LISTEN)
        self.h2.send_data(1, prefixed(HELLO_MESSAGE))
        self.say(self.h2.data_to_send())
        self.pump()
        return self.lines[-1]

    def exchange(self) -> None:
        """Read what has arrived, and answer it. Frames that are not whole yet are waited for."""
        self._arrived += self.hear()
        end = 0
        while len(self._arrived) >= end + 9:
            stop = end + 9 + int.from_bytes(self._arrived[end : end + 3], "big")
            if stop > len(self._arrived):
                break
            end = stop
        self.events += taken_by(self.h2, self._arrived[:end])
        self._arrived = self._arrived[end:]

    def data(self) -> bytes:
        return b"".join(event.data for event in self.events if isinstance(event, h2.events.DataReceived))

    def trailers(self) -> dict[bytes, bytes]:
        [found] = [event for event in self.events if isinstance(event, h2.events.TrailersReceived)]
        return dict(found.headers)

    def until_idle(self) -> None:
        """Let both sides go on until neither has more to do."""
        for _ in range(5000):
            self.exchange()
            out = self.h2.data_to_send()
            if out:
                self.say(out)
            elif self.connection.interest == WRITABLE:
                self.connection.ready()
            elif self.wanted:
                self.pump()
            else:
                self.exchange()
                return
        raise AssertionError("it never ends")


@pytest.fixture
def apart(tmp_path):
    """Run a test inside of a loop, with a room and what makes a pair in it."""

    def run(test: Callable[[Room, Callable[..., Pair]], Awaitable[None]]) -> None:
        async def whole() -> None:
            room = Room(tmp_path)
            with ExitStack() as stack:
                stack.callback(room.close)

                def make(alpn: str = "h2", holds: int = 8192, *, names_nobody: bool = False) -> Pair:
                    pair = Pair(room, tmp_path, alpn, holds, names_nobody=names_nobody)
                    stack.callback(pair.close)
                    return pair

                await asyncio.to_thread(room.publisher.poll)
                await test(room, make)

        asyncio.run(whole())

    return run


def messages(*sizes: int) -> list[bytes]:
    return [bytes([at % 251]) * size for at, size in enumerate(sizes)]


def test_whoever_reads_slowly_gets_all_of_it_in_order_and_is_not_read_meanwhile(apart):
    async def test(room, make):
        pair = make().shake()
        line = pair.listen()
        assert pair.asked == [line]
        sent = messages(300_000, 10, 0, 700_000, 5, 64_000, 64_000)
        line.call.session.bring(sent, 1)
        line.waits_for_snapshot = False
        line.want()
        pair.pump()
        # The socket is full, and no more is made ready than it can do with soon.
        assert pair.connection.interest == WRITABLE
        assert len(pair.connection._unsent) + pair.connection.http2._out_bytes < 4 << 16
        assert len(line.call.session.subscriber.backlog) == len(sent) - 1
        for _ in range(50):
            pair.h2.ping(bytes(8))
        pair.client.sendall(pair.h2.data_to_send())
        pair.connection.ready()
        assert pair.connection.interest == WRITABLE
        assert not pair.connection.http2.has_more
        pair.until_idle()
        assert pair.connection.interest == READABLE
        assert pair.data() == b"".join(map(prefixed, sent))
        assert sum(isinstance(event, h2.events.PingAckReceived) for event in pair.events) == 50

    apart(test)


def test_no_more_is_taken_from_a_session_than_the_socket_can_do_with_soon(apart):
    async def test(room, make):
        pair = make().shake()
        line = pair.listen()
        sent = messages(*[3000] * 60)
        line.call.session.bring(sent, 1)
        # As often as the hub has something new meanwhile.
        for _ in range(3):
            line.want()
            pair.pump()
            assert len(line.call.session.subscriber.backlog) == 60 - 22
        pair.until_idle()
        assert pair.data() == b"".join(map(prefixed, sent))

    apart(test)


def test_whoever_takes_a_large_snapshot_slowly_is_not_taken_for_silent(apart):
    async def test(room, make):
        pair = make().shake()
        line = pair.listen()
        line.call.session.bring(messages(2_000_000), 1)
        line.want()
        pair.pump()
        pair.connection.heard_s = long_ago = -1000.0
        # Nothing gets out, nor does the door call it ready.
        line.want()
        pair.pump()
        assert pair.connection.heard_s == long_ago
        assert pair.hear()
        pair.connection.ready()
        assert pair.connection.interest == WRITABLE
        assert pair.connection.heard_s > long_ago

    apart(test)


def test_whoever_reads_without_end_gives_way_to_the_others(apart):
    async def test(room, make):
        pair = make(holds=8 << 20).shake()
        line = pair.listen()
        line.call.session.bring(messages(3_000_000), 1)
        line.want()
        pair.pump()
        # The socket could take more.
        assert not pair.connection._unsent
        assert pair.connection.interest == WRITABLE
        assert pair.connection.http2.waiting() == [1]
        assert len(pair.hear()) < 1 << 20

    apart(test)


def test_a_handshake_that_does_not_get_out_is_waited_for(apart):
    async def test(room, make):
        pair = make()
        ours, theirs = pair.plain_pair()
        filled = 0
        with pytest.raises(ssl.SSLWantReadError):
            pair.client.do_handshake()
        with suppress(BlockingIOError):
            while True:
                filled += ours.send(bytes(64))
        pair.connection.ready()
        assert pair.connection.interest == WRITABLE
        while filled:
            filled -= len(theirs.recv(filled))
        pair.shake()
        assert pair.connection.interest == READABLE

    apart(test)


def test_p7_a_certificate_that_names_nobody_is_told_so_on_each_call(apart):
    async def test(room, make):
        pair = make(names_nobody=True).shake()
        pair.h2.initiate_connection()
        for stream in (1, 3):
            pair.h2.send_headers(stream, LISTEN)
        pair.say(pair.h2.data_to_send())
        pair.until_idle()
        told = [dict(event.headers) for event in pair.events if isinstance(event, h2.events.TrailersReceived)]
        assert [one[b"grpc-status"] for one in told] == [b"16", b"16"]

    apart(test)


def test_p7_a_policy_that_drops_a_verifier_ends_its_call_before_anything_more_is_sent(apart):
    async def test(room, make):
        pair = make().shake()
        line = pair.listen()
        line.call.session.bring(messages(10), 1)
        room.world.apply(POLICY.replace('lab.example/gateway"', 'lab.example/gateway-9"'))
        line.want()
        pair.until_idle()
        assert pair.data() == b""
        assert pair.trailers()[b"grpc-status"] == b"16"

    apart(test)


@pytest.mark.parametrize(
    ("headers", "words", "status"),
    [
        ([(b"authorization", b"Basic eA==")], prefixed(HELLO_MESSAGE), b"16"),
        ([], b"\x01" + prefixed(HELLO_MESSAGE)[1:], b"12"),
        ([], b"\0" + (256 * 1024 + 1).to_bytes(4, "big"), b"8"),
        ([], prefixed(b"\xff"), b"3"),
        ([], None, b"3"),
    ],
    ids=["two identities", "compressed", "too large", "no message", "no word"],
)
def test_p7_a_call_that_begins_badly_ends_with_its_status(apart, headers, words, status):
    async def test(room, make):
        pair = make().shake()
        pair.h2.initiate_connection()
        pair.h2.send_headers(1, LISTEN + headers)
        if words is None:
            pair.h2.end_stream(1)
        else:
            pair.h2.send_data(1, words)
        pair.say(pair.h2.data_to_send())
        pair.until_idle()
        assert pair.trailers()[b"grpc-status"] == status
        assert not list(room.hub.live())

    apart(test)


def test_a_window_that_is_used_up_holds_up_one_call_and_grows_again(apart):
    async def test(room, make):
        pair = make().shake()
        line = pair.listen(window=1000)
        sent = messages(3000, 7)
        line.call.session.bring(sent, 1)
        line.want()
        pair.until_idle()
        assert len(pair.data()) == 1000
        # A socket that can take more is not waited for, or the loop would turn for nothing.
        assert pair.connection.interest == READABLE
        pair.h2.increment_flow_control_window(1500, 1)
        pair.until_idle()
        assert len(pair.data()) == 2500
        pair.h2.increment_flow_control_window(10_000, 1)
        pair.until_idle()
        assert pair.data() == b"".join(map(prefixed, sent))

    apart(test)


def test_a_call_that_ends_says_so_after_the_message_under_way_and_is_over(apart):
    async def test(room, make):
        pair = make().shake()
        line = pair.listen(window=1000)
        line.call.session.bring(messages(3000, 7), 1)
        line.want()
        pair.until_idle()
        over = Forbidden("it is over", hint="ask an admin")
        line.call.end(over)
        pair.until_idle()
        assert len(pair.data()) == 1000
        assert not any(isinstance(event, h2.events.TrailersReceived) for event in pair.events)
        assert pair.connection._lines
        pair.h2.increment_flow_control_window(10_000, 1)
        pair.until_idle()
        # Whole; what had not begun is not sent.
        assert pair.data() == prefixed(messages(3000)[0])
        assert pair.trailers()[b"grpc-status"] == b"7"
        assert pair.trailers()[b"grpc-message"] == b"it is over; ask an admin"
        # Without padding, as gRPC spells it; here there would be some.
        details = pair.trailers()[b"grpc-status-details-bin"]
        assert b64decode(details + b"=" * (-len(details) % 4)) == details_of(over)
        assert len(details) % 4
        assert not pair.connection.has_calls
        # It ends once.
        line.call.end(None)
        line.call.lost()
        line.call.half_closed()
        assert not line.call.data(prefixed(HELLO_MESSAGE))
        assert not pair.wanted

    apart(test)


def test_a_snapshot_is_asked_for_once_and_again_only_when_it_is_needed_again(apart):
    async def test(room, make):
        pair = make().shake()
        line = pair.listen()
        for _ in range(3):
            line.want()
            line.want()
            assert pair.wanted == [line]
            pair.pump()
        assert pair.asked == [line]
        line.waits_for_snapshot = False
        line.call.session.bring(messages(10), 1)
        line.want()
        pair.pump()
        assert pair.asked == [line]
        pair.h2.send_data(
            1, prefixed(feed_pb2.ListenRequest(nack=feed_pb2.Nack(reason="FRAME_GAP")).SerializeToString())
        )
        pair.until_idle()
        assert pair.asked == [line, line]

    apart(test)


@pytest.mark.parametrize("how", ["reset", "end", "leave", "close", "lost", "torn"])
def test_however_a_call_ends_its_name_is_free_and_nothing_more_is_sent_to_it(apart, how):
    async def test(room, make):
        pair = make().shake()
        line = pair.listen(window=1000)
        line.call.session.bring(messages(3000), 1)
        line.want()
        pair.until_idle()
        assert list(room.hub.live())
        match how:
            case "reset":
                pair.h2.reset_stream(1)
                pair.until_idle()
            case "end":
                pair.h2.end_stream(1)
                pair.until_idle()
            case "leave":
                pair.h2.send_data(1, prefixed(feed_pb2.ListenRequest(leave=feed_pb2.Leave()).SerializeToString()))
                pair.until_idle()
            case "close":
                pair.connection.close()
            case "lost" | "torn":
                if how == "torn":
                    pair.plain_pair()[1].send(b"no record of TLS at all")
                else:
                    pair.client.close()
                with pytest.raises(Gone):
                    pair.connection.ready()
                pair.connection.close()
        assert not list(room.hub.live())
        room.hub.names.claim("evaluation", GATEWAY, b"another certificate")
        assert line.call.session is None
        if how == "reset":
            assert not pair.connection.has_calls
            # What the hub, or a snapshot, still wants of it comes too late.
            line.want()
            pair.pump()
            assert pair.connection.interest == READABLE
            assert not pair.connection._stalled
        if how in {"close", "lost", "torn"}:
            assert not pair.connection.is_open
            assert not pair.connection.has_calls

    apart(test)


def test_a_broken_protocol_is_answered_with_the_reason_before_the_end(apart):
    async def test(room, make):
        pair = make().shake()
        pair.client.sendall(HELLO + raw(RESET, 0, 1, number(8)))
        with pytest.raises(Gone):
            pair.connection.ready()
        *_, last = frames(pair.hear())
        assert last == (GOAWAY, 0, 0, number(0) + number(Code.PROTOCOL_ERROR))

    apart(test)


def test_whoever_is_silent_is_asked_and_whoever_listens_is_told_that_the_broker_goes(apart):
    async def test(room, make):
        pair = make().shake()
        pair.listen()
        pair.connection.ping()
        assert not pair.connection.http2.is_answered
        pair.until_idle()
        assert pair.connection.http2.is_answered
        pair.connection.leave()
        pair.exchange()
        [told] = [event for event in pair.events if isinstance(event, h2.events.ConnectionTerminated)]
        assert (told.error_code, told.last_stream_id) == (0, 1)

    apart(test)


def test_p7_another_protocol_is_gone(apart):
    async def test(room, make):
        with pytest.raises(Gone):
            make("http/1.1").shake()

    apart(test)


def test_p7_no_handshake_is_gone_and_half_of_one_is_waited_for(apart):
    async def test(room, make):
        pair = make()
        began_s = pair.connection.heard_s
        pair.connection.ready()
        assert (pair.connection.is_shaken, pair.connection.interest) == (False, READABLE)
        # The time of whoever does not get on with it runs from when it was accepted.
        assert pair.connection.heard_s == began_s
        with socket.socket(fileno=pair.client.detach()) as plain:
            plain.send(b"hello? hello? hello?")
        with pytest.raises(Gone):
            pair.connection.ready()

    apart(test)


def test_a_peer_that_is_gone_while_something_is_sent_to_it_is_gone(apart):
    async def test(room, make):
        pair = make().shake()
        pair.listen()
        pair.client.close()
        with pytest.raises(Gone):
            for _ in range(10):
                pair.connection.ping()

    apart(test)


@pytest.mark.parametrize(
    "changes",
    [{b":method": b"GET"}, {b"content-type": b"application/json"}, {b"content-type": None}, {b":path": b"/x"}],
    ids=str,
)
def test_p7_what_is_not_grpc_is_refused(apart, changes):
    async def test(room, make):
        pair = make().shake()
        headers = [(name, changes.get(name, value)) for name, value in LISTEN]
        pair.h2.initiate_connection()
        pair.h2.send_headers(1, [(name, value) for name, value in headers if value is not None])
        # What it says before it hears of that is not heard.
        pair.h2.send_data(1, prefixed(HELLO_MESSAGE))
        pair.say(pair.h2.data_to_send())
        pair.until_idle()
        assert pair.trailers()[b"grpc-status"] == b"12"
        assert not list(room.hub.live())

    apart(test)


def test_a_message_may_come_in_any_pieces_and_several_in_one(apart):
    async def test(room, make):
        pair = make().shake()
        pair.h2.initiate_connection()
        pair.h2.send_headers(1, LISTEN)
        pair.say(pair.h2.data_to_send())
        [line] = pair.lines
        nack = feed_pb2.ListenRequest(nack=feed_pb2.Nack(reason="ONE")).SerializeToString()
        last = feed_pb2.ListenRequest(nack=feed_pb2.Nack(reason="LAST")).SerializeToString()
        for piece in prefixed(HELLO_MESSAGE):
            assert line.call.session is None
            assert line.call.data(bytes((piece,)))
        assert line.call.data(prefixed(nack) + prefixed(last) + prefixed(nack)[:8])
        assert line.call.session.listener.last_nack == "LAST"
        assert line.call.data(prefixed(nack)[8:])
        assert line.call.session.listener.last_nack == "ONE"
        # What follows the last word is not read.
        leave = feed_pb2.ListenRequest(leave=feed_pb2.Leave()).SerializeToString()
        assert not line.call.data(prefixed(leave) + b"\xff" * 100)
        pair.until_idle()
        assert pair.trailers()[b"grpc-status"] == b"0"

    apart(test)


def test_a_status_with_many_details_is_sent_without_them_and_its_message_is_quoted(apart):
    async def test(room, make):
        pair = make().shake()
        line = pair.listen()
        line.call.end(NotFound("100 % of it\n", metadata={str(at): "x" * 1900 for at in range(4)}))
        pair.until_idle()
        assert pair.trailers() == {b"grpc-status": b"5", b"grpc-message": pair.trailers()[b"grpc-message"]}
        assert pair.trailers()[b"grpc-message"].startswith(b"100 %25 of it%0A")

    apart(test)


def test_a_setting_that_comes_while_a_message_is_under_way_is_followed(apart):
    async def test(room, make):
        pair = make().shake()
        line = pair.listen(window=10)
        line.call.session.bring(messages(100), 1)
        line.want()
        pair.until_idle()
        assert len(pair.data()) == 10
        pair.say(raw(SETTINGS, 0, 0, setting(4, 60)))
        kinds = [(kind, len(payload)) for kind, _, _, payload in frames(pair.hear())]
        assert kinds == [(SETTINGS, 0), (DATA, 50)]
        assert HEADERS not in dict(kinds)

    apart(test)


def test_peers_are_spelled_as_grpc_spells_them(tmp_path):
    der = ssl.PEM_cert_to_DER_cert(Authority(tmp_path).client(GATEWAY).certificate.read_text())
    assert peer_of(der, ("127.0.0.1", 50)).address == "ipv4:127.0.0.1:50"
    six = peer_of(der, ("::1", 50))
    assert (six.address, six.ip) == ("ipv6:%5B::1%5D:50", "::1")
    assert isinstance(peer_of(b"garbage", ("::1", 50)).certificate, Unauthenticated)
