"""When a revocation is complete (P6): every listener has acknowledged, or can hold no lease any more."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.service.listening import MAX_EARLY_CUTS, Listeners, Outcome, Stop

S = 1_000_000_000
LEASE_MS = 3000
LEASE_NS = 3 * S
INDEX = 40
BEFORE, AFTER = 40, 41  # heads that do not cover the index, and that do
T = 1000 * S  # the commit
EVALUATION = frozenset({"evaluation"})


def sole(started_ns=None):
    return Listeners(started_ns=started_ns, is_sole=True)


def joined(listeners, name="gate", at_ns=T - 10 * S, realm="evaluation"):
    return listeners.join(verifier=name, realm=realm, version="1", address="ipv4:1", lease_ms=LEASE_MS, now_ns=at_ns)


def watched(listeners, now_ns=T, realms=EVALUATION):
    return listeners.watch(INDEX, realms=realms, committed_ns=T, lease_ms=LEASE_MS, now_ns=now_ns)


def test_p6_it_is_complete_when_all_listeners_have_acknowledged():
    listeners = sole()
    one, two = joined(listeners, "one"), joined(listeners, "two")
    watch = watched(listeners)
    assert not listeners.progress(watch, T + 1, published_head=AFTER).is_complete
    listeners.acknowledge(one, AFTER, T + 2)
    listeners.acknowledge(two, BEFORE, T + 3)
    halfway = listeners.progress(watch, T + 4, published_head=AFTER)
    assert (halfway.listening, len(halfway.outcomes), halfway.is_complete) == (2, 1, False)
    listeners.acknowledge(two, AFTER, T + 9)
    done = listeners.progress(watch, T + 10, published_head=AFTER)
    assert done.is_complete
    # The slowest first, each with the time that it took.
    assert done.outcomes == (
        Outcome("two", "evaluation", Stop.ACKNOWLEDGED, 9),
        Outcome("one", "evaluation", Stop.ACKNOWLEDGED, 2),
    )


def test_p6_an_acknowledgement_of_a_head_that_does_not_cover_the_index_settles_nothing():
    listeners = sole()
    listener = joined(listeners)
    watch = watched(listeners)
    listeners.acknowledge(listener, INDEX, T + 1)
    assert not listeners.progress(watch, T + 2, published_head=AFTER).outcomes
    assert not listeners.progress(watch, T + LEASE_NS - 1, published_head=AFTER).is_complete


def test_p6_a_listener_that_says_nothing_counts_as_stopped_when_a_lease_has_passed_since_the_commit():
    listeners = sole()
    joined(listeners)
    watch = watched(listeners)
    waiting = listeners.progress(watch, T + LEASE_NS - 1, published_head=AFTER)
    assert not waiting.is_complete
    assert waiting.next_look_ns == T + LEASE_NS
    done = listeners.progress(watch, T + LEASE_NS, published_head=AFTER)
    assert done.is_complete
    assert done.outcomes == (Outcome("gate", "evaluation", Stop.LAPSED, LEASE_NS),)


def test_p6_a_listener_that_goes_on_talking_of_an_old_head_is_not_waited_for_beyond_the_lease():
    listeners = sole()
    listener = joined(listeners)
    watch = watched(listeners)
    for after in range(1, 4):
        listeners.acknowledge(listener, BEFORE, T + after * S)
    assert listeners.progress(watch, T + LEASE_NS, published_head=AFTER).is_complete


def test_p6_a_stream_that_ended_before_the_commit_still_counts_until_its_lease_has_run_out():
    listeners = sole()
    listener = joined(listeners)
    listeners.leave(listener, T - S)
    watch = watched(listeners)
    assert not listeners.progress(watch, T + 2 * S - 1, published_head=AFTER).is_complete
    done = listeners.progress(watch, T + 2 * S, published_head=AFTER)
    assert done.is_complete
    assert done.outcomes == (Outcome("gate", "evaluation", Stop.LAPSED, 2 * S),)


def test_p6_a_stream_that_ended_a_lease_before_the_commit_does_not_count():
    listeners = sole()
    listeners.leave(joined(listeners), T - LEASE_NS)
    done = listeners.progress(watched(listeners), T + 1, published_head=AFTER)
    assert done.is_complete
    assert done.listening == 0


def test_p6_a_stream_that_ends_while_it_is_waited_for_counts_until_a_lease_after_the_commit():
    listeners = sole()
    listener = joined(listeners)
    watch = watched(listeners)
    listeners.leave(listener, T + S)
    assert not listeners.progress(watch, T + LEASE_NS - 1, published_head=AFTER).is_complete
    assert listeners.progress(watch, T + LEASE_NS, published_head=AFTER).is_complete


def test_p6_a_verifier_that_gave_up_its_lease_is_not_waited_for():
    listeners = sole()
    listener = joined(listeners)
    watch = watched(listeners)
    listeners.give_up(listener, T + S)
    done = listeners.progress(watch, T + S, published_head=AFTER)
    assert done.is_complete
    assert done.outcomes == (Outcome("gate", "evaluation", Stop.LEFT, S),)


def test_p6_who_joins_after_the_revocation_was_published_is_not_waited_for():
    listeners = sole()
    one = joined(listeners, "one")
    watch = watched(listeners)
    assert not listeners.progress(watch, T + 1, published_head=AFTER).is_complete
    joined(listeners, "late", at_ns=T + 2)
    listeners.acknowledge(one, AFTER, T + 3)
    done = listeners.progress(watch, T + 4, published_head=AFTER)
    assert done.is_complete
    assert [outcome.verifier for outcome in done.outcomes] == ["one"]


def test_p6_who_joins_before_the_revocation_was_published_is_waited_for_because_its_snapshot_may_be_older():
    listeners = sole()
    watch = watched(listeners)
    assert not listeners.progress(watch, T + 1, published_head=BEFORE).is_complete
    early = joined(listeners, "early", at_ns=T + 2)
    assert not listeners.progress(watch, T + 3, published_head=AFTER).is_complete
    listeners.acknowledge(early, AFTER, T + 4)
    assert listeners.progress(watch, T + 5, published_head=AFTER).is_complete


def test_p6_nothing_is_complete_before_the_feed_has_published_the_revocation():
    listeners = sole()
    watch = watched(listeners)
    assert not listeners.progress(watch, T + 100 * S, published_head=BEFORE).is_complete
    assert listeners.progress(watch, T + 100 * S, published_head=AFTER).is_complete


def test_p6_verifiers_of_other_realms_are_not_waited_for():
    listeners = sole()
    joined(listeners, realm="research")
    assert listeners.progress(watched(listeners), T + 1, published_head=AFTER).is_complete
    joined(listeners, realm="research", at_ns=T + 2)
    assert listeners.progress(watched(listeners), T + 3, published_head=AFTER).is_complete


def test_p6_a_new_broker_process_waits_a_lease_for_those_it_never_saw():
    listeners = sole(started_ns=T - S)
    watch = watched(listeners)
    assert not listeners.progress(watch, T + 2 * S - 1, published_head=AFTER).is_complete
    assert listeners.progress(watch, T + 2 * S, published_head=AFTER).is_complete


def test_p6_a_broker_process_that_runs_for_a_lease_already_waits_for_nobody_it_never_saw():
    listeners = sole(started_ns=T - LEASE_NS)
    assert listeners.progress(watched(listeners), T, published_head=AFTER).is_complete


def test_p6_one_broker_of_several_waits_a_lease_for_the_verifiers_of_the_others():
    listeners = Listeners(started_ns=T - 1000 * S, is_sole=False)
    watch = watched(listeners)
    assert not listeners.progress(watch, T + LEASE_NS - 1, published_head=AFTER).is_complete
    assert listeners.progress(watch, T + LEASE_NS, published_head=AFTER).is_complete


def test_p6_a_lease_that_was_longer_when_the_frame_was_sent_is_waited_for():
    listeners = sole()
    listener = joined(listeners)
    listener.lease_ms = 10_000
    watch = watched(listeners)
    assert not listeners.progress(watch, T + 10 * S - 1, published_head=AFTER).is_complete
    assert listeners.progress(watch, T + 10 * S, published_head=AFTER).is_complete


def test_a_head_never_goes_back():
    listeners = sole()
    listener = joined(listeners)
    listeners.acknowledge(listener, AFTER, T)
    listeners.acknowledge(listener, BEFORE, T + 1)
    assert listener.head == AFTER


def test_whoever_waits_is_woken_by_acknowledgements_and_departures_and_not_after_it_ended():
    listeners = sole()
    listener = joined(listeners)
    watch = watched(listeners)
    woken = []
    watch.on_change = lambda: woken.append(1)
    listeners.acknowledge(listener, AFTER, T + 1)
    listeners.leave(listener, T + 2)
    assert len(woken) == 2
    listeners.unwatch(watch)
    listeners.leave(joined(listeners), T + 3)
    assert len(woken) == 2


def test_the_list_says_who_is_fresh_joining_or_lapsed_and_forgets_the_long_gone():
    listeners = sole()
    fresh, silent, left = (joined(listeners, name, at_ns=T) for name in ("a", "b", "c"))
    joined(listeners, "d", at_ns=T)
    joined(listeners, "e", at_ns=T, realm="research")
    listeners.acknowledge(fresh, AFTER, T + 10 * S)
    listeners.acknowledge(silent, AFTER, T)
    listeners.leave(left, T)
    now_ns = T + 10 * S
    states = {one.verifier: one.state(now_ns) for one in listeners.present(now_ns, "evaluation")}
    assert states == {"a": "fresh", "b": "lapsed", "c": "lapsed", "d": "joining"}
    later = now_ns + 2 * 3600 * S
    assert {one.verifier for one in listeners.present(later)} == {"a", "b", "d", "e"}


def test_b10_one_that_comes_and_goes_all_the_time_fills_no_memory_and_its_last_stream_stays_listed():
    listeners = sole()
    for second in range(300):
        listeners.leave(joined(listeners, "a", at_ns=T + second * S), T + second * S)
        listeners.census(T + second * S)
    # A lease and a minute of them: none is forgotten that a completion may have to name.
    assert 60 < len(listeners.everyone()) < 70
    listeners.census(T + 1000 * S)
    [last] = listeners.everyone()
    assert last.joined_ns == T + 299 * S


def test_the_census_counts_each_realm_and_finds_the_one_furthest_behind():
    listeners = sole()
    for name, realm, head in (("a", "evaluation", 9), ("b", "evaluation", 4), ("c", "research", 2)):
        listeners.acknowledge(joined(listeners, name, at_ns=T, realm=realm), head, T)
    gone = joined(listeners, "d", at_ns=T)
    listeners.leave(gone, T)
    joined(listeners, "e", at_ns=T)
    found = listeners.census(T)
    assert found["evaluation"].states == {"fresh": 2, "lapsed": 1, "joining": 1}
    # One that joins has applied nothing yet; one that has left is behind nobody.
    assert (found["evaluation"].least_head, found["research"].least_head) == (0, 2)


steps = st.lists(
    st.tuples(
        st.sampled_from(["join", "ack", "stale ack", "leave", "give up", "publish"]),
        st.integers(0, 3),
        st.integers(0, LEASE_NS // 2),
    ),
    max_size=30,
)


@given(st.integers(1, 4), steps)
def test_p6_complete_always_means_that_nobody_who_listened_at_the_commit_can_hold_a_lease_without_it(count, walk):
    """`last_ns` is the latest instant of a frame without the revocation that a stream can have had."""
    listeners = sole()
    held = {joined(listeners, f"v{n}").stream: T for n in range(count)}
    streams = dict(listeners._listeners)
    acknowledged, gave_up, left = set(), set(), set()
    watch, now_ns, published = watched(listeners), T, False
    for step, which, pause_ns in walk:
        now_ns += pause_ns
        stream = sorted(streams)[which % len(streams)]
        gone = left | gave_up
        match step:
            case "join":
                new = joined(listeners, "new", at_ns=now_ns)
                streams[new.stream] = new
                if not published:
                    held[new.stream] = T
            case "ack" if published and stream not in gone:
                listeners.acknowledge(streams[stream], AFTER, now_ns)
                acknowledged.add(stream)
            case "stale ack" if stream not in gone:
                listeners.acknowledge(streams[stream], BEFORE, now_ns)
            case "leave" if stream not in gone:
                listeners.leave(streams[stream], now_ns)
                left.add(stream)
            case "give up" if stream not in gone:
                listeners.give_up(streams[stream], now_ns)
                gave_up.add(stream)
            case "publish":
                published = True
        progress = listeners.progress(watch, now_ns, published_head=AFTER if published else BEFORE)
        if progress.is_complete:
            assert published
            for holder, last_ns in held.items():
                assert holder in acknowledged | gave_up or now_ns >= last_ns + LEASE_NS
    assert listeners.progress(watch, now_ns + LEASE_NS, published_head=AFTER).is_complete


@pytest.mark.parametrize("head", [0, 39, 40])
def test_p6_a_listener_is_settled_only_by_a_head_above_the_index(head):
    listeners = sole()
    listener = joined(listeners)
    listeners.acknowledge(listener, head, T - 1)
    assert not listeners.progress(watched(listeners), T, published_head=AFTER).is_complete


def test_what_was_cut_before_the_revocation_is_watched_is_counted_all_the_same():
    listeners = sole()
    listener, other = joined(listeners), joined(listeners, realm="internal")
    # The feed can publish it, and a verifier acknowledge it, before the one who committed it begins to watch.
    listeners.cut(listener, INDEX, 2)
    listeners.cut(listener, INDEX, 1)
    listeners.cut(listener, INDEX - 1, 5)
    listeners.cut(other, INDEX, 7)
    listeners.acknowledge(listener, AFTER, T + 2)
    watch = watched(listeners, T + 3)
    assert listeners.progress(watch, T + 4, published_head=AFTER).outcomes == (
        Outcome("gate", "evaluation", Stop.ACKNOWLEDGED, 2, 3),
    )


def test_cuts_that_nobody_watches_do_not_add_up():
    listeners = sole()
    listener = joined(listeners)
    listeners.cut(listener, INDEX, 2)
    for index in range(MAX_EARLY_CUTS):
        listeners.cut(listener, INDEX + 1 + index, 1)
    assert not watched(listeners).cuts


@given(st.lists(st.sampled_from(["look", 0, 1, 2, 3]), max_size=14))
def test_whatever_comes_in_between_the_last_acknowledgement_asks_for_a_look(events):
    listeners = sole()
    everyone = [joined(listeners, f"gate-{number}") for number in range(4)]
    watch = watched(listeners)
    asked = []
    watch.on_change = lambda: asked.append(True)
    listeners.progress(watch, T + 1, published_head=AFTER)
    for at, event in enumerate(events):
        asked.clear()
        if event == "look":
            listeners.progress(watch, T + 2 + at, published_head=AFTER)
            continue
        was_complete = all(one.head == AFTER for one in everyone)
        listeners.acknowledge(everyone[event], AFTER, T + 2 + at)
        if all(one.head == AFTER for one in everyone) and not was_complete:
            assert asked


def test_of_many_acknowledgements_only_what_may_be_the_last_asks_for_a_look():
    listeners = sole()
    everyone = [joined(listeners, f"gate-{number}") for number in range(100)]
    watch = watched(listeners)
    asked = []
    watch.on_change = lambda: asked.append(True)
    for one in everyone[:-1]:
        listeners.acknowledge(one, AFTER, T + 1)
    assert not asked
    listeners.acknowledge(everyone[-1], AFTER, T + 2)
    assert asked
