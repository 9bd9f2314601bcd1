"""HTTP/2 as the feed's door speaks it: the h2 library is the client that judges it, whole and in order."""

import random
from collections.abc import Callable

import h2.config
import h2.connection
import h2.events
import h2.settings
import pytest
from hpack import Encoder
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from broker.edge.feed.call import BEGINNING
from broker.edge.feed.http2 import Broken, Code, Http2, literal
from tests.edge.feed.wires import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    HELLO,
    PADDED,
    PING,
    PREFACE,
    PRIORITY,
    PUSH,
    RESET,
    SETTINGS,
    WINDOW,
    WITH_PRIORITY,
    Heard,
    continued,
    cut,
    frames,
    number,
    raw,
    setting,
)

WINDOW_SIZE, FRAME_SIZE = h2.settings.SettingCodes.INITIAL_WINDOW_SIZE, h2.settings.SettingCodes.MAX_FRAME_SIZE
LISTEN = [
    (b":method", b"POST"),
    (b":scheme", b"https"),
    (b":authority", b"broker"),
    (b":path", b"/broker.v1.FeedService/Listen"),
    (b"content-type", b"application/grpc"),
]
TRAILERS = literal(b"grpc-status", b"0")
BLOCK = Encoder().encode([(b":method", b"POST")])
MOST = (1 << 31) - 1
CHUNKS = st.lists(st.integers(1, 3000), min_size=1, max_size=5)


class Answering(Heard):
    """Answers each stream with its first headers, as a call does."""

    def __init__(self) -> None:
        super().__init__()
        self.http2 = Http2(self)

    def opened(self, stream, headers):
        super().opened(stream, headers)
        self.http2.headers(stream, BEGINNING)


def client_of(**options):
    config = h2.config.H2Configuration(client_side=True, header_encoding=None, **options)
    client = h2.connection.H2Connection(config)
    client.initiate_connection()
    return client


def taken_by(client, out):
    """Return a client's events. Frame by frame, for what a frame says of the next counts from the next call on."""
    return [event for frame in frames(out) for event in client.receive_data(raw(*frame))]


def prefixed(message):
    return b"\0" + len(message).to_bytes(4, "big") + message


