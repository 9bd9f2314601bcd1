"""The follower: every rule of a frame, alone."""

from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from broker.errors import (
    FrameBehind,
    FrameForked,
    FrameGap,
    FrameRefused,
    FrameTooLarge,
    FrameUntrusted,
    FrameWrongRealm,
)
from broker.sdk.following import NEVER_NS, Follower, Mark
from broker.sdk.opening import MAX_BODY_BYTES, MAX_MESSAGE_BYTES
from broker.token.keys import Purpose
from broker.token.lease import EchoPoint, accept_until_ns
from broker.token.revocation import Dimension, facts_of
from broker.v1 import feed_pb2
from tests.realm_keys import NOW_S, RealmKeys, entry

S = 1_000_000_000
KEYS = RealmKeys()
NONCE = b"n" * 16


def follower(**options) -> Follower:
    return Follower(KEYS.trust, **options)


def echoed(one: Follower, *, c1: int, s1: int, boot: str = "boot-1") -> None:
    one.ask_echo(NONCE, c1)
    one.take(KEYS.echo(boot=boot, nonce=NONCE, verifier_clock_ns=c1, broker_clock_ns=s1), c1 + S // 100)


def fresh() -> Follower:
    """At head 10; the broker's clock is at 1 s when the verifier's is at 100 s."""
    one = follower()
    echoed(one, c1=100 * S, s1=1 * S)
    one.take(KEYS.snapshot(), 100 * S + S // 100)
    return one


def kills(one: Follower, *, idx: int = 5, kid: str | None = None, **changed) -> bool:
    facts = facts_of(KEYS.claims(**changed), kid or KEYS.token.kid, "mythos")
    return one.state.matcher.find(facts, idx) is not None


def refused(one: Follower, message: bytes, why: type[FrameRefused], at_ns: int = 101 * S) -> None:
    """The message is refused for exactly this reason, and the last good state stays (P7)."""
    before, size, mark = one.state, len(one.state.matcher), one.mark
    with pytest.raises(FrameRefused) as caught:
        one.take(message, at_ns)
    assert type(caught.value) is why
    assert one.state is before
    assert len(one.state.matcher) == size
    assert one.mark == mark


def test_p7_nothing_is_in_force_before_the_first_snapshot():
    state = follower().state
    assert (state.head, state.time, state.accept_until_ns) == (0, None, NEVER_NS)


def test_a_snapshot_puts_head_keys_revocations_and_lease_in_force():
    one = follower()
    echoed(one, c1=100 * S, s1=1 * S)
    step = one.take(KEYS.snapshot(revocations=[entry(9, partner="acme")]), 100 * S + S // 100)
    assert step.in_force
    assert step.has_contents
    assert one.state.head == 10
    assert set(one.state.keys) == {KEYS.token.kid}
    assert kills(one)
    assert not kills(one, idx=9)
    # The lease follows the broker's clock through the echo, less drift, and not the arrival.
    assert one.state.accept_until_ns == accept_until_ns(EchoPoint("boot-1", 100 * S, 1 * S), 1 * S, 5 * S)
    assert one.mark == Mark("ledger-1", 10, NOW_S * 1000)


def test_a_delta_adds_to_the_state_and_moves_the_head():
    one = fresh()
    step = one.take(KEYS.delta(previous_head=10, head=12, revocations=[entry(11, user="bob")]), 101 * S)
    assert step.in_force
    assert step.has_contents
    assert one.state.head == 12
    assert kills(one)


def test_a_heartbeat_extends_the_lease_and_has_no_contents():
    one = fresh()
    before = one.state.accept_until_ns
    step = one.take(KEYS.delta(as_of_ns=2 * S), 101 * S)
    assert step.in_force
    assert not step.has_contents
    assert S * 99 // 100 < one.state.accept_until_ns - before <= S


def test_p5_a_delayed_frame_extends_nothing():
    late, early = fresh(), fresh()
    beat = KEYS.delta(as_of_ns=2 * S)
    early.take(beat, 101 * S)
    late.take(beat, 500 * S)
    assert late.state.accept_until_ns == early.state.accept_until_ns


def test_p5_a_frame_extends_nothing_before_an_echo_of_its_broker_process():
    one = follower()
    one.take(KEYS.snapshot(), 100 * S)
    assert one.state.head == 10
    assert one.needs_echo
    assert one.state.accept_until_ns == NEVER_NS
    echoed(one, c1=101 * S, s1=2 * S)
    assert not one.needs_echo
    assert one.state.accept_until_ns == accept_until_ns(EchoPoint("boot-1", 101 * S, 2 * S), 1 * S, 5 * S)


def test_p5_a_new_broker_process_needs_a_new_echo_and_takes_away_no_lease():
    one = fresh()
    before = one.state.accept_until_ns
    one.take(KEYS.delta(boot="boot-2", as_of_ns=900 * S), 102 * S)
    assert one.needs_echo
    assert one.state.accept_until_ns == before
    echoed(one, c1=103 * S, s1=901 * S, boot="boot-2")
    assert one.state.accept_until_ns == accept_until_ns(EchoPoint("boot-2", 103 * S, 901 * S), 900 * S, 5 * S)


def test_an_echo_of_another_broker_process_extends_nothing():
    one = follower()
    echoed(one, c1=100 * S, s1=1 * S, boot="boot-2")
    one.take(KEYS.snapshot(), 100 * S)
    assert one.state.accept_until_ns == NEVER_NS


def test_the_best_of_the_last_echoes_counts():
    one = fresh()
    before = one.state.accept_until_ns
    echoed(one, c1=101 * S, s1=5 * S)  # three seconds late on its way to the broker
    assert one.state.accept_until_ns == before
    one.take(KEYS.delta(as_of_ns=2 * S), 101 * S)
    assert one.state.accept_until_ns == accept_until_ns(EchoPoint("boot-1", 100 * S, 1 * S), 2 * S, 5 * S)


def test_p5_an_echo_that_was_not_asked_for_is_refused():
    one = fresh()
    good = {"boot": "boot-1", "nonce": NONCE, "verifier_clock_ns": 100 * S, "broker_clock_ns": 1}
    refused(one, KEYS.echo(**good), FrameUntrusted)  # answered once already
    one.ask_echo(NONCE, 101 * S)
    refused(one, KEYS.echo(**good), FrameUntrusted)  # another instant
    refused(one, KEYS.echo(**{**good, "verifier_clock_ns": 101 * S, "nonce": b"m" * 16}), FrameUntrusted)
    refused(one, KEYS.echo(**{**good, "verifier_clock_ns": 101 * S, "boot": ""}), FrameRefused)
    one.begin_stream()
    refused(one, KEYS.echo(**{**good, "verifier_clock_ns": 101 * S}), FrameUntrusted)  # asked on another stream


def test_p8_an_echo_of_another_realm_is_refused():
    one = fresh()
    one.ask_echo(NONCE, 101 * S)
    fields = {"nonce": NONCE, "verifier_clock_ns": 101 * S, "broker_clock_ns": 1}
    refused(one, KEYS.echo(realm="production", **fields), FrameWrongRealm)
    refused(one, RealmKeys("production").echo(realm="evaluation", **fields), FrameUntrusted)


def test_an_echo_with_a_garbled_body_is_refused():
    one = fresh()
    data = b"\xff\xff"
    message = feed_pb2.ListenResponse(
        echo=feed_pb2.SignedEcho(
            body=data, signature=_signature(b"broker.v1.EchoBody\x00" + data), certificate=KEYS.feed.certificate
        )
    ).SerializeToString()
    refused(one, message, FrameRefused)


def test_p5_a_broker_clock_from_the_future_gains_nothing():
    one = fresh()
    one.take(KEYS.delta(as_of_ns=1_000_000 * S), 101 * S)
    assert one.state.accept_until_ns <= (101 + 5) * S


def test_the_verifier_may_shorten_the_lease_and_never_lengthen_it():
    for own_ms, expected in ((2000, 2 * S), (60_000, 5 * S)):
        one = follower(max_lease_ms=own_ms)
        echoed(one, c1=100 * S, s1=1 * S)
        one.take(KEYS.snapshot(), 100 * S + S // 100)
        assert one.state.accept_until_ns == accept_until_ns(EchoPoint("boot-1", 100 * S, 1 * S), 1 * S, expected)


def test_p5_a_shorter_lease_does_not_call_back_an_earned_one_and_an_old_frame_neither():
    one = fresh()
    one.take(KEYS.delta(as_of_ns=3 * S), 102 * S)
    earned, at = one.state.accept_until_ns, one.state.time
    one.take(KEYS.delta(as_of_ns=2 * S), 103 * S)
    assert one.state.accept_until_ns == earned
    assert one.state.time == at


@pytest.mark.parametrize("lease_ms", [0, 60_001, 2**32 - 1])
def test_p5_an_impossible_lease_is_refused(lease_ms):
    refused(fresh(), KEYS.delta(lease_ms=lease_ms), FrameRefused)


@pytest.mark.parametrize(
    "fields",
    [
        {"incarnation": ""},
        {"incarnation": "x" * 129},
        {"boot": ""},
        {"boot": "x" * 129},
        {"wall_ms": 0},
        {"wall_ms": -1},
        {"kind": feed_pb2.FRAME_KIND_UNSPECIFIED},
        {"kind": 7},
        {"previous_head": 10, "head": 9},
    ],
)
def test_a_frame_that_breaks_the_form_is_refused(fields):
    refused(fresh(), KEYS.delta(**fields), FrameRefused)


def test_too_large_is_refused_before_anything_is_parsed():
    refused(fresh(), b"\xff" * (MAX_MESSAGE_BYTES + 1), FrameTooLarge)
    body = b"\xff" * (MAX_BODY_BYTES + 1)
    frame = feed_pb2.ListenResponse(frame=feed_pb2.SignedFrame(body=body)).SerializeToString()
    assert len(frame) <= MAX_MESSAGE_BYTES
    refused(fresh(), frame, FrameTooLarge)


@pytest.mark.parametrize("message", [b"", b"\xff", b"\x0a\xff", feed_pb2.ListenResponse().SerializeToString()])
def test_garbage_is_refused(message):
    refused(fresh(), message, FrameRefused)


def test_a_garbled_body_that_is_well_signed_is_refused():
    data = b"\xff\xff"
    frame = feed_pb2.SignedFrame(
        body=data, signature=_signature(b"broker.v1.FrameBody\x00" + data), certificate=KEYS.feed.certificate
    )
    refused(fresh(), feed_pb2.ListenResponse(frame=frame).SerializeToString(), FrameRefused)


def test_p8_frames_for_or_from_another_realm_are_refused():
    refused(fresh(), KEYS.delta(realm="production"), FrameWrongRealm)
    refused(fresh(), RealmKeys("production").delta(realm="evaluation"), FrameUntrusted)
    refused(fresh(), RealmKeys("evaluation").delta(), FrameUntrusted)  # another root


@pytest.mark.parametrize("purpose", [Purpose.TOKEN, Purpose.COMPLETION])
def test_p8_a_key_for_another_purpose_does_not_sign_frames(purpose):
    refused(fresh(), KEYS.signed_frame(KEYS.body(), by=KEYS.certified(purpose)), FrameUntrusted)


def test_p8_a_feed_key_does_not_sign_tokens():
    refused(fresh(), KEYS.delta(keys=[KEYS.feed.certificate]), FrameUntrusted)


def test_a_wrong_signature_is_refused_and_an_echo_is_no_frame():
    data = KEYS.body().SerializeToString()
    for signature in (
        b"",
        b"\0" * 64,
        _signature(data),
        _signature(b"broker.v1.EchoBody\x00" + data),
        KEYS.feed.private.sign(b"broker.v1.FrameBody\x00" + data, _es256()),  # DER
    ):
        frame = feed_pb2.SignedFrame(body=data, signature=signature, certificate=KEYS.feed.certificate)
        refused(fresh(), feed_pb2.ListenResponse(frame=frame).SerializeToString(), FrameUntrusted)
    frame = feed_pb2.SignedFrame(
        body=data, signature=_signature(b"broker.v1.FrameBody\x00" + data), certificate="a.b.c"
    )
    refused(fresh(), feed_pb2.ListenResponse(frame=frame).SerializeToString(), FrameUntrusted)


def test_a_feed_key_signs_only_in_its_time():
    one = fresh()
    past = KEYS.certified(Purpose.FEED, not_before=NOW_S - 100, signs_until=NOW_S - 50, expires=NOW_S + 100)
    future = KEYS.certified(Purpose.FEED, not_before=NOW_S + 50)
    refused(one, KEYS.signed_frame(KEYS.body(), by=past), FrameUntrusted)
    refused(one, KEYS.signed_frame(KEYS.body(), by=future), FrameUntrusted)


def test_a_thief_of_an_ended_feed_key_cannot_choose_a_wall_clock_at_which_it_was_good():
    stolen = KEYS.certified(Purpose.FEED, not_before=NOW_S - 900, signs_until=NOW_S - 600, expires=NOW_S - 600)
    forged = KEYS.signed_frame(KEYS.body(wall_ms=(NOW_S - 700) * 1000), by=stolen)
    refused(fresh(), forged, FrameUntrusted)
    # Not after a restart either: the highest wall clock is remembered.
    refused(follower(mark=fresh().mark), forged, FrameUntrusted)
    one = fresh()
    one.ask_echo(NONCE, 101 * S)
    refused(one, KEYS.echo(by=stolen, nonce=NONCE, verifier_clock_ns=101 * S, broker_clock_ns=1), FrameUntrusted)


def test_an_echo_by_an_ended_feed_key_earns_no_lease_for_a_later_frame():
    stolen = KEYS.certified(Purpose.FEED, not_before=NOW_S - 900, signs_until=NOW_S - 600, expires=NOW_S - 600)
    one = follower()
    one.ask_echo(NONCE, 100 * S)
    one.take(KEYS.echo(by=stolen, nonce=NONCE, verifier_clock_ns=100 * S, broker_clock_ns=1), 100 * S)
    one.take(KEYS.snapshot(), 100 * S)
    assert one.state.accept_until_ns == NEVER_NS


def test_a_revoked_feed_key_is_refused_and_its_echoes_count_no_more():
    other = KEYS.certified(Purpose.FEED)
    one = fresh()
    frame = KEYS.body(previous_head=10, head=11, as_of_ns=2 * S, revocations=[entry(10, key=KEYS.feed.kid)])
    earned = one.state.accept_until_ns
    one.take(KEYS.signed_frame(frame, by=other), 101 * S)
    assert one.state.accept_until_ns == earned
    refused(one, KEYS.delta(previous_head=11, head=11), FrameUntrusted)
    one.ask_echo(NONCE, 101 * S)
    refused(one, KEYS.echo(nonce=NONCE, verifier_clock_ns=101 * S, broker_clock_ns=1), FrameUntrusted)


def test_a_delta_before_any_snapshot_is_a_gap():
    refused(follower(), KEYS.delta(), FrameGap)


def test_a_delta_with_a_gap_is_refused():
    refused(fresh(), KEYS.delta(previous_head=11, head=12, revocations=[entry(11, user="bob")]), FrameGap)


def test_a_delta_that_begins_before_the_head_still_holds_all_from_the_head_on():
    one = fresh()
    one.take(KEYS.delta(previous_head=4, head=12, revocations=[entry(4, user="al"), entry(11, user="bob")]), 101 * S)
    assert one.state.head == 12
    assert kills(one)


def test_the_head_never_goes_back():
    one = fresh()
    one.take(KEYS.delta(previous_head=10, head=12), 101 * S)
    refused(one, KEYS.delta(previous_head=10, head=11), FrameBehind)
    refused(one, KEYS.delta(previous_head=10, head=10), FrameBehind)


def test_a_snapshot_behind_the_head_is_not_applied_and_extends_nothing():
    one = fresh()
    one.take(KEYS.delta(previous_head=10, head=12, revocations=[entry(11, user="bob")]), 101 * S)
    before = one.state
    step = one.take(KEYS.snapshot(head=11, as_of_ns=50 * S, revocations=[entry(1, user="al")]), 150 * S)
    assert not step.in_force
    assert one.state is before


def test_a_kept_snapshot_and_the_delta_that_follows_it_are_as_good_as_a_new_one():
    one = fresh()
    one.take(KEYS.snapshot(head=6, as_of_ns=2 * S), 101 * S)
    step = one.take(KEYS.delta(previous_head=6, head=11, as_of_ns=3 * S, revocations=[entry(10, user="bob")]), 102 * S)
    assert step.in_force
    assert kills(one)


def test_a_restarted_verifier_accepts_nothing_until_it_is_where_it_was():
    one = follower(mark=Mark("ledger-1", 12, NOW_S * 1000))
    echoed(one, c1=100 * S, s1=1 * S)
    assert not one.take(KEYS.snapshot(head=10), 100 * S).in_force
    # Nor is it in force by being sent twice.
    assert not one.take(KEYS.snapshot(head=10), 100 * S).in_force
    refused(one, KEYS.delta(previous_head=10, head=11), FrameBehind)
    assert one.state.accept_until_ns == NEVER_NS
    step = one.take(KEYS.delta(previous_head=11, head=12, revocations=[entry(11, user="bob")]), 101 * S)
    assert step.in_force
    assert kills(one)
    assert one.state.accept_until_ns > 0
    assert one.mark.head == 12


def test_another_incarnation_is_a_fork():
    refused(fresh(), KEYS.delta(incarnation="ledger-2"), FrameForked)
    refused(fresh(), KEYS.snapshot(incarnation="ledger-2", head=1000), FrameForked)
    refused(follower(mark=Mark("ledger-1", 0, 0)), KEYS.snapshot(incarnation="ledger-2"), FrameForked)


def test_a_restored_ledger_is_followed_by_the_roots_word_alone():
    one = fresh()
    one.take(KEYS.delta(head=11, revocations=[entry(10, user="bob")]), 101 * S)
    before, until = one.state, one.state.accept_until_ns
    assert kills(one)
    assert until > 101 * S
    other = RealmKeys()
    told = KEYS.restoration("ledger-1", "ledger-2")
    stranger = replace(other.trust, realm="evaluation")
    for restorations, failure in (
        ([], FrameForked),
        ([KEYS.restoration("ledger-0", "ledger-2")], FrameForked),
        ([KEYS.restoration("ledger-2", "ledger-1")], FrameForked),
        ([KEYS.restoration("ledger-1", "ledger-3")], FrameForked),
        ([other.restoration("ledger-1", "ledger-2")], FrameUntrusted),
        ([other.restoration("ledger-1", "ledger-2", trust=stranger)], FrameUntrusted),
        ([KEYS.restoration("ledger-1", "ledger-2", trust=replace(KEYS.trust, realm="production"))], FrameUntrusted),
        ([told[:-1]], FrameUntrusted),
        ([KEYS.token.certificate], FrameUntrusted),
        ([told] * 17, FrameRefused),
    ):
        refused(one, KEYS.snapshot(incarnation="ledger-2", head=3, restorations=restorations), failure)
        assert one.state is before
        assert one.mark.incarnation == "ledger-1"
    # Nor by a delta, which holds not all that there is.
    refused(one, KEYS.delta(incarnation="ledger-2", previous_head=3, head=3, restorations=[told]), FrameForked)
    # In parts: what is in force stays so, and no longer than it was, until all of them are there.
    parts = [
        KEYS.snapshot(incarnation="ledger-2", boot="boot-2", head=3, parts=2, part=part, restorations=[told])
        for part in range(2)
    ]
    assert not one.take(parts[0], 102 * S).in_force
    assert one.state is before
    step = one.take(parts[1], 102 * S)
    assert (step.in_force, step.has_contents) == (True, True)
    state = one.state
    assert (state.incarnation, state.head, state.epoch) == ("ledger-2", 3, before.epoch + 1)
    assert state.accept_until_ns == until
    assert not kills(one)
    assert one.mark == Mark("ledger-2", 3, KEYS.now_s * 1000, ("ledger-1",))
    # There is no way back, and what came before is another ledger's now.
    refused(one, KEYS.snapshot(incarnation="ledger-1", head=100, restorations=[told]), FrameForked)
    refused(one, KEYS.delta(previous_head=10, head=10), FrameForked)
    assert one.take(KEYS.delta(incarnation="ledger-2", boot="boot-2", previous_head=3, head=4), 103 * S).in_force


def test_a_ledger_that_was_restored_twice_is_followed_through_both_and_never_in_a_circle():
    ways = [KEYS.restoration("ledger-1", "ledger-2"), KEYS.restoration("ledger-2", "ledger-3")]
    one = follower(mark=Mark("ledger-1", 1_000, 0))
    assert one.take(KEYS.snapshot(incarnation="ledger-3", head=3, restorations=ways), 3 * S).in_force
    assert one.mark.left == ("ledger-1", "ledger-2")
    assert one.mark.head == 3
    circle = [KEYS.restoration("ledger-1", "ledger-2"), KEYS.restoration("ledger-2", "ledger-1")]
    refused(
        follower(mark=Mark("ledger-1", 0, 0)), KEYS.snapshot(incarnation="ledger-3", restorations=circle), FrameForked
    )


def test_a_snapshot_replaces_the_state_only_when_all_its_parts_are_there():
    one = fresh()
    parts = {"head": 20, "as_of_ns": 4 * S, "parts": 3}
    first = KEYS.snapshot(part=0, revocations=[entry(12, user="al")], **parts)
    second = KEYS.snapshot(part=1, revocations=[entry(13, user="bob")], keys=[], **parts)
    third = KEYS.snapshot(part=2, revocations=[entry(14, user="cy")], keys=[], **parts)
    before = one.state
    for message in (first, second, second):
        step = one.take(message, 103 * S)
        assert step.is_part
        assert not step.in_force
        assert one.state is before
    assert one.take(third, 103 * S).in_force
    assert one.state.head == 20
    assert one.state.epoch == before.epoch + 1
    assert len(one.state.matcher) == 3
    assert kills(one)


def test_parts_of_different_snapshots_are_never_put_together():
    one = fresh()
    one.take(KEYS.snapshot(head=20, parts=2, part=0), 101 * S)
    one.take(KEYS.snapshot(head=21, parts=2, part=1), 101 * S)
    one.take(KEYS.snapshot(head=21, parts=2, part=0, as_of_ns=2 * S), 101 * S)
    assert one.state.head == 10
    assert one.take(KEYS.snapshot(head=21, parts=2, part=1, as_of_ns=2 * S), 101 * S).in_force
    assert one.state.head == 21


def test_parts_do_not_outlive_their_stream():
    one = fresh()
    one.take(KEYS.snapshot(head=20, parts=2, part=0), 101 * S)
    one.begin_stream()
    assert one.take(KEYS.snapshot(head=20, parts=2, part=1), 101 * S).is_part


def test_a_malformed_part_spoils_its_snapshot():
    one = fresh()
    one.take(KEYS.snapshot(head=20, parts=2, part=0), 101 * S)
    refused(one, KEYS.snapshot(head=20, parts=2, part=1, revocations=[entry(20, user="bob")]), FrameRefused)
    assert one.take(KEYS.snapshot(head=20, parts=2, part=1), 101 * S).is_part


@pytest.mark.parametrize(("part", "parts"), [(0, 0), (1, 1), (2, 1), (0, 1025), (2**32 - 1, 2**32 - 1)])
def test_impossible_part_numbers_are_refused(part, parts):
    refused(fresh(), KEYS.snapshot(head=20, part=part, parts=parts), FrameRefused)


def _raw(index: int, dimensions: list[int], values: list[str]) -> feed_pb2.FeedRevocation:
    return feed_pb2.FeedRevocation(index=index, dimensions=dimensions, values=values, keep_s=60)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "bad",
    [
        _raw(9, [3], ["bob"]),  # before the frame
        _raw(12, [3], ["bob"]),  # at the frame's head
        _raw(2**64 - 1, [3], ["bob"]),
        _raw(11, [], []),  # everything
        _raw(11, [0], ["bob"]),
        _raw(11, [13], ["bob"]),
        _raw(11, [3], []),
        _raw(11, [3], ["bob", "al"]),
        _raw(11, [3, 2], ["bob", "acme"]),
        _raw(11, [3, 3], ["bob", "bob"]),
        _raw(11, [3], [""]),
        _raw(11, [3], ["Bob"]),
        _raw(11, [11], ["short"]),
        _raw(11, [1, 3], ["evaluation", "Bob"]),
        _raw(11, [1, 3], ["evaluation"]),
        _raw(11, [1, 3], ["evaluation", "bob", "al"]),
        _raw(11, [1, 3], ["Evaluation", "bob"]),
        _raw(11, [1, 3], ["bob", "evaluation", "bob"]),
    ],
)
def test_one_malformed_revocation_refuses_the_frame_and_applies_nothing(bad):
    one = fresh()
    refused(one, KEYS.delta(previous_head=10, head=12, revocations=[entry(10, user="bob"), bad]), FrameRefused)
    assert not kills(one)


def test_revocations_out_of_order_are_refused():
    revocations = [entry(11, user="bob"), entry(10, user="al")]
    refused(fresh(), KEYS.delta(previous_head=10, head=12, revocations=revocations), FrameRefused)


def test_p8_a_token_key_of_another_realm_refuses_the_frame():
    foreign = RealmKeys("production").token.certificate
    refused(fresh(), KEYS.delta(previous_head=10, head=11, keys=[foreign]), FrameUntrusted)


def test_a_new_key_is_added_beside_the_old_one():
    one = fresh()
    new = KEYS.certified(Purpose.TOKEN)
    assert one.take(
        KEYS.delta(previous_head=10, head=11, keys=[new.certificate, new.certificate]), 101 * S
    ).has_contents
    assert set(one.state.keys) == {KEYS.token.kid, new.kid}


def test_ended_keys_are_forgotten_long_after_their_end():
    ends = KEYS.certified(Purpose.TOKEN, signs_until=NOW_S + 10, expires=NOW_S + 10)
    one = fresh()
    one.take(KEYS.delta(previous_head=10, head=11, keys=[ends.certificate]), 101 * S)
    later = {"previous_head": 11, "head": 11}
    one.take(KEYS.delta(wall_ms=(NOW_S + 7209) * 1000, as_of_ns=2 * S, **later), 102 * S)
    assert ends.kid in one.state.keys
    one.take(KEYS.delta(wall_ms=(NOW_S + 7210) * 1000, as_of_ns=3 * S, **later), 103 * S)
    assert set(one.state.keys) == {KEYS.token.kid}


def test_p4_a_revocation_is_kept_for_its_time_from_arrival_with_drift():
    one = fresh()
    one.take(KEYS.delta(previous_head=10, head=11, revocations=[entry(10, 10_000, user="bob")]), 101 * S)
    later = {"previous_head": 11, "head": 11}
    # A clock that runs 500 ppm fast, beside one that runs 500 ppm slow, shows this before 10,000 s are over.
    one.take(KEYS.delta(as_of_ns=2 * S, **later), (101 + 10_009) * S)
    assert kills(one)
    one.take(KEYS.delta(as_of_ns=3 * S, **later), (101 + 10_012) * S)
    assert not kills(one)


def test_the_newest_frame_tells_the_time_of_the_broker():
    one = fresh()
    one.take(KEYS.delta(as_of_ns=2 * S, wall_ms=NOW_S * 1000 + 1000), 101 * S + S // 10)
    time = one.state.time
    assert time is not None
    # Between the earliest instant at which it can have been read and its arrival.
    assert NOW_S * 1000 + 1000 <= time.latest_ms(101 * S) <= NOW_S * 1000 + 1003
    assert NOW_S * 1000 + 800 <= time.earliest_ms(101 * S) <= NOW_S * 1000 + 1000


def test_every_dimension_of_the_wire_is_known():
    assert {int(dimension) for dimension in Dimension} == set(feed_pb2.Dimension.values()) - {0}


def _es256() -> ec.ECDSA:
    from tests.realm_keys import ES256

    return ES256


def _signature(message: bytes) -> bytes:
    from tests.realm_keys import sign

    return sign(KEYS.feed.private, message)
