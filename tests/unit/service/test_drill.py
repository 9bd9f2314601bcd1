"""What a verifier's reports prove, and what they do not."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from broker.errors import StoreCorrupt
from broker.service.drill import Drilled, DrillResult, Outcome, Showing, read_result, spelled

MS = 1_000_000
AT = datetime(2026, 11, 23, 14, 3, 47, tzinfo=UTC)


def showing(*names):
    return Showing(dict(enumerate(names, start=1)))


def result(*verifiers, bound_ms=5000):
    return DrillResult(7, "evaluation", "canary-0123456789", AT, "broker", bound_ms, 6, verifiers)


def one(shown, committed_ns=0):
    [drilled] = shown.drilled(committed_ns)
    return drilled


def test_p6_a_verifier_that_accepted_and_then_denied_is_timed_from_the_commit_rounded_up():
    shown = showing("gateway")
    shown.report(1, "gateway", "ACCEPTED", is_end=False, now_ns=10 * MS)
    assert shown.is_seen
    assert not shown.is_over
    shown.revoking()
    shown.report(1, "gateway", "REVOKED", is_end=True, now_ns=32 * MS + 1)
    assert shown.is_over
    assert one(shown, 20 * MS) == Drilled("gateway", Outcome.DENIED, "REVOKED", 12_001)


def test_p6_who_never_reports_is_silent():
    assert one(showing("gateway")) == Drilled("gateway", Outcome.SILENT, "")


def test_nobody_waits_for_who_cannot_be_asked_and_it_is_silent():
    shown = showing("gateway", "old")
    shown.report(1, "gateway", "ACCEPTED", is_end=False, now_ns=1)
    assert not shown.is_seen
    shown.cannot(2)
    assert shown.is_seen
    assert [drilled.outcome for drilled in shown.drilled(0)] == [Outcome.ACCEPTING, Outcome.SILENT]


def test_p6_who_refused_the_living_canary_proves_nothing():
    shown = showing("gateway")
    shown.report(1, "gateway", "UNTRUSTED", is_end=False, now_ns=1)
    assert shown.ask_again() == (1,)
    shown.revoking()
    # Its canary never lived, so this is not the death of it.
    shown.report(1, "gateway", "REVOKED", is_end=True, now_ns=2)
    assert one(shown) == Drilled("gateway", Outcome.REFUSED, "UNTRUSTED")


def test_a_verifier_that_was_behind_may_accept_at_another_try():
    shown = showing("gateway")
    shown.report(1, "gateway", "UNTRUSTED", is_end=False, now_ns=1)
    assert shown.ask_again() == (1,)
    # It has yet to answer.
    assert shown.ask_again() == ()
    shown.report(1, "gateway", "ACCEPTED", is_end=False, now_ns=2)
    assert shown.is_seen
    assert shown.ask_again() == ()


def test_p6_a_canary_that_died_before_its_revocation_is_no_proof_of_it():
    shown = showing("gateway")
    shown.report(1, "gateway", "ACCEPTED", is_end=False, now_ns=1)
    shown.report(1, "gateway", "STALE", is_end=True, now_ns=2)
    shown.revoking()
    assert one(shown) == Drilled("gateway", Outcome.REFUSED, "STALE")


@pytest.mark.parametrize(
    ("verdict", "outcome"),
    [
        ("REVOKED", Outcome.DENIED),
        # A lapsed lease denies everything (P5).
        ("STALE", Outcome.DENIED),
        # It lived to its own end.
        ("EXPIRED", Outcome.ACCEPTING),
        ("HAPPY", Outcome.ACCEPTING),
    ],
)
def test_p6_only_the_revocation_or_a_lapsed_lease_counts_as_its_death(verdict, outcome):
    shown = showing("gateway")
    shown.report(1, "gateway", "ACCEPTED", is_end=False, now_ns=1)
    shown.revoking()
    shown.report(1, "gateway", verdict, is_end=True, now_ns=2)
    assert one(shown).outcome is outcome


def test_p6_who_does_not_report_the_death_still_accepts():
    shown = showing("gateway")
    shown.report(1, "gateway", "ACCEPTED", is_end=False, now_ns=1)
    shown.revoking()
    assert one(shown) == Drilled("gateway", Outcome.ACCEPTING, "ACCEPTED")


def test_t_a_verifier_cannot_report_for_another_one():
    shown = showing("gateway", "frontend")
    shown.report(2, "gateway", "ACCEPTED", is_end=False, now_ns=1)
    shown.report(9, "frontend", "ACCEPTED", is_end=False, now_ns=1)
    assert {drilled.outcome for drilled in shown.drilled(0)} == {Outcome.SILENT}


def test_t_words_of_a_strangers_own_do_not_reach_the_ledger():
    shown = showing("gateway")
    shown.report(1, "gateway", "x" * 1000, is_end=False, now_ns=1)
    assert one(shown) == Drilled("gateway", Outcome.REFUSED, "INVALID")


def test_the_end_that_is_an_acceptance_is_nonsense():
    shown = showing("gateway")
    shown.report(1, "gateway", "ACCEPTED", is_end=False, now_ns=1)
    shown.revoking()
    shown.report(1, "gateway", "ACCEPTED", is_end=True, now_ns=2)
    assert not shown.is_over


def test_the_first_report_of_the_end_counts():
    shown = showing("gateway")
    shown.report(1, "gateway", "ACCEPTED", is_end=False, now_ns=1)
    shown.revoking()
    shown.report(1, "gateway", "REVOKED", is_end=True, now_ns=2000)
    shown.report(1, "gateway", "REVOKED", is_end=True, now_ns=900_000)
    assert one(shown).time_to_deny_us == 2


def test_two_streams_of_one_name_count_each_for_itself():
    shown = showing("gateway", "gateway")
    shown.report(1, "gateway", "ACCEPTED", is_end=False, now_ns=1)
    assert not shown.is_seen
    shown.revoking()
    shown.report(1, "gateway", "REVOKED", is_end=True, now_ns=2)
    assert [drilled.outcome for drilled in shown.drilled(0)] == [Outcome.SILENT, Outcome.DENIED]


def test_who_leaves_by_its_own_word_is_no_verifier_any_more():
    shown = showing("gateway", "frontend")
    shown.leave(1)
    assert one(shown).verifier == "frontend"


def test_those_that_failed_come_first_and_then_the_slowest():
    shown = showing("a", "b", "c")
    for stream, name in ((1, "a"), (2, "b")):
        shown.report(stream, name, "ACCEPTED", is_end=False, now_ns=1)
    shown.revoking()
    shown.report(1, "a", "REVOKED", is_end=True, now_ns=2000)
    shown.report(2, "b", "REVOKED", is_end=True, now_ns=3000)
    assert [drilled.verifier for drilled in shown.drilled(0)] == ["c", "b", "a"]


def test_p5_a_denial_after_the_bound_fails_the_drill_and_is_named():
    found = result(Drilled("gateway", Outcome.DENIED, "REVOKED", 5_000_001))
    assert not found.passed
    assert "slow: gateway" in found.problem()
    assert result(Drilled("gateway", Outcome.DENIED, "REVOKED", 5_000_000)).passed


def test_p6_a_drill_without_verifiers_has_not_passed():
    assert not result().passed
    assert "no verifier" in result().problem()


def test_an_alarm_names_each_verifier_by_what_went_wrong():
    found = result(
        Drilled("a", Outcome.SILENT, ""),
        Drilled("b", Outcome.ACCEPTING, "ACCEPTED"),
        Drilled("c", Outcome.DENIED, "REVOKED", 100),
    )
    assert found.problem() == (
        "the drill in realm evaluation at 2026-11-23T14:03:47Z failed: silent: a; accepting: b; see: broker drill history"
    )
    assert result(Drilled("c", Outcome.DENIED, "REVOKED", 100)).problem() == ""


def test_an_alarm_is_short_also_when_ten_thousand_are_silent():
    found = result(*(Drilled(f"gateway-{n:05}", Outcome.SILENT, "") for n in range(10_000)))
    assert "and 9990 more" in found.problem()
    assert len(found.problem()) < 400


def test_a_document_comes_back_as_it_went():
    found = result(Drilled("a", Outcome.SILENT, ""), Drilled("c", Outcome.DENIED, "REVOKED", 100))
    assert read_result(7, spelled(found)) == found
    assert read_result(9, spelled(found)) == replace(found, index=9)


@pytest.mark.parametrize("damaged", [b"", b"{}", b"[]", b"\xff", b'{"at":"yesterday"}'])
def test_a_damaged_document_is_refused(damaged):
    with pytest.raises(StoreCorrupt):
        read_result(1, damaged)


def elsewhere(*names):
    """A drill whose verifiers listen to another broker, and what that one shows it to."""
    return Showing({}, names), showing(*names)


def test_p6_who_listens_to_another_broker_is_waited_for_and_timed_by_when_it_was_told():
    here, there = elsewhere("gateway")
    assert not here.is_seen
    there.report(1, "gateway", "ACCEPTED", is_end=False, now_ns=1 * MS)
    here.take("another", there.part(), 10 * MS)
    assert here.is_seen
    assert not here.is_over
    here.revoking()
    there.report(1, "gateway", "REVOKED", is_end=True, now_ns=12 * MS)
    for now_ms in (40, 50):
        # Told again, it happened no later.
        here.take("another", there.part(), now_ms * MS)
    assert here.is_over
    assert one(here, 20 * MS) == Drilled("gateway", Outcome.DENIED, "REVOKED", 20_000)


def test_p6_of_whom_no_broker_tells_anything_is_silent():
    here, _ = elsewhere("gateway", "third")
    here.take("another", showing("third").part(), 1)
    assert [drilled.outcome for drilled in here.drilled(0)] == [Outcome.SILENT, Outcome.SILENT]
    # Whoever has gone since is not: a broker tells of those that are there.
    here.only_elsewhere(["third"])
    assert one(here) == Drilled("third", Outcome.SILENT, "")


def test_p6_what_another_broker_tells_proves_no_more_than_what_a_verifier_says_here():
    here, there = elsewhere("early", "refusing", "old", "accepting")
    for stream, verdict in ((1, "ACCEPTED"), (2, "UNTRUSTED"), (4, "ACCEPTED")):
        there.report(stream, ("early", "refusing", "old", "accepting")[stream - 1], verdict, is_end=False, now_ns=1)
    there.cannot(3)
    here.take("another", there.part(), 1)
    there.report(1, "early", "STALE", is_end=True, now_ns=2)
    here.take("another", there.part(), 2)
    # To ask again is up to the broker that they listen to.
    assert here.ask_again() == ()
    here.revoking()
    found = {drilled.verifier: (drilled.outcome, drilled.verdict) for drilled in here.drilled(0)}
    assert found == {
        "early": (Outcome.REFUSED, "STALE"),
        "refusing": (Outcome.REFUSED, "UNTRUSTED"),
        "old": (Outcome.SILENT, ""),
        "accepting": (Outcome.ACCEPTING, "ACCEPTED"),
    }


def test_who_leaves_another_broker_is_forgotten_and_streams_of_two_brokers_are_not_mixed_up():
    here, there = elsewhere("gateway")
    third = showing("third")
    here.take("another", there.part(), 1)
    here.take("yet another", third.part(), 1)
    assert {drilled.verifier for drilled in here.drilled(0)} == {"gateway", "third"}
    there.leave(1)
    here.take("another", there.part(), 2)
    assert one(here).verifier == "third"


@pytest.mark.parametrize("part", [b"", b"{", b"[1]", b'[["a"]]', b"[[1,2,3,4,5,6,7]]"])
def test_what_cannot_be_read_of_another_broker_changes_nothing(part):
    here, _ = elsewhere("gateway")
    with pytest.raises(StoreCorrupt, match="cannot be read"):
        here.take("another", part, 1)
    assert one(here) == Drilled("gateway", Outcome.SILENT, "")