class Conversation(RuleBasedStateMachine):
    """Both sides do what they may, in any order; what is under way is carried in pieces of any size."""

    def __init__(self):
        super().__init__()
        self.heard = Answering()
        self.server = self.heard.http2
        self.client = client_of()
        self.chance = random.Random(0)
        # What the client sent and got, and what was given to be sent to it; by stream.
        self.said: dict[int, bytes] = {}
        self.got: dict[int, bytes] = {}
        self.given: dict[int, bytes] = {}
        self.headers: dict[int, list[tuple[bytes, bytes]]] = {}
        # Streams on which the client may speak; those it has reset; those that we ended.
        self.speaking: list[int] = []
        self.given_up: set[int] = set()
        self.finished: set[int] = set()
        self.pings = self.pongs = 0
        self.at = 1 << 14
        # h2 takes any acknowledgement for that of all it has changed meanwhile: one change at a time.
        self.is_settled = False

    def pick(self, streams, index):
        return streams[index % len(streams)]

    @rule(
        more=st.lists(st.tuples(st.sampled_from([b"a", b"user-agent", b"x-long"]), st.binary(max_size=300)), max_size=4)
    )
    def open(self, more):
        if len(self.server._streams) + 1 >= 32 or self.client.open_outbound_streams >= 31:
            return
        stream = self.client.get_next_available_stream_id()
        headers = LISTEN + [(name, value.hex().encode()) for name, value in more]
        self.client.send_headers(stream, headers)
        self.headers[stream], self.said[stream], self.got[stream], self.given[stream] = headers, b"", b"", b""
        self.speaking.append(stream)

    @precondition(lambda self: self.speaking)
    @rule(index=st.integers(0, 31), size=st.integers(1, 40_000), pad=st.none() | st.integers(0, 255))
    def say(self, index, size, pad):
        stream = self.pick(self.speaking, index)
        over = 0 if pad is None else pad + 1
        size = min(size, self.client.local_flow_control_window(stream) - over, (1 << 14) - over)
        if size > 0:
            data = self.chance.randbytes(size)
            self.client.send_data(stream, data, pad_length=pad)
            self.said[stream] += data

    @precondition(lambda self: self.speaking)
    @rule(index=st.integers(0, 31), how=st.sampled_from(["end", "trailers", "reset"]))
    def stop(self, index, how):
        stream = self.pick(self.speaking, index)
        self.speaking.remove(stream)
        if how == "end":
            self.client.end_stream(stream)
        elif how == "trailers":
            self.client.send_headers(stream, [(b"said", b"all")], end_stream=True)
        elif len(self.given_up) < 50:
            self.client.reset_stream(stream)
            self.given_up.add(stream)

    @rule(ours=st.booleans())
    def ping(self, ours):
        if ours:
            self.server.ping()
        else:
            self.client.ping(self.chance.randbytes(8))
            self.pings += 1

    @precondition(lambda self: self.is_settled)
    @rule(
        window=st.none() | st.sampled_from([0, 1, 7, 1000, 16_384, 65_535, 1 << 20]),
        frame_size=st.none() | st.sampled_from([1 << 14, 20_000, 1 << 20, (1 << 24) - 1]),
    )
    def change_settings(self, window, frame_size):
        wanted = {WINDOW_SIZE: window, FRAME_SIZE: frame_size}
        self.client.update_settings({name: value for name, value in wanted.items() if value is not None})
        self.is_settled = False

    @rule(index=st.integers(0, 32), more=st.sampled_from([1, 9, 500, 65_535, 300_000]))
    def grow_window(self, index, more):
        alive = [stream for stream in self.got if stream not in self.given_up | self.finished]
        self.client.increment_flow_control_window(more, None if index >= len(alive) else alive[index])

    @rule(index=st.integers(0, 31), size=st.integers(0, 5000) | st.sampled_from([16_379, 16_380, 70_000, 300_000]))
    def answer(self, index, size):
        ready = [stream for stream in self.heard.headers if self.server.is_ready(stream)]
        if ready:
            stream, message = self.pick(ready, index), self.chance.randbytes(size)
            self.server.send(stream, message)
            self.given[stream] += prefixed(message)

    @rule(index=st.integers(0, 31))
    def finish(self, index):
        ready = [stream for stream in self.heard.headers if self.server.is_ready(stream)]
        if ready:
            stream = self.pick(ready, index)
            self.server.headers(stream, TRAILERS, is_last=True)
            self.finished.add(stream)

    @rule(at=st.sampled_from([1, 5, 40, 1 << 14]))
    def spread_headers(self, at):
        self.at = at

    @rule(sizes=CHUNKS)
    def carry_there(self, sizes):
        for piece in cut(continued(self.client.data_to_send(), self.at), sizes):
            self.server.receive(piece)

    @rule()
    def carry_back(self):
        for event in taken_by(self.client, self.server.taken()):
            self.take(event)
        for stream in self.server.waiting():
            self.server.go_on(stream)

    def take(self, event):
        match event:
            case h2.events.DataReceived():
                self.got[event.stream_id] += event.data
            case h2.events.PingAckReceived():
                self.pongs += 1
            case h2.events.StreamEnded() | h2.events.StreamReset():
                if event.stream_id in self.speaking:
                    self.speaking.remove(event.stream_id)
            case h2.events.SettingsAcknowledged():
                self.is_settled = True
            case h2.events.ConnectionTerminated():
                raise AssertionError("it went away")

    @invariant()
    def what_arrived_is_the_beginning_of_what_was_sent(self):
        for stream, got in self.got.items():
            assert self.given[stream].startswith(got)
        for stream, said in self.heard.said.items():
            assert self.said[stream].startswith(said)

    def teardown(self):
        for turn in range(40):
            self.carry_there([50_000])
            self.carry_back()
            if turn == 1:
                assert self.is_settled
                self.client.update_settings({WINDOW_SIZE: MOST >> 1})
            if self.client.inbound_flow_control_window < 1 << 20:
                self.client.increment_flow_control_window(1 << 20)
        for stream, got in self.got.items():
            if stream not in self.given_up:
                assert got == self.given[stream]
        for stream, headers in self.heard.headers.items():
            assert headers == self.headers[stream]
            if stream not in self.finished:
                assert self.heard.said[stream] == self.said[stream]
        assert self.heard.headers.keys() == self.headers.keys()
        assert self.pongs == self.pings
        assert self.server.is_answered
        assert not self.server.waiting()


TestConversations = Conversation.TestCase
TestConversations.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)


def greeted(hello: bytes = HELLO) -> tuple[Http2, Heard]:
    """Return a server that was greeted, with what it heard."""
    heard = Heard()
    http2 = Http2(heard)
    http2.receive(hello)
    http2.taken()
    return http2, heard


