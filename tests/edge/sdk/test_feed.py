"""A verifier on a real connection: what a broker sends, withholds and garbles."""

import os
import time
from datetime import UTC, datetime, timedelta

import pytest

from broker.errors import ConfigInvalid, Revoked, Stale, StoreCorrupt
from broker.sdk import Identity
from broker.sdk.opening import MAX_BODY_BYTES
from broker.token.keys import Purpose, render_trust
from broker.v1 import feed_pb2
from tests.authority import Authority
from tests.feed_server import FeedServer, boottime_ns, eventually
from tests.realm_keys import RealmKeys, entry

S = 1_000_000_000


def is_stale(verifier, token: str) -> bool:
    try:
        verifier.verify(token, "mythos")
    except Stale:
        return True
    return False


def test_a_token_is_accepted_and_after_a_revocation_refused(server, verifier, keys):
    token = keys.mint()
    assert verifier.verify(token, "mythos").claims.partner == "acme"
    index = server.revoke(partner="acme")
    eventually(lambda: server.acked_head > index, "the acknowledgement")
    with pytest.raises(Revoked):
        verifier.verify(token, "mythos")
    # P4: a token that was minted later is alive.
    verifier.verify(keys.mint(idx=index + 1), "mythos")


def test_p4_after_an_acknowledgement_no_verification_accepts(server, verifier, keys):
    for number in range(20):
        token = keys.mint(user=f"user-{number}", sub=f"acme/user/user-{number}")
        verifier.verify(token, "mythos")
        index = server.revoke(user=f"user-{number}")
        while server.acked_head <= index:
            os.sched_yield()
        with pytest.raises(Revoked):
            verifier.verify(token, "mythos")


def test_the_state_says_how_the_verifier_is(server, verifier, keys):
    server.revoke(user="bob")
    eventually(lambda: verifier.state().head == 11, "the head")
    state = verifier.state()
    assert (state.realm, state.incarnation, state.revocations, state.keys) == ("evaluation", "ledger-1", 1, 1)
    assert (state.endpoint, state.problem, state.uses) == (server.endpoint, "", 0)
    assert state.is_fresh
    assert 0 < state.fresh_for_s <= 1


def test_the_broker_learns_who_listens_and_where_it_is(server, verifier):
    stream = server.streams[0]
    assert stream.peer == "spiffe://example.org/verifier/one"
    assert stream.hello.realm == "evaluation"
    assert stream.hello.version
    assert len({bytes(echo.nonce) for echo in stream.echoes}) == len(stream.echoes)
    # A heartbeat is acknowledged now and then, not each.
    eventually(lambda: len(stream.acks) >= 3, "acknowledgements")
    eventually(lambda: len(stream.echoes) >= 2, "a second echo")


def test_p5_a_silent_broker_is_believed_for_a_lease_and_no_longer(server, verifier, keys):
    token = keys.mint()
    verifier.verify(token, "mythos")
    server.heartbeats = server.sends_snapshot = False
    silent_ns = boottime_ns()
    last_accepted_ns = silent_ns
    while not is_stale(verifier, token):
        last_accepted_ns = boottime_ns()
        os.sched_yield()
    # The last frame may have been read just before; none was read later.
    assert last_accepted_ns - silent_ns < server.lease_ms * 1_000_000
    assert not verifier.state().is_fresh
    server.heartbeats = True
    verifier.wait_fresh(10)
    verifier.verify(token, "mythos")


def test_p5_a_broker_that_withholds_its_clock_earns_no_lease(server, connect):
    server.answers_echoes = False
    verifier = connect(server)
    eventually(lambda: verifier.state().head == 10, "the snapshot")
    with pytest.raises(Stale, match=r"not fresh after 0\.2 s"):
        verifier.wait_fresh(0.2)
    eventually(lambda: len(server.streams) > 1, "another try")
    server.answers_echoes = True
    verifier.wait_fresh(10)


def test_a_restarted_broker_is_followed_on_with_a_new_echo(server, verifier, keys):
    server.stop()
    eventually(lambda: not verifier.state().is_fresh, "the end of the lease")
    assert server.endpoint in verifier.state().problem
    server.boot = "boot-2"
    server.start()
    verifier.wait_fresh(10)
    index = server.revoke(partner="acme")
    eventually(lambda: server.acked_head > index, "the acknowledgement")
    assert server.streams[-1].hello.head == 10


def test_another_endpoint_is_asked_when_one_is_dead(server, connect):
    verifier = connect(f"localhost:1, {server.endpoint}")
    verifier.wait_fresh(10)
    assert verifier.state().endpoint == server.endpoint


