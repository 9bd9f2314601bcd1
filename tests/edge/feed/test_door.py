"""The feed's own door, with gRPC's client and the SDK's: as the door of gRPC, whatever is said at it."""

import queue
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import grpc
import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from hpack import Encoder

from broker.errors import Revoked
from broker.sdk import Identity
from broker.sdk.failures import failure_of
from broker.token.keys import parse_trust
from broker.v1 import feed_pb2, revocations_pb2, status_pb2
from tests.authority import Authority, Issued
from tests.edge.feed.wires import DATA, END_HEADERS, GOAWAY, HEADERS, HELLO, PING, raw
from tests.scripted_verifier import ScriptedVerifier
from tests.served import POLICY, PRINCIPALS, Served, request_id
from tests.waiting import eventually

GATEWAY = PRINCIPALS["gateway"]
LISTEN = "/broker.v1.FeedService/Listen"
ALONE = (("grpc.use_local_subchannel_pool", 1),)
SECRET = "Basic b3BlbiBzZXNhbWUsIHNhaWQgdGhlIHRoaWVm"


@pytest.fixture(scope="module")
def broker(tmp_path_factory) -> Iterator[Served]:
    with Served(tmp_path_factory.mktemp("served"), with_feed_door=True) as served:
        yield served


def doors(broker: Served) -> tuple[str, str]:
    return broker.endpoint, broker.feed_endpoint


def hello(realm: str = "evaluation") -> bytes:
    return feed_pb2.ListenRequest(hello=feed_pb2.Hello(realm=realm, version="test")).SerializeToString()


def said(**message) -> bytes:
    return feed_pb2.ListenRequest(**message).SerializeToString()


def papers_of(issued: Issued) -> grpc.ChannelCredentials:
    return Identity(certificate=issued.certificate, key=issued.key, ca=issued.ca).credentials()


class Listening:
    """A call of raw messages; it reads in a thread until something ends it."""

    def __init__(self, channel: grpc.Channel, *first: bytes, path: str = LISTEN, **options) -> None:
        self.heard: list[feed_pb2.ListenResponse] = []
        self.error: grpc.RpcError | None = None
        self._said: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        for message in first:
            self.say(message)
        self._call = channel.stream_stream(path, None, feed_pb2.ListenResponse.FromString)(
            iter(self._said.get, None), **options
        )
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def say(self, message: bytes | None) -> None:
        """Say it; None ends this side of the stream."""
        self._said.put(message)

    def _read(self) -> None:
        try:
            for message in self._call:
                self.heard.append(message)
        except grpc.RpcError as error:
            self.error = error

    def until_over(self) -> grpc.RpcError | None:
        self._thread.join(10)
        assert not self._thread.is_alive()
        self.say(None)
        return self.error

    def cancel(self) -> None:
        self._call.cancel()
        self.until_over()


@contextmanager
def channel_to(endpoint: str, credentials: grpc.ChannelCredentials, *options) -> Iterator[grpc.Channel]:
    with grpc.secure_channel(endpoint, credentials, options=(*ALONE, *options)) as channel:
        yield channel


def told(error: grpc.RpcError | None) -> tuple[object, ...]:
    """Return all that a caller is told: code, message, and the failure of the details."""
    assert error is not None
    failure = failure_of(error)
    keys = sorted(key for key, _ in error.trailing_metadata() or () if key.startswith("grpc-status"))
    return error.code(), error.details(), type(failure), failure.message, failure.hint, failure.metadata, keys


@dataclass(frozen=True)
class Bad:
    """A call that is refused."""

    says: tuple[bytes, ...] = (hello(),)
    who: str = "gateway"
    metadata: tuple[tuple[str, str], ...] = ()
    ends: bool = False
    code: grpc.StatusCode = grpc.StatusCode.INVALID_ARGUMENT
    words: str = ""
    issue: Callable[[Authority], Issued] | None = field(default=None)


def two_names(authority: Authority) -> Issued:
    names = [x509.UniformResourceIdentifier(GATEWAY), x509.UniformResourceIdentifier(GATEWAY + "-2")]
    return authority._issue("two-names", names, ExtendedKeyUsageOID.CLIENT_AUTH)