def opened(stream: int, flags: int = 0) -> bytes:
    return raw(HEADERS, END_HEADERS | flags, stream, BLOCK)


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 300 << 10), min_size=1, max_size=3),
    window=st.integers(1, 70_000),
    frame_size=st.integers(1 << 14, 1 << 18),
    seed=st.integers(0, 9),
)
def test_messages_of_all_sizes_arrive_whole_and_in_order_under_small_windows(sizes, window, frame_size, seed):
    heard = Answering()
    client = client_of()
    client.update_settings({WINDOW_SIZE: window, FRAME_SIZE: frame_size})
    client.send_headers(1, LISTEN)
    heard.http2.receive(client.data_to_send())
    given, got = b"", b""
    # Each step of a window is a turn of both sides.
    sizes = [min(size, window * 200) for size in sizes]
    left = [random.Random(seed + size).randbytes(size) for size in sizes]
    while left or heard.http2.waiting() or heard.http2.has_more:
        if left and heard.http2.is_ready(1):
            message = left.pop(0)
            heard.http2.send(1, message)
            given += prefixed(message)
        out = heard.http2.taken()
        # Not more is made ready than a socket can do with.
        assert len(out) <= 3 << 16
        for event in taken_by(client, out):
            if isinstance(event, h2.events.DataReceived):
                got += event.data
                for stream in (None, 1):
                    client.increment_flow_control_window(event.flow_controlled_length, stream)
        heard.http2.receive(client.data_to_send())
        heard.http2.go_on(1)
    assert got == given


def test_a_peer_can_send_for_ever_for_its_credit_is_given_back():
    heard = Answering()
    client = client_of()
    client.send_headers(1, LISTEN)
    sent = 0
    while sent < 1 << 20:
        size = min(client.local_flow_control_window(1) - 201, 2_000)
        assert size > 0
        client.send_data(1, bytes(size), pad_length=200)
        sent += size
        heard.http2.receive(client.data_to_send())
        client.receive_data(heard.http2.taken())
        # Nor is it given more than it used.
        assert max(client.streams[1].outbound_flow_control_window, client.outbound_flow_control_window) <= 65_535
    assert len(heard.said[1]) == sent


def test_what_is_still_sent_on_a_stream_that_is_over_is_not_heard_and_its_credit_is_given_back():
    http2, heard = greeted()
    http2.receive(opened(1) + opened(3))
    http2.headers(1, BEGINNING)
    http2.headers(1, TRAILERS, is_last=True)
    http2.taken()
    for _ in range(64):
        http2.receive(raw(DATA, 0, 1, bytes(1 << 14)))
    updates = [payload for kind, _, stream, payload in frames(http2.taken()) if (kind, stream) == (WINDOW, 0)]
    assert sum(int.from_bytes(payload, "big") for payload in updates) == 1 << 20
    assert heard.said[1] == b""
    # Nor is the end of it, which comes as data, as trailers, or as a window that nobody needs.
    http2.receive(
        raw(DATA, END_STREAM, 1) + raw(HEADERS, END_HEADERS | END_STREAM, 1, BLOCK) + raw(WINDOW, 0, 1, number(9))
    )
    http2.receive(raw(RESET, 0, 1, number(0)))
    assert (heard.ended_, heard.reset_) == ([], [])
    http2.receive(raw(DATA, 0, 3, b"on"))
    assert heard.said[3] == b"on"


def test_a_stream_that_is_ended_before_the_peer_has_ended_it_is_reset_without_an_error():
    http2, _ = greeted()
    http2.receive(opened(1) + opened(3, END_STREAM))
    for stream in (1, 3):
        http2.headers(stream, TRAILERS, is_last=True)
    assert [(kind, flags, stream) for kind, flags, stream, _ in frames(http2.taken())] == [
        (HEADERS, END_HEADERS | END_STREAM, 1),
        (RESET, 0, 1),
        (HEADERS, END_HEADERS | END_STREAM, 3),
    ]
    assert not http2.is_ready(1)
    http2.go_on(1)
    assert not http2.has_more


def test_not_more_is_made_ready_than_the_socket_can_do_with_and_the_rest_goes_on_later():
    http2, _ = greeted(PREFACE + raw(SETTINGS, 0, 0, setting(4, 1 << 20)) + raw(WINDOW, 0, 0, number(1 << 20)))
    http2.receive(opened(1))
    assert not http2.is_full
    http2.send(1, bytes(200_000))
    sizes = []
    while http2.has_more:
        assert http2.is_full == (len(sizes) < 3)
        sizes.append(len(http2.taken()))
        http2.go_on(1)
    assert len(sizes) == 4
    assert max(sizes) < (1 << 16) + (1 << 14)
    assert http2.is_ready(1)