def test_a_broker_that_hangs_is_left_for_another(server, keys, server_certificate, connect):
    with FeedServer(keys, server_certificate) as silent:
        silent.heartbeats = silent.sends_snapshot = silent.answers_echoes = False
        verifiers = [connect(f"{silent.endpoint},{server.endpoint}") for _ in range(4)]
        for verifier in verifiers:
            verifier.wait_fresh(10)
            assert verifier.state().endpoint == server.endpoint


def spoilt(server: FeedServer, keys: RealmKeys) -> dict[str, tuple[bytes, str]]:
    forked = server.body(incarnation="ledger-2")
    return {
        "garbage": (b"\xff\xff\xff", "FRAME_MALFORMED"),
        "empty": (b"", "FRAME_MALFORMED"),
        "oversize": (b"\0" * (MAX_BODY_BYTES + (64 << 10)), "FRAME_TOO_LARGE"),
        "other-key": (RealmKeys.of_today().delta(), "FRAME_UNTRUSTED"),
        "other-purpose": (keys.signed_frame(server.body(), by=keys.certified(Purpose.TOKEN)), "FRAME_UNTRUSTED"),
        "other-realm": (keys.signed_frame(server.body(realm="production")), "FRAME_WRONG_REALM"),
        "gap": (keys.signed_frame(server.body(previous_head=90, head=91)), "FRAME_GAP"),
        "behind": (keys.signed_frame(server.body(previous_head=2, head=3)), "FRAME_BEHIND"),
        "forked": (keys.signed_frame(forked), "FRAME_FORKED"),
        "bad-entry": (
            keys.signed_frame(server.body(head=11, revocations=[feed_pb2.FeedRevocation(index=10)])),
            "FRAME_MALFORMED",
        ),
    }


@pytest.mark.parametrize(
    "how",
    [
        "garbage",
        "empty",
        "oversize",
        "other-key",
        "other-purpose",
        "other-realm",
        "gap",
        "behind",
        "forked",
        "bad-entry",
    ],
)
def test_p7_a_bad_frame_is_refused_and_reported_and_the_last_good_state_stays(how, server, verifier, keys):
    index = server.revoke(user="al")
    eventually(lambda: verifier.state().head == index + 1, "the head")
    message, reason = spoilt(server, keys)[how]
    server.send(message)
    eventually(lambda: reason in server.nack_reasons(), "the refusal")
    assert verifier.state().head == index + 1
    assert verifier.state().revocations == 1
    # And it goes on from there.
    eventually(lambda: len(server.streams) > 1, "a new stream")
    verifier.wait_fresh(10)
    later = server.revoke(user="bob")
    eventually(lambda: server.acked_head > later, "the acknowledgement")


def test_p7_a_message_that_grpc_itself_refuses_ends_the_stream_and_nothing_else(server, verifier, keys):
    server.send(b"\0" * (8 << 20))
    eventually(lambda: len(server.streams) > 1, "a new stream")
    verifier.wait_fresh(10)
    verifier.verify(keys.mint(), "mythos")


def test_p5_a_frame_of_an_old_broker_process_extends_nothing(server, verifier, keys):
    server.heartbeats = False
    ends = verifier._follower.state.accept_until_ns
    server.send(keys.signed_frame(server.body(boot="boot-0")))
    eventually(lambda: verifier._follower.state.boot == "boot-0", "the frame")
    assert verifier._follower.state.accept_until_ns == ends


def test_a_kept_snapshot_behind_the_verifier_does_no_harm(server, verifier, keys):
    old = server.snapshot()
    index = server.revoke(partner="acme")
    eventually(lambda: server.acked_head > index, "the acknowledgement")
    server.send(old)
    bridge = server.body(previous_head=10, revocations=server.entries)
    server.send(keys.signed_frame(bridge))
    later = server.revoke(user="al")
    eventually(lambda: server.acked_head > later, "the acknowledgement")
    assert server.nack_reasons() == []
    assert verifier.state().head == later + 1


def test_p8_a_client_certificate_of_another_authority_hears_nothing(server, connect, tmp_path):
    stranger = Authority(tmp_path / "other").client("spiffe://example.org/verifier/one")
    for identity in (
        Identity(stranger.certificate, stranger.key, server._issued.ca),  # the broker refuses it
        Identity(stranger.certificate, stranger.key, stranger.ca),  # it refuses the broker
        None,
    ):
        verifier = connect(server, identity=identity)
        eventually(lambda one=verifier: server.endpoint in one.state().problem, "the problem")
        assert not verifier.state().is_fresh
    assert server.streams == []