UNKNOWN, DENIED = grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED
BAD = {
    "another realm": Bad((hello("research"),), code=DENIED, words="may not listen in this realm"),
    "a realm that is none": Bad((hello("nowhere"),), code=DENIED),
    "no word at all": Bad((), ends=True, words="is not a hello"),
    "an acknowledgement instead of a hello": Bad((said(ack=feed_pb2.Ack(head=1)),), words="is not a hello"),
    "an empty message": Bad((b"",), words="is not a hello"),
    "no message": Bad((b"\xff\xff\xff",), words="is not a message of this method"),
    "no message after a hello": Bad((hello(), b"\x0a\xff"), words="is not a message of this method"),
    "another hello": Bad((hello(), hello()), words="is none of what may follow"),
    "an echo with a short nonce": Bad(
        (hello(), said(echo=feed_pb2.Echo(nonce=bytes(15), verifier_clock_ns=1))), words="15 bytes"
    ),
    "another role": Bad(who="acme", code=DENIED, words="this needs the role"),
    "another role, and no word": Bad((), who="acme", code=DENIED, words="this needs the role"),
    "nobody whom the policy knows": Bad(who="stranger", code=UNKNOWN),
    "a certificate without a name": Bad(
        code=UNKNOWN, words="exactly one URI SAN", issue=lambda authority: authority.client_without_uri()
    ),
    "a certificate with two names": Bad(code=UNKNOWN, words="exactly one URI SAN", issue=two_names),
    "a certificate whose name is no SPIFFE ID": Bad(
        code=UNKNOWN, words="SPIFFE", issue=lambda authority: authority.client("https://lab.example/x%41", name="web")
    ),
    "an authorization beside the certificate": Bad(
        metadata=(("authorization", SECRET),), code=UNKNOWN, words="two identities"
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_p7_whoever_is_refused_is_told_the_same_at_both_doors(broker, name):
    bad = BAD[name]
    issued = bad.issue(broker.authority) if bad.issue is not None else None
    credentials = papers_of(issued) if issued is not None else broker.identity(bad.who).credentials()
    answers = []
    for endpoint in doors(broker):
        with channel_to(endpoint, credentials) as channel:
            call = Listening(channel, *bad.says, *([None] if bad.ends else []), metadata=bad.metadata)
            answers.append(told(call.until_over()))
    assert answers[0] == answers[1]
    assert answers[1][0] is bad.code
    assert bad.words in answers[1][1]
    assert answers[1][-1] == ["grpc-status-details-bin"]


def test_p7_whoever_has_no_certificate_of_the_authority_gets_through_no_handshake(broker, tmp_path):
    elsewhere = Authority(tmp_path).client(GATEWAY)
    without = grpc.ssl_channel_credentials(broker.authority.ca.read_bytes())
    foreign = Identity(certificate=elsewhere.certificate, key=elsewhere.key, ca=broker.authority.ca).credentials()
    for endpoint in doors(broker):
        for credentials in (without, foreign):
            with channel_to(endpoint, credentials) as channel:
                error = Listening(channel, hello()).until_over()
                assert error is not None
                assert error.code() is grpc.StatusCode.UNAVAILABLE


def test_a_certificate_that_has_ended_while_the_connection_lives_is_refused(broker):
    # TLS judges it at the handshake; each call judges it again, as the clock of the broker says.
    ends = datetime.now(UTC) + timedelta(seconds=3)
    short = broker.authority.client(GATEWAY, name="short", not_after=ends)
    with channel_to(broker.feed_endpoint, papers_of(short)) as channel:
        first = Listening(channel, hello())
        eventually(lambda: first.heard, "it listens")
        first.cancel()
        eventually(lambda: datetime.now(UTC) > ends, "it has ended")
        error = Listening(channel, hello()).until_over()
    assert error is not None
    assert error.code() is UNKNOWN
    assert "has ended" in error.details()


def test_t_another_certificate_with_the_same_name_is_refused_whichever_door_each_has_come_by(broker):
    double = papers_of(broker.authority.client(GATEWAY, name="double"))
    answers = []
    for held in doors(broker):
        with channel_to(held, broker.identity("gateway").credentials()) as channel:
            first = Listening(channel, hello())
            eventually(lambda first=first: first.heard, "the first one listens")
            for endpoint in doors(broker):
                with channel_to(endpoint, double) as other:
                    answers.append(told(Listening(other, hello()).until_over()))
            first.cancel()
        eventually(lambda: not listed(broker), "it has gone", within_s=20)
    assert len({str(answer) for answer in answers}) == 1
    assert answers[0][0] is grpc.StatusCode.ALREADY_EXISTS


def listed(broker: Served) -> list[status_pb2.VerifierStatus]:
    every = broker.status().ListVerifiers(status_pb2.ListVerifiersRequest(), timeout=10).verifiers
    return [one for one in every if one.state != "lapsed"]


def test_p7_a_policy_that_drops_a_verifier_ends_its_stream_and_says_why_at_both_doors(broker):
    answers = []
    without = "".join(line for line in POLICY.splitlines(keepends=True) if 'lab.example/gateway"' not in line)
    moved = POLICY.replace(
        'lab.example/gateway", role: verifier, realm: evaluation',
        'lab.example/gateway", role: verifier, realm: research',
    )
    assert len({without, moved, POLICY}) == 3
    for document in (without, moved):
        for endpoint in doors(broker):
            broker.apply(POLICY)
            with channel_to(endpoint, broker.identity("gateway").credentials()) as channel:
                call = Listening(channel, hello())
                eventually(lambda call=call: call.heard, "it listens")
                broker.apply(document)
                answers.append(told(call.until_over()))
    broker.apply(POLICY)
    assert answers[0] == answers[1]
    assert answers[2] == answers[3]
    assert answers[0][0] is UNKNOWN
    assert answers[2][0] is DENIED


@pytest.mark.parametrize(
    "path",
    ["/broker.v1.StatusService/GetStatus", "/broker.v1.FeedService/Listens", "/grpc.health.v1.Health/Check", "/"],
)
def test_p7_the_door_has_the_feed_alone_and_says_where_the_rest_is(broker, path):
    with channel_to(broker.feed_endpoint, broker.identity("admin").credentials()) as channel:
        error = Listening(channel, b"", path=path).until_over()
    assert error is not None
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED
    assert "FeedService/Listen; see server.listen" in error.details()


def test_p7_a_message_over_the_limit_is_refused_before_it_is_read_at_both_doors(broker):
    codes = []
    for endpoint in doors(broker):
        with channel_to(endpoint, broker.identity("gateway").credentials()) as channel:
            error = Listening(channel, hello(), bytes(3 << 20)).until_over()
            assert error is not None
            codes.append(error.code())
    assert codes == [grpc.StatusCode.RESOURCE_EXHAUSTED] * 2


def test_p7_a_message_that_is_compressed_is_refused_with_the_reason(broker):
    with channel_to(broker.feed_endpoint, broker.identity("gateway").credentials()) as channel:
        packed = said(hello=feed_pb2.Hello(realm="evaluation", version="test" * 100))
        error = Listening(channel, packed, compression=grpc.Compression.Gzip).until_over()
    assert error is not None
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED
    assert "not compressed" in error.details()


def test_a_stream_goes_from_hello_to_its_end_as_at_the_door_of_grpc(broker):
    trust = parse_trust(broker.trust().read_text())["evaluation"]
    assert trust
    with channel_to(broker.feed_endpoint, broker.identity("gateway").credentials()) as channel:
        call = Listening(channel, hello())

        def bodies() -> list[feed_pb2.FrameBody]:
            return [feed_pb2.FrameBody.FromString(one.frame.body) for one in list(call.heard) if one.HasField("frame")]

        eventually(lambda: len(bodies()) > 1, "a snapshot and a heartbeat")
        assert bodies()[0].kind == feed_pb2.FRAME_KIND_SNAPSHOT
        call.say(said(echo=feed_pb2.Echo(nonce=bytes(16), verifier_clock_ns=7)))
        eventually(lambda: any(one.HasField("echo") for one in list(call.heard)), "the echo is answered")
        broker.revoke(token="B" * 22)
        eventually(lambda: any("B" * 22 in one.values for body in bodies() for one in body.revocations), "a delta")
        last = bodies()[-1]
        call.say(said(ack=feed_pb2.Ack(head=last.head, incarnation=last.incarnation)))
        eventually(lambda: [one.head for one in listed(broker)] >= [last.head], "it is acknowledged")
        assert listed(broker)[0].address.startswith("ipv4:127.0.0.1:")
        # A gap is answered with a snapshot, as all that was refused.
        before = len(bodies())
        call.say(said(nack=feed_pb2.Nack(reason="FRAME_GAP", head=0)))
        eventually(
            lambda: any(body.kind == feed_pb2.FRAME_KIND_SNAPSHOT for body in bodies()[before:]), "another snapshot"
        )
        call.say(said(leave=feed_pb2.Leave()))
        assert call.until_over() is None
    assert not listed(broker)


def test_whoever_ends_its_side_of_the_stream_ends_it(broker):
    with channel_to(broker.feed_endpoint, broker.identity("gateway").credentials()) as channel:
        call = Listening(channel, hello())
        eventually(lambda: call.heard, "it listens")
        call.say(None)
        assert call.until_over() is None


def test_p4_a_verifier_of_the_sdk_hears_of_a_revocation_and_leaves(broker):
    with broker.verifier() as verifier:
        token = broker.mint()
        broker.until_accepted(verifier, token.token)
        [*_, last] = broker.revoke(wait=True, token=token.id)
        # Those of the tests before are waited for until their leases have run out.
        assert any(one.verifier == GATEWAY and one.acknowledged for one in last.complete.verifiers)
        with pytest.raises(Revoked):
            verifier.verify(token.token, model="mythos")
    assert not listed(broker)


def test_two_streams_share_a_connection_and_the_end_of_one_is_not_that_of_the_other(broker):
    with channel_to(broker.feed_endpoint, broker.identity("gateway").credentials()) as channel:
        first, second = Listening(channel, hello()), Listening(channel, hello())
        eventually(lambda: first.heard and second.heard, "both listen")
        both = listed(broker)
        assert len({one.address for one in both}) == 1
        assert len(both) == 2
        first.say(b"\xff")
        assert first.until_over() is not None
        before = len(second.heard)
        eventually(lambda: len(second.heard) > before + 1, "the other goes on")
        second.cancel()


@contextmanager
def dialled(broker: Served, name: str = "gateway", alpn: str = "h2", **options) -> Iterator[ssl.SSLSocket]:
    context = ssl.create_default_context(cafile=str(broker.authority.ca))
    papers = broker.papers[name]
    context.load_cert_chain(papers.certificate, papers.key)
    if alpn:
        context.set_alpn_protocols([alpn])
    for option, value in options.items():
        setattr(context, option, value)
    with (
        socket.create_connection(("127.0.0.1", broker.feed_port), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as dialled,
    ):
        yield dialled


def all_of(dialled: ssl.SSLSocket) -> bytes:
    """Return all that comes until the other side closes."""
    found = b""
    with suppress(ConnectionResetError, BrokenPipeError):
        while piece := dialled.recv(1 << 16):
            found += piece
    return found


def test_p7_tls_1_2_is_refused(broker):
    with pytest.raises(ssl.SSLError, match=r"(?i)protocol"), dialled(broker, maximum_version=ssl.TLSVersion.TLSv1_2):
        pass


@pytest.mark.parametrize("alpn", ["", "http/1.1"])
def test_p7_whoever_does_not_want_http2_is_sent_away(broker, alpn):
    # What it says is not even read; OpenSSL may refuse it in the handshake.
    with suppress(ssl.SSLError), dialled(broker, alpn=alpn) as client:
        client.sendall(HELLO)
        assert all_of(client) == b""


@pytest.mark.parametrize(
    "words",
    [b"GET / HTTP/1.1\r\n\r\n", HELLO + b"\xff" * 5000, HELLO + raw(PING, 0, 1, bytes(8))],
    ids=["another protocol", "garbage", "a frame that is wrong"],
)
def test_p7_garbage_ends_its_own_connection_with_a_reason_and_no_other(broker, words):
    with (
        channel_to(broker.feed_endpoint, broker.identity("gateway").credentials()) as channel,
        dialled(broker) as garbling,
    ):
        call = Listening(channel, hello())
        eventually(lambda: call.heard, "it listens")
        garbling.sendall(words)
        assert raw(GOAWAY, 0, 0, bytes(8))[3:9] in all_of(garbling)
        before = len(call.heard)
        eventually(lambda: len(call.heard) > before, "the other goes on")
        call.cancel()
    assert "a defect" not in broker.log.read_text()


def test_a_plain_word_instead_of_a_handshake_ends_that_connection(broker):
    with socket.create_connection(("127.0.0.1", broker.feed_port), timeout=10) as plain:
        plain.sendall(b"hello?" * 10)
        with suppress(ConnectionResetError):
            while plain.recv(1000):
                pass


def test_p12_nothing_of_a_header_gets_into_the_log_at_any_level(broker):
    assert 'level = "debug"' in (broker.folder / "broker.toml").read_text()
    with channel_to(broker.feed_endpoint, broker.identity("gateway").credentials()) as channel:
        call = Listening(channel, hello(), metadata=(("x-kept", SECRET),))
        eventually(lambda: call.heard, "it listens")
        call.cancel()
        refused = Listening(channel, hello(), metadata=(("authorization", SECRET),)).until_over()
    assert refused is not None
    assert refused.code() is UNKNOWN
    eventually(lambda: "two identities" in broker.log.read_text(), "the refusal is logged")
    assert SECRET not in broker.log.read_text()
    assert SECRET.removeprefix("Basic ") not in broker.log.read_text()


def test_a_snapshot_far_larger_than_a_small_window_arrives_whole(broker):
    tokens = [f"{number:06d}{request_id()[:16]}" for number in range(30_000)]
    for start in range(0, len(tokens), 10_000):
        request = revocations_pb2.RevokeTokensRequest(
            request_id=request_id(), realm="evaluation", tokens=tokens[start : start + 10_000], reason="a test"
        )
        list(broker.revocations().RevokeTokens(request, timeout=60))
    small = (
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", 5000),
        ("grpc.max_receive_message_length", 8 << 20),
    )
    with (
        channel_to(broker.feed_endpoint, broker.identity("gateway").credentials(), *small) as channel,
        broker.verifier() as verifier,
    ):
        call = Listening(channel, hello())
        found: set[str] = set()

        def is_whole() -> bool:
            for one in list(call.heard):
                for revocation in feed_pb2.FrameBody.FromString(one.frame.body).revocations:
                    found.update(revocation.values)
            return found.issuperset(tokens)

        eventually(is_whole, "all of it", within_s=60)
        assert verifier.state().revocations >= len(tokens)
        # And deltas come after it.
        broker.revoke(token="C" * 22)
        eventually(lambda: is_whole() and "C" * 22 in found, "a delta")
        call.cancel()


def test_b_many_streams_that_begin_and_end_leave_nothing_behind(broker):
    with channel_to(broker.feed_endpoint, broker.identity("gateway").credentials()) as channel:
        for turn in range(60):
            call = Listening(channel, hello())
            eventually(lambda call=call: call.heard, "it listens")
            if turn % 2:
                call.cancel()
            else:
                call.say(said(leave=feed_pb2.Leave()))
                assert call.until_over() is None
    eventually(lambda: not listed(broker), "all have gone")
    assert "a defect" not in broker.log.read_text()


def test_a_broker_that_ends_is_taken_for_one_that_restarts_and_the_sdk_comes_back_by_itself(broker):
    assert broker.process is not None
    scripted = ScriptedVerifier(broker.feed_endpoint, broker.identity("gateway-research"), realm="research")
    with scripted, broker.verifier() as verifier:
        eventually(lambda: scripted.head, "it listens")
        broker.process.terminate()
        assert scripted.over.wait(10)
        assert scripted.error is not None
        assert scripted.error.code() is grpc.StatusCode.UNAVAILABLE
        eventually(lambda: verifier.state().problem, "it is told")
        print(scripted.error.details(), "|", verifier.state().problem)
        broker.process.wait(10)
        broker.start()
        token = broker.mint()
        broker.until_accepted(verifier, token.token)


def test_a_broken_connection_is_forgotten_at_once(broker):
    with dialled(broker) as client:
        block = Encoder().encode(
            [(":method", "POST"), (":path", LISTEN), ("content-type", "application/grpc"), ("te", "trailers")]
        )
        message = hello()
        client.sendall(
            HELLO + raw(HEADERS, END_HEADERS, 1, block) + raw(DATA, 0, 1, bytes((0, 0, 0, 0, len(message))) + message)
        )
        eventually(lambda: len(listed(broker)) == 1, "it listens")
    eventually(lambda: not listed(broker), "it is gone")