def test_a_stream_can_be_ended_while_its_last_word_is_heard():
    class Curt(Heard):
        def data(self, stream, data):
            http2.headers(stream, TRAILERS, is_last=True)

    heard = Curt()
    http2 = Http2(heard)
    http2.receive(HELLO + opened(1) + raw(DATA, END_STREAM, 1, b"x"))
    assert heard.ended_ == []


def test_what_no_rfc_knows_is_ignored_and_a_goodbye_ends_nothing():
    http2, heard = greeted(PREFACE + raw(SETTINGS, 0, 0, setting(99, 7) + setting(2, 0) + setting(2, 1)))
    http2.receive(raw(77, 0xFF, 5, b"?") + raw(SETTINGS, ACK) + opened(1) + raw(PRIORITY, 0, 9, bytes(5)))
    http2.receive(raw(GOAWAY, 0, 0, bytes(8)) + raw(DATA, 0, 1, b"on"))
    assert heard.said[1] == b"on"
    assert http2.taken() == b""


def test_the_bit_that_is_reserved_is_not_read():
    http2, heard = greeted()
    http2.receive(raw(HEADERS, END_HEADERS, 1 | 1 << 31, BLOCK) + raw(WINDOW, 0, 1, number(1 | 1 << 31)))
    assert list(heard.headers) == [1]


def test_headers_come_with_padding_and_priority_and_both_are_taken_off():
    http2, heard = greeted()
    http2.receive(raw(HEADERS, END_HEADERS | PADDED | WITH_PRIORITY, 1, b"\x03" + bytes(5) + BLOCK + bytes(3)))
    assert heard.headers[1] == [(b":method", b"POST")]


def test_a_stream_that_ends_with_its_headers_is_heard_to_end_also_when_they_are_continued():
    http2, heard = greeted()
    http2.receive(raw(HEADERS, END_STREAM, 1, b"") + raw(CONTINUATION, END_HEADERS, 1, BLOCK))
    # A flag of CONTINUATION that means nothing there.
    http2.receive(raw(HEADERS, 0, 3, BLOCK) + raw(CONTINUATION, END_HEADERS | END_STREAM, 3, b""))
    assert heard.ended_ == [1]


def test_a_long_value_is_spelled_as_the_rfc_wants_it():
    for size in (0, 126, 127, 128, 254, 255, 256, 16_000):
        decoded = client_of().decoder.decode(literal(b"name", b"v" * size), raw=True)
        assert [(bytes(name), bytes(value)) for name, value in decoded] == [(b"name", b"v" * size)]