def test_a_renewed_certificate_is_taken_up_at_the_next_connection(server, connect, authority):
    yesterday = datetime.now(UTC) - timedelta(days=1)
    first = authority.client("spiffe://example.org/verifier/two", name="two", not_before=yesterday)
    verifier = connect(server, identity=Identity(first.certificate, first.key, first.ca))
    verifier.wait_fresh(10)
    authority.client("spiffe://example.org/verifier/renewed", name="two")
    server.stop()
    server.start()
    eventually(lambda: server.streams[-1].peer.endswith("/renewed"), "the new certificate")


def test_files_that_vanish_are_a_problem_and_no_crash(server, connect, authority):
    issued = authority.client("spiffe://example.org/verifier/three")
    verifier = connect(server, identity=Identity(issued.certificate, issued.key, issued.ca))
    verifier.wait_fresh(10)
    issued.key.unlink()
    server.stop()
    server.start()
    eventually(lambda: str(issued.key) in verifier.state().problem, "the problem")


def test_the_mark_is_on_disk_before_a_frame_is_acknowledged(server, connect, state_dir, keys):
    verifier = connect(server, state_dir=state_dir)
    verifier.wait_fresh(10)
    file = state_dir / "evaluation.mark"
    seen: list[tuple[int, int]] = []
    stream = server.streams[-1]

    class Watched(list):  # called in the server's thread, as the acknowledgement arrives
        def append(self, ack):
            seen.append((ack.head, verifier._remembered.load().head))
            super().append(ack)

    stream.acks = Watched()
    for number in range(10):
        index = server.revoke(user=f"user-{number}")
        eventually(lambda at=index: server.acked_head > at, "the acknowledgement")
    assert all(kept >= acked for acked, kept in seen)
    assert [acked for acked, _ in seen if acked == 20]
    # Heartbeats alone do not wear the disk.
    inode, acks = file.stat().st_ino, len(seen)
    eventually(lambda: len(seen) > acks + 3, "acknowledged heartbeats")
    assert file.stat().st_ino == inode


def test_a_mark_that_cannot_be_kept_is_not_acknowledged(server, connect, state_dir):
    verifier = connect(server, state_dir=state_dir)
    verifier.wait_fresh(10)
    eventually(lambda: server.acked_head == 10, "the acknowledgement")
    file = state_dir / "evaluation.mark"
    kept = file.read_bytes()
    file.write_bytes(b"damaged")
    index = server.revoke(user="al")
    eventually(lambda: "cannot keep" in verifier.state().problem, "the problem")
    assert verifier.state().head == index + 1
    assert server.acked_head == index
    file.write_bytes(kept)
    eventually(lambda: server.acked_head == index + 1, "the acknowledgement")


def test_a_restarted_verifier_refuses_a_feed_that_is_behind_it(server, connect, state_dir, keys):
    first = connect(server, state_dir=state_dir)
    first.wait_fresh(10)
    index = server.revoke(partner="acme")
    eventually(lambda: server.acked_head > index, "the acknowledgement")
    first.close()
    kept, server.entries, server.head = server.entries, [], index
    second = connect(server, state_dir=state_dir)
    eventually(lambda: "FRAME_BEHIND" in second.state().problem, "the refusal")
    with pytest.raises(Stale):
        second.verify(keys.mint(), "mythos")
    server.entries, server.head = kept, index + 1
    second.wait_fresh(10)
    with pytest.raises(Revoked):
        second.verify(keys.mint(), "mythos")


def test_a_restored_backup_is_refused_until_an_admin_removes_the_state(server, connect, state_dir):
    first = connect(server, state_dir=state_dir)
    first.wait_fresh(10)
    eventually((state_dir / "evaluation.mark").exists, "the mark")
    first.close()
    server.incarnation = "ledger-2"
    second = connect(server, state_dir=state_dir)
    eventually(lambda: "FRAME_FORKED" in second.state().problem, "the refusal")
    assert "this is another ledger" in second.state().problem
    second.close()
    (state_dir / "evaluation.mark").unlink()
    connect(server, state_dir=state_dir).wait_fresh(10)


def test_p7_a_damaged_mark_is_an_error_at_once(server, connect, state_dir):
    state_dir.mkdir()
    (state_dir / "evaluation.mark").write_bytes(b"{}")
    with pytest.raises(StoreCorrupt, match="is damaged"):
        connect(server, state_dir=state_dir)


