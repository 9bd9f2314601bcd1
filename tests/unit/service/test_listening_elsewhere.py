"""Who listened to another broker process at the commit (P6), and what was cut."""

from broker.service.listening import Listeners, Outcome, Stop

S = 1_000_000_000
LEASE_MS = 3000
LEASE_NS = 3 * S
INDEX = 40
BEFORE, AFTER = 40, 41
T = 1000 * S
GATE = ("gate", "evaluation")


def joined(listeners, name="gate", at_ns=T - 10 * S, realm="evaluation"):
    return listeners.join(verifier=name, realm=realm, version="1", address="ipv4:1", lease_ms=LEASE_MS, now_ns=at_ns)


def watched(listeners, *, entries=1, earlier_ns=0, absent=(), committed_ns=T, realms=("evaluation",)):
    return listeners.watch(
        INDEX,
        realms=frozenset(realms),
        committed_ns=committed_ns,
        lease_ms=LEASE_MS,
        now_ns=committed_ns,
        entries=entries,
        earlier_ns=earlier_ns,
        absent=absent,
    )


def several():
    return Listeners(started_ns=None, is_sole=False)


def test_p6_who_listened_elsewhere_is_waited_for_by_name_until_a_lease_has_passed():
    listeners = several()
    watch = watched(listeners, absent={GATE})
    waiting = listeners.progress(watch, T + LEASE_NS - 1, published_head=AFTER)
    assert (waiting.waiting, waiting.is_complete) == (("gate",), False)
    done = listeners.progress(watch, T + LEASE_NS, published_head=AFTER)
    assert done.is_complete
    assert done.outcomes == (Outcome(*GATE, Stop.LAPSED, LEASE_NS),)
    assert done.unknown_ns == LEASE_NS


def test_p6_who_comes_here_after_the_commit_settles_by_acknowledging_and_the_unknown_are_still_waited_for():
    listeners = several()
    watch = watched(listeners, absent={GATE})
    listeners.progress(watch, T + 1, published_head=AFTER)
    here = joined(listeners, at_ns=T + S)
    listeners.acknowledge(here, BEFORE, T + S + 1)
    assert listeners.progress(watch, T + S + 2, published_head=AFTER).waiting == ("gate",)
    listeners.acknowledge(here, AFTER, T + 2 * S)
    told = listeners.progress(watch, T + 2 * S, published_head=AFTER)
    assert told.outcomes == (Outcome(*GATE, Stop.ACKNOWLEDGED, 2 * S),)
    assert not told.is_complete
    assert listeners.progress(watch, T + LEASE_NS, published_head=AFTER).is_complete


def test_who_joins_while_it_is_waited_for_counts_once():
    listeners = several()
    watch = watched(listeners, absent={GATE})
    here = joined(listeners, at_ns=T + 1)
    listeners.acknowledge(here, AFTER, T + 2)
    done = listeners.progress(watch, T + LEASE_NS, published_head=AFTER)
    assert done.outcomes == (Outcome(*GATE, Stop.ACKNOWLEDGED, 2),)
    assert listeners.progress(watch, T + LEASE_NS + 1, published_head=AFTER).outcomes == done.outcomes


def test_the_absent_of_another_realm_and_those_who_are_here_are_not_waited_for_twice():
    listeners = several()
    here = joined(listeners)
    watch = watched(listeners, absent={GATE, ("gate", "research"), ("other", "evaluation")})
    assert listeners.progress(watch, T + 1, published_head=AFTER).waiting == ("gate", "other")
    listeners.acknowledge(here, AFTER, T + 2)
    done = listeners.progress(watch, T + LEASE_NS, published_head=AFTER)
    assert [outcome.verifier for outcome in done.outcomes] == ["other", "gate"]


def test_a_sole_broker_on_a_new_ledger_waits_for_nobody_elsewhere():
    listeners = Listeners(started_ns=None, is_sole=True)
    watch = watched(listeners, absent={GATE})
    done = listeners.progress(watch, T, published_head=AFTER)
    assert (done.is_complete, done.outcomes, done.unknown_ns) == (True, (), 0)


def test_what_was_taken_over_counts_from_the_commit_though_it_is_waited_for_from_now():
    listeners = Listeners(started_ns=T, is_sole=True)
    watch = watched(listeners, earlier_ns=7 * S, absent={GATE})
    done = listeners.progress(watch, T + LEASE_NS, published_head=AFTER)
    assert done.outcomes == (Outcome(*GATE, Stop.LAPSED, 7 * S + LEASE_NS),)
    assert done.unknown_ns == 7 * S + LEASE_NS


def test_who_gave_up_its_lease_has_left_and_who_broke_off_has_lapsed():
    listeners = Listeners(started_ns=None, is_sole=True)
    polite, broken = joined(listeners, "polite"), joined(listeners, "broken")
    watch = watched(listeners)
    listeners.give_up(polite, T + 1)
    listeners.leave(broken, T + 1)
    done = listeners.progress(watch, T + LEASE_NS + 1, published_head=AFTER)
    assert {outcome.verifier: outcome.how for outcome in done.outcomes} == {"polite": Stop.LEFT, "broken": Stop.LAPSED}


def test_cut_uses_count_for_the_revocation_that_cut_them_and_for_no_other():
    listeners = Listeners(started_ns=None, is_sole=True)
    listener = joined(listeners)
    watch = watched(listeners, entries=10)
    for index, uses in ((INDEX + 1, 100), (INDEX - 10, 100), (INDEX, 1), (INDEX - 9, 2)):
        listeners.cut(listener, index, uses)
    listeners.acknowledge(listener, AFTER, T + 1)
    done = listeners.progress(watch, T + 1, published_head=AFTER)
    assert done.outcomes == (Outcome(*GATE, Stop.ACKNOWLEDGED, 1, 3),)


def test_p8_a_verifier_of_another_realm_has_no_say_in_what_was_cut():
    listeners = Listeners(started_ns=None, is_sole=True)
    listener, other = joined(listeners), joined(listeners, realm="research")
    watch = watched(listeners)
    listeners.cut(other, INDEX, 5)
    listeners.acknowledge(listener, AFTER, T + 1)
    assert listeners.progress(watch, T + 1, published_head=AFTER).outcomes == (Outcome(*GATE, Stop.ACKNOWLEDGED, 1, 0),)