def test_too_many_streams_are_refused_and_the_connection_lives_on():
    http2, heard = greeted()
    [(_, _, _, told)] = [one for one in frames(Http2(Heard()).taken()) if one[0] == SETTINGS]
    assert setting(3, 32) in told
    # Their headers change the table all the same.
    encoder = Encoder()
    for stream in range(1, 2 * 34, 2):
        http2.receive(raw(HEADERS, END_HEADERS, stream, encoder.encode([(b"n", b"%d" % (stream // 64))])))
    assert list(frames(http2.taken())) == [(RESET, 0, stream, number(Code.REFUSED_STREAM)) for stream in (65, 67)]
    assert len(heard.headers) == 32
    http2.receive(raw(DATA, 0, 65, b"not heard") + raw(DATA, 0, 63, b"heard"))
    assert heard.said[63] == b"heard"
    http2.headers(1, TRAILERS, is_last=True)
    http2.receive(raw(HEADERS, END_HEADERS, 69, encoder.encode([(b"n", b"1")])))
    assert heard.headers[69] == [(b"n", b"1")]


def test_a_window_that_shrinks_below_nothing_sends_nothing_until_it_has_grown_again():
    http2, _ = greeted()
    http2.receive(opened(1))
    http2.send(1, bytes(1000))
    http2.receive(raw(SETTINGS, 0, 0, setting(4, 500)))
    http2.taken()
    http2.send(1, bytes(10))
    http2.receive(raw(WINDOW, 0, 1, number(505)))
    assert http2.taken() == b""
    assert http2.waiting() == [1]
    http2.receive(raw(WINDOW, 0, 1, number(3)))
    assert list(frames(http2.taken())) == [(DATA, 0, 1, b"\0\0\0")]
    # Streams that begin now have the window as it is now, and a window for all grows for all.
    http2.receive(raw(SETTINGS, 0, 0, setting(4, 0)) + opened(3))
    http2.taken()
    http2.send(3, b"x")
    http2.receive(raw(WINDOW, 0, 0, number(100)))
    assert http2.taken() == b""
    http2.receive(raw(SETTINGS, 0, 0, setting(4, 3)))
    # The acknowledgement goes first: it is what the new window counts from.
    assert list(frames(http2.taken())) == [(SETTINGS, ACK, 0, b""), (DATA, 0, 3, prefixed(b"x")[:3])]


def test_a_window_of_the_connection_wakes_every_stream_that_waits_for_it():
    http2, _ = greeted(PREFACE + raw(SETTINGS, 0, 0, setting(4, 1 << 20)))
    http2.receive(opened(1) + opened(3))
    for stream in (1, 3):
        http2.send(stream, bytes(40_000))
    http2.taken()
    assert http2.waiting() == [3]
    http2.receive(raw(WINDOW, 0, 0, number(1 << 20)))
    assert sum(len(payload) for kind, _, stream, payload in frames(http2.taken()) if kind == DATA) == 80_010 - 65_535


def test_small_messages_keep_to_the_window_of_the_connection_too():
    http2, _ = greeted(PREFACE + raw(SETTINGS, 0, 0, setting(4, 1 << 20)))
    http2.receive(opened(1))
    out = b""
    while http2.is_ready(1):
        http2.send(1, bytes(995))
        out += http2.taken()
    assert sum(len(payload) for kind, _, _, payload in frames(out) if kind == DATA) == 65_535


def test_a_peer_that_takes_huge_frames_gets_none_that_is_larger_than_what_is_made_ready_at_once():
    http2, _ = greeted(
        PREFACE + raw(SETTINGS, 0, 0, setting(4, MOST) + setting(5, 1 << 20)) + raw(WINDOW, 0, 0, number(1 << 20))
    )
    http2.receive(opened(1))
    http2.send(1, bytes(300_000))
    assert [len(payload) for kind, _, _, payload in frames(http2.taken()) if kind == DATA] == [5, 1 << 16]


def test_a_frame_is_no_larger_than_the_peer_takes_them():
    http2, _ = greeted(PREFACE + raw(SETTINGS, 0, 0, setting(4, 1 << 20) + setting(5, 20_000)))
    http2.receive(opened(1) + raw(WINDOW, 0, 0, number(1 << 20)))
    for size in (19_995, 19_996):
        http2.send(1, bytes(size))
    assert [len(payload) for kind, _, _, payload in frames(http2.taken())] == [20_000, 5, 19_996]


@pytest.mark.parametrize("kinds", [RESET, HEADERS])
def test_b_streams_that_are_opened_and_given_up_at_once_end_the_connection(kinds):
    """CVE-2023-44487."""
    http2, heard = greeted()
    with pytest.raises(Broken) as broken:
        for stream in range(1, 20_001, 2):
            http2.receive(opened(stream) + (raw(RESET, 0, stream, number(8)) if kinds == RESET else b""))
    assert broken.value.code is Code.ENHANCE_YOUR_CALM
    assert len(heard.headers) <= 150


def test_a_verifier_that_spoke_may_come_and_go_on_one_connection_as_often_as_it_likes():
    http2, heard = greeted()
    for stream in range(1, 2001, 2):
        http2.receive(opened(stream) + raw(DATA, 0, stream, b"hello") + raw(RESET, 0, stream, number(8)))
    assert len(heard.reset_) == 1000


def at_once(*pieces: bytes) -> bytes:
    return HELLO + b"".join(pieces)


VIOLATIONS: dict[str, tuple[bytes, Code]] = {
    "no preface": (b"GET / HTTP/1.1\r\n", Code.PROTOCOL_ERROR),
    "half a preface, and something else": (PREFACE[:10] + b"!", Code.PROTOCOL_ERROR),
    "a preface and no settings": (PREFACE + raw(PING, 0, 0, bytes(8)), Code.PROTOCOL_ERROR),
    "a preface and settings that answer": (PREFACE + raw(SETTINGS, ACK), Code.PROTOCOL_ERROR),
    "a frame that is too large": (at_once(opened(1), raw(DATA, 0, 1, bytes((1 << 14) + 1))[:9]), Code.FRAME_SIZE_ERROR),
    "a stream that is even": (at_once(opened(2)), Code.PROTOCOL_ERROR),
    "headers for the connection": (at_once(opened(0)), Code.PROTOCOL_ERROR),
    "data for the connection": (at_once(raw(DATA, 0, 0, b"x")), Code.PROTOCOL_ERROR),
    "data on a stream that never began": (at_once(opened(1), raw(DATA, 0, 3, b"x")), Code.PROTOCOL_ERROR),
    "data on an even stream": (at_once(opened(3), raw(DATA, 0, 2, b"x")), Code.PROTOCOL_ERROR),
    "a reset of a stream that never began": (at_once(raw(RESET, 0, 1, number(8))), Code.PROTOCOL_ERROR),
    "a reset of the connection": (at_once(opened(1), raw(RESET, 0, 0, number(8))), Code.PROTOCOL_ERROR),
    "a window of a stream that never began": (at_once(raw(WINDOW, 0, 1, number(8))), Code.PROTOCOL_ERROR),
    "data after the end": (at_once(opened(1, END_STREAM), raw(DATA, 0, 1, b"x")), Code.STREAM_CLOSED),
    "trailers after the end": (at_once(opened(1, END_STREAM), opened(1, END_STREAM)), Code.STREAM_CLOSED),
    "headers in the middle": (at_once(opened(1), opened(1)), Code.PROTOCOL_ERROR),
    "a window that grows by nothing": (at_once(raw(WINDOW, 0, 0, number(0))), Code.PROTOCOL_ERROR),
    "a stream's window that grows by nothing": (at_once(opened(1), raw(WINDOW, 0, 1, number(0))), Code.PROTOCOL_ERROR),
    "a window beyond all bounds": (at_once(raw(WINDOW, 0, 0, number(MOST - 65_534))), Code.FLOW_CONTROL_ERROR),
    "a stream's window beyond all bounds": (
        at_once(opened(1), raw(WINDOW, 0, 1, number(MOST - 65_534))),
        Code.FLOW_CONTROL_ERROR,
    ),
    "a first window beyond all bounds": (at_once(raw(SETTINGS, 0, 0, setting(4, MOST + 1))), Code.FLOW_CONTROL_ERROR),
    "a first window that drives another beyond all bounds": (
        at_once(opened(1), raw(WINDOW, 0, 1, number(1)), raw(SETTINGS, 0, 0, setting(4, MOST))),
        Code.FLOW_CONTROL_ERROR,
    ),
    "padding as long as the frame": (at_once(opened(1), raw(DATA, PADDED, 1, b"\x03abc"[:3])), Code.PROTOCOL_ERROR),
    "padding without its length": (at_once(opened(1), raw(DATA, PADDED, 1)), Code.PROTOCOL_ERROR),
    "padding of headers that is too long": (
        at_once(raw(HEADERS, PADDED | END_HEADERS, 1, b"\x09" + BLOCK)),
        Code.PROTOCOL_ERROR,
    ),
    "a priority of headers that is cut off": (
        at_once(raw(HEADERS, WITH_PRIORITY | END_HEADERS, 1, bytes(4))),
        Code.FRAME_SIZE_ERROR,
    ),
    "a header block that goes on and never began": (
        at_once(raw(CONTINUATION, END_HEADERS, 1, BLOCK)),
        Code.PROTOCOL_ERROR,
    ),
    "a header block that goes on after its end": (
        at_once(opened(1), raw(CONTINUATION, END_HEADERS, 1, BLOCK)),
        Code.PROTOCOL_ERROR,
    ),
    "a header block that goes on elsewhere": (
        at_once(raw(HEADERS, 0, 1, BLOCK), raw(CONTINUATION, END_HEADERS, 3, b"")),
        Code.PROTOCOL_ERROR,
    ),
    "a header block that is cut off": (
        at_once(raw(HEADERS, 0, 1, BLOCK), raw(PING, 0, 0, bytes(8))),
        Code.PROTOCOL_ERROR,
    ),
    "a header block that is cut off by what nobody knows": (
        at_once(raw(HEADERS, 0, 1, BLOCK), raw(99)),
        Code.PROTOCOL_ERROR,
    ),
    "a header block that is too large": (
        at_once(raw(HEADERS, 0, 1, bytes(1 << 14)), raw(CONTINUATION, 0, 1, b"x")),
        Code.ENHANCE_YOUR_CALM,
    ),
    "headers that are too many": (
        at_once(raw(HEADERS, END_HEADERS, 1, Encoder().encode([(b"a", b"b" * 999)]) + b"\xbe" * 20)),
        Code.COMPRESSION_ERROR,
    ),
    "headers that cannot be read": (
        at_once(raw(HEADERS, END_HEADERS, 1, b"\xff\xff\xff\xff\xff")),
        Code.COMPRESSION_ERROR,
    ),
    "a header that is in no table": (at_once(raw(HEADERS, END_HEADERS, 1, b"\xbe")), Code.COMPRESSION_ERROR),
    "trailers that cannot be read": (
        at_once(opened(1), raw(HEADERS, END_HEADERS | END_STREAM, 1, b"\xbe")),
        Code.COMPRESSION_ERROR,
    ),
    "settings of a stream": (at_once(raw(SETTINGS, 0, 1)), Code.PROTOCOL_ERROR),
    "settings that are cut off": (at_once(raw(SETTINGS, 0, 0, bytes(5))), Code.FRAME_SIZE_ERROR),
    "an answer to settings that holds some": (at_once(raw(SETTINGS, ACK, 0, bytes(6))), Code.FRAME_SIZE_ERROR),
    "settings without end": (at_once(raw(SETTINGS, 0, 0, setting(4, 1) * 2000)), Code.ENHANCE_YOUR_CALM),
    "a setting of push": (at_once(raw(SETTINGS, 0, 0, setting(2, 2))), Code.PROTOCOL_ERROR),
    "a frame size too small": (at_once(raw(SETTINGS, 0, 0, setting(5, (1 << 14) - 1))), Code.PROTOCOL_ERROR),
    "a frame size too large": (at_once(raw(SETTINGS, 0, 0, setting(5, 1 << 24))), Code.PROTOCOL_ERROR),
    "a ping of a stream": (at_once(raw(PING, 0, 1, bytes(8))), Code.PROTOCOL_ERROR),
    "a ping of seven bytes": (at_once(raw(PING, 0, 0, bytes(7))), Code.FRAME_SIZE_ERROR),
    "a goodbye of a stream": (at_once(raw(GOAWAY, 0, 1, bytes(8))), Code.PROTOCOL_ERROR),
    "a priority of four bytes": (at_once(raw(PRIORITY, 0, 1, bytes(4))), Code.FRAME_SIZE_ERROR),
    "a priority of the connection": (at_once(raw(PRIORITY, 0, 0, bytes(5))), Code.PROTOCOL_ERROR),
    "a reset of three bytes": (at_once(opened(1), raw(RESET, 0, 1, bytes(3))), Code.FRAME_SIZE_ERROR),
    "a window of three bytes": (at_once(raw(WINDOW, 0, 0, bytes(3))), Code.FRAME_SIZE_ERROR),
    "a push": (at_once(opened(1), raw(PUSH, END_HEADERS, 1, number(2) + BLOCK)), Code.PROTOCOL_ERROR),
    "data without content and end": (at_once(opened(1), *[raw(DATA, 0, 1)] * 200), Code.ENHANCE_YOUR_CALM),
    "padding alone": (at_once(opened(1), *[raw(DATA, PADDED, 1, b"\x01\0")] * 200), Code.ENHANCE_YOUR_CALM),
    # CVE-2024-27316.
    "header blocks that go on without content and end": (
        at_once(raw(HEADERS, 0, 1, BLOCK), *[raw(CONTINUATION, 0, 1)] * 200),
        Code.ENHANCE_YOUR_CALM,
    ),
    "trailers of streams that are over": (
        at_once(opened(1), raw(RESET, 0, 1, number(8)), *[opened(1, END_STREAM)] * 200),
        Code.ENHANCE_YOUR_CALM,
    ),
    "resets of streams that are over": (
        at_once(opened(1), *[raw(RESET, 0, 1, number(8))] * 200),
        Code.ENHANCE_YOUR_CALM,
    ),
}


@pytest.mark.parametrize("name", VIOLATIONS)
def test_p7_whoever_breaks_the_protocol_is_told_why_and_not_heard_any_more(name):
    data, code = VIOLATIONS[name]
    http2 = Http2(Heard())
    with pytest.raises(Broken) as broken:
        http2.receive(data)
    assert broken.value.code is code
    *_, last = frames(http2.taken())
    # The last stream that was heard, as the peer may try the others elsewhere.
    assert last[:3] == (GOAWAY, 0, 0)
    assert int.from_bytes(last[3][:4], "big") in {0, 1, 3}
    assert last[3][4:] == number(code)


@pytest.mark.parametrize("name", VIOLATIONS)
def test_p7_it_makes_no_difference_in_which_pieces_a_violation_arrives(name):
    data, code = VIOLATIONS[name]
    http2 = Http2(Heard())
    with pytest.raises(Broken) as broken:
        for piece in cut(data, [1, 2, 3, 5, 700]):
            http2.receive(piece)
    assert broken.value.code is code


def test_every_unfinished_piece_of_a_good_conversation_is_waited_for():
    for end in range(len(GOOD)):
        Http2(Heard()).receive(GOOD[:end])


def good_conversation() -> bytes:
    encoder = Encoder()
    block = encoder.encode([*LISTEN, (b"user-agent", b"grpc-python/1.85 grpc-c/50")])
    again = encoder.encode([*LISTEN, (b"user-agent", b"grpc-python/1.85 grpc-c/50")])
    return b"".join(
        (
            PREFACE,
            raw(SETTINGS, 0, 0, setting(2, 0) + setting(4, 70_000) + setting(5, 1 << 15)),
            raw(WINDOW, 0, 0, number(100_000)),
            raw(HEADERS, END_HEADERS, 1, block),
            raw(DATA, 0, 1, prefixed(b"hello" * 9)),
            raw(SETTINGS, ACK),
            raw(PING, 0, 0, bytes(8)),
            raw(HEADERS, PADDED, 3, b"\x02" + again[:4] + bytes(2)),
            raw(CONTINUATION, END_HEADERS, 3, again[4:]),
            raw(DATA, PADDED, 3, b"\x05" + prefixed(b"hello") + bytes(5)),
            raw(PRIORITY, 0, 3, bytes(5)),
            raw(WINDOW, 0, 3, number(1000)),
            raw(DATA, END_STREAM, 3, prefixed(b"")),
            raw(RESET, 0, 1, number(8)),
            raw(HEADERS, END_HEADERS, 5, encoder.encode(LISTEN)),
            raw(HEADERS, END_HEADERS | END_STREAM, 5, encoder.encode([(b"t", b"v")])),
            raw(GOAWAY, 0, 0, bytes(8)),
        )
    )


GOOD = good_conversation()


class Talkative(Answering):
    """Answers each stream with a message that must wait, and each word with another."""

    def opened(self, stream, headers):
        super().opened(stream, headers)
        self.http2.send(stream, bytes(100_000))

    def data(self, stream, data):
        super().data(stream, data)
        if self.http2.is_ready(stream):
            self.http2.send(stream, data)


def fed(data: bytes, sizes: list[int]) -> None:
    """Nothing but Broken comes out, and what is kept and made ready is bounded."""
    heard = Talkative()
    http2 = heard.http2
    try:
        for piece in cut(data, sizes):
            http2.receive(piece)
            assert len(http2._arrived) <= (1 << 14) + 9
            assert len(http2._header_block[2] if http2._header_block is not None else b"") <= 1 << 14
            assert len(http2._streams) <= 32
            assert len(http2.taken()) <= (3 << 16) + 2 * len(piece)
    except Broken:
        kinds = [kind for kind, *_ in frames(http2.taken())]
        assert kinds[-1] == GOAWAY


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=600), sizes=CHUNKS, start=st.sampled_from([b"", PREFACE, HELLO, HELLO + opened(1)]))
def test_p7_garbage_is_broken_and_nothing_else(data, sizes, start):
    fed(start + data, sizes)


@settings(max_examples=300, deadline=None)
@given(
    pieces=st.lists(
        st.builds(
            raw,
            st.integers(0, 10),
            st.integers(0, 255),
            st.sampled_from([0, 1, 2, 3, 5, 67]),
            st.binary(max_size=20) | st.sampled_from([BLOCK, number(5), bytes(5), bytes(8), setting(4, 9)]),
        ),
        max_size=20,
    ),
    sizes=CHUNKS,
)
def test_p7_frames_of_any_kind_in_any_order_are_taken_or_broken_and_nothing_else(pieces, sizes):
    fed(HELLO + b"".join(pieces), sizes)


@settings(max_examples=700, deadline=None)
@given(at=st.integers(0, len(GOOD) - 1), byte=st.integers(0, 255), sizes=CHUNKS, again=st.integers(1, 3))
def test_p7_a_good_conversation_with_one_byte_changed_is_taken_or_broken_and_nothing_else(at, byte, sizes, again):
    fed(GOOD[:at] + bytes((byte,)) * again + GOOD[at + 1 :], sizes)


@pytest.mark.parametrize(
    "piece",
    [
        lambda: raw(PING, 0, 0, bytes(8)),
        lambda: raw(SETTINGS, 0, 0, setting(4, 1) + setting(4, 2)),
        lambda: raw(WINDOW, 0, 1, number(1)),
        lambda: raw(PRIORITY, 0, 1, bytes(5)),
        lambda: raw(77),
    ],
    ids=["pings", "settings", "windows", "priorities", "unknown"],
)
def test_b_a_flood_of_what_is_allowed_costs_no_more_than_it_sends(piece: Callable[[], bytes]):
    """CVE-2019-9511 to 9515: answers are bounded by questions, as whoever does not read is not read."""
    http2, _ = greeted()
    http2.receive(opened(1))
    http2.taken()
    flood = piece() * 500
    http2.receive(flood)
    assert len(http2.taken()) <= len(flood)
    assert not http2._arrived