def test_a_folder_that_cannot_be_written_to_is_an_error_at_once(server, connect, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(ConfigInvalid, match="state_dir"):
        connect(server, state_dir=file / "inside")


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"trust": "/nowhere/trust.json"}, "trust: /nowhere/trust.json"),
        ({"realm": "production"}, "says nothing of realm 'production'"),
        ({"max_lease_s": 0}, "max_lease_s"),
        ({"max_lease_s": float("nan")}, "max_lease_s"),
        ({"identity": Identity("/nowhere/c", "/nowhere/k", "/nowhere/ca")}, "/nowhere/c"),
    ],
)
def test_p7_what_cannot_work_is_an_error_at_once(options, complaint, server, connect):
    with pytest.raises(ConfigInvalid, match=complaint):
        connect(server, **options)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"realms": {}}', "\udc80"])
def test_p7_a_trust_file_that_is_none_is_an_error_at_once(text, server, connect, tmp_path):
    (tmp_path / "trust.json").write_text(text, "utf-8", errors="surrogateescape")
    with pytest.raises(ConfigInvalid):
        connect(server, trust=tmp_path / "trust.json")


@pytest.mark.parametrize("endpoint", ["", " , ", []])
def test_no_endpoint_is_an_error_at_once(endpoint, connect):
    with pytest.raises(ConfigInvalid, match="endpoint"):
        connect(endpoint)


def test_a_trust_file_is_read(server, connect, keys, tmp_path):
    (tmp_path / "trust.json").write_text(render_trust([RealmKeys("production").trust, keys.trust]))
    connect(server, trust=str(tmp_path / "trust.json")).wait_fresh(10)


def test_a_shortened_lease_is_kept_to(server, connect):
    verifier = connect(server, max_lease_s=0.5)
    verifier.wait_fresh(10)
    assert verifier.state().fresh_for_s <= 0.5


async def _wait(verifier, timeout_s: float) -> None:
    await verifier.wait_fresh_async(timeout_s)


def test_asyncio_waits_for_freshness_too(server, connect):
    import asyncio

    asyncio.run(_wait(connect(server), 10))
    with pytest.raises(Stale, match="not fresh"):
        asyncio.run(_wait(connect("localhost:1"), 0.1))
    closed = connect(server)
    closed.close()
    with pytest.raises(Stale, match="closed"):
        asyncio.run(_wait(closed, 10))
    with pytest.raises(Stale, match="closed"):
        closed.wait_fresh(10)


def test_p7_a_closed_verifier_accepts_nothing(server, verifier, keys):
    token = keys.mint()
    verifier.verify(token, "mythos")
    with verifier:
        pass
    with pytest.raises(Stale, match="closed"):
        verifier.verify(token, "mythos")
    eventually(lambda: server.listening == 0, "the end of the stream")


def test_a_key_that_the_feed_brings_is_trusted_at_once(server, verifier, keys):
    new = keys.certified(Purpose.TOKEN)
    server.send(keys.signed_frame(server.body(keys=[new.certificate])))
    eventually(lambda: verifier.state().keys == 2, "the key")
    verifier.verify(keys.mint(by=new), "mythos")


def test_a_large_snapshot_in_parts_is_applied(keys, server_certificate, connect):
    with FeedServer(keys, server_certificate, lease_ms=3000) as server:
        server.head = 30_010
        server.sends_snapshot = False
        verifier = connect(server)
        eventually(lambda: server.listening, "the stream")
        stamp = {"kind": feed_pb2.FRAME_KIND_SNAPSHOT, "previous_head": 0, "parts": 3, "as_of_ns": boottime_ns()}
        stamp["wall_ms"] = int(time.time() * 1000)
        server.heartbeats = False
        for part in range(3):
            entries = [entry(10 + n, user=f"user-{n}") for n in range(part, 30_000, 3)]
            server.send(
                keys.signed_frame(
                    server.body(part=part, revocations=entries, keys=[] if part else server.token_keys, **stamp)
                )
            )
        server.heartbeats = True
        verifier.wait_fresh(10)
        assert verifier.state().revocations == 30_000


def test_a_broker_under_load_may_answer_late(server, connect, keys):
    """A question asked again would make the first answer one that was not asked for, and end a good stream."""
    server.echo_delay_s = 0.5
    verifier = connect(server)
    verifier.wait_fresh(10)
    verifier.verify(keys.mint(), "mythos")
    assert len(server.streams) == 1
    assert server.nack_reasons() == []
