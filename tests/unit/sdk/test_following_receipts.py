"""What the policy demands, and what may be deleted, is the broker's signed word only."""

import pytest

from broker.errors import FrameForked, FrameRefused, FrameUntrusted, FrameWrongRealm
from broker.sdk.following import Follower
from broker.sdk.opening import ECHO_CONTEXT, FRAME_CONTEXT
from broker.token.keys import Purpose
from broker.v1 import feed_pb2
from tests.realm_keys import NOW_S, RealmKeys
from tests.unit.sdk.test_following import KEYS, fresh, refused

AT = 101_000_000_000


def test_a_frame_says_which_receipts_are_demanded_and_a_later_one_changes_it():
    one = fresh()
    assert one.state.receipts == feed_pb2.RECEIPT_DEMAND_UNSPECIFIED
    one.take(KEYS.delta(head=11, receipts=feed_pb2.RECEIPT_DEMAND_EACH), AT)
    assert one.state.receipts == feed_pb2.RECEIPT_DEMAND_EACH
    one.take(KEYS.delta(previous_head=11, head=12, receipts=feed_pb2.RECEIPT_DEMAND_SUMMED), AT)
    assert one.state.receipts == feed_pb2.RECEIPT_DEMAND_SUMMED


def test_b6_a_frame_from_before_receipts_were_demanded_does_not_end_the_demand():
    one = fresh()
    old = KEYS.delta()
    one.take(KEYS.delta(head=11, receipts=feed_pb2.RECEIPT_DEMAND_EACH), AT)
    with pytest.raises(FrameRefused):
        one.take(old, AT)
    assert one.state.receipts == feed_pb2.RECEIPT_DEMAND_EACH


def test_p7_a_demand_that_is_not_understood_is_refused():
    refused(fresh(), KEYS.delta(head=11, receipts=7), FrameRefused)


def test_the_brokers_answer_is_handed_on_and_changes_nothing():
    one = fresh()
    before, mark = one.state, one.mark
    step = one.take(KEYS.kept(through=17), AT)
    assert step.kept is not None
    assert step.kept.through == 17
    assert not step.in_force
    assert (one.state, one.mark) == (before, mark)


def test_an_answer_that_another_signed_for_another_or_for_something_else_deletes_nothing():
    research = RealmKeys("research")
    cases = [
        (research.kept(through=17), FrameUntrusted),
        (KEYS.kept(through=17, by=KEYS.token), FrameUntrusted),
        (KEYS.kept(through=17, by=KEYS.certified(Purpose.COMPLETION)), FrameUntrusted),
        (KEYS.kept(through=17, context=FRAME_CONTEXT), FrameUntrusted),
        (KEYS.kept(through=17, context=ECHO_CONTEXT), FrameUntrusted),
        (KEYS.kept(through=17, realm="research"), FrameWrongRealm),
        (KEYS.kept(through=17, incarnation="another"), FrameForked),
        (KEYS.kept(through=17, wall_ms=(NOW_S + 10**8) * 1000), FrameUntrusted),
        (KEYS.kept(through=17, by=KEYS.certified(Purpose.FEED, signs_until=NOW_S - 60)), FrameUntrusted),
    ]
    for message, why in cases:
        refused(fresh(), message, why)


def test_an_answer_is_no_frame_and_a_frame_no_answer():
    one = Follower(KEYS.trust)
    assert one.take(KEYS.kept(), AT).kept is not None
    assert one.state.head == 0
    assert fresh().take(KEYS.delta(head=11), AT).kept is None
