"""Runs: opened for what is granted, kept and closed by their own partner alone."""

import secrets
from dataclasses import replace
from datetime import timedelta

import pytest

from broker.domain.asking import Ask
from broker.domain.policy import Role
from broker.errors import (
    Blocked,
    Forbidden,
    Invalid,
    LimitReached,
    NotFound,
    NotGranted,
    PolicyMoved,
    RunEnded,
    Unauthenticated,
)
from broker.ledger.entry import Kind, decode_entry
from broker.service.calling import Caller
from broker.service.known_runs import KnownRuns
from broker.service.lapses import Lapses
from broker.service.runs import MAX_LEASE_S, MIN_LEASE_S, Wanted
from broker.token.revocation import Selector
from tests.served import POLICY
from tests.unit.service.world import OPS, request


def ask(run, *, partner="acme", user="alice", models=("mythos",)):
    return Ask("evaluation", partner, user, None, models, "place", run)


@pytest.mark.parametrize("role", [Role.ADMIN, Role.AUDITOR, Role.VERIFIER])
def test_nobody_but_a_harness_opens_keeps_or_closes(world, role):
    run = world.open_run(world.acme)
    other, size = Caller("spiffe://lab.example/x", role, "acme"), world.size
    with pytest.raises(Forbidden):
        world.open_run(other)
    for act in (world.runs.keep, world.runs.close):
        with pytest.raises(Forbidden):
            act(other, run.id, request())
    assert world.size == size


def test_b20_another_partners_run_is_as_unknown_as_one_that_never_was(world):
    run, size = world.open_run(world.acme), world.size

    def told(act, run_id):
        with pytest.raises(NotFound) as caught:
            act(world.globex, run_id, request())
        return str(caught.value), caught.value.metadata

    for act in (world.runs.keep, world.runs.close):
        assert told(act, run.id) == told(act, secrets.token_urlsafe(16))
    assert world.size == size
    assert [one.id for one in world.runs.listed(world.acme, None, 10)] == [run.id]
    assert world.runs.listed(world.globex, None, 10) == []
    with pytest.raises(Forbidden):
        world.runs.listed(world.globex, "acme", 10)


def test_b20_the_models_of_another_partners_run_are_not_told_even_after_its_own_partner_asked(world):
    run = world.open_run(world.acme, "mythos")
    world.known_runs.check(world.acme, [ask(run.id)])
    for models in (("mythos",), ("oracle",)):
        with pytest.raises(NotFound):
            world.known_runs.check(world.globex, [ask(run.id, partner="globex", user="bob", models=models)])


def test_a_token_stays_within_the_models_of_its_run(world):
    run = world.open_run(world.acme, "mythos")
    world.known_runs.check(
        world.acme, [ask(run.id), ask(run.id, models=("mythos@blue",)), ask(None, models=("oracle",))]
    )
    for beyond in (("oracle",), ("mythos", "oracle"), ("mythos2",)):
        with pytest.raises(NotGranted):
            world.known_runs.check(world.acme, [ask(run.id), ask(run.id, models=beyond)])
    with pytest.raises(NotFound):
        world.known_runs.check(world.acme, [ask(secrets.token_urlsafe(16))])


def test_a_run_for_one_instance_is_not_for_the_model(world):
    run = world.open_run(world.acme, "mythos@blue")
    with pytest.raises(NotGranted):
        world.known_runs.check(world.acme, [ask(run.id)])


def test_what_is_remembered_of_runs_is_bounded(world):
    models = KnownRuns(world.ledger, capacity=2)
    runs = [world.open_run(world.acme) for _ in range(4)]
    for run in [*runs, *runs]:
        models.check(world.acme, [ask(run.id)])
    assert len(models._known) == 2


@pytest.mark.parametrize("models", [("sphinx",), ("mythos", "sphinx")])
def test_p7_a_run_is_opened_only_for_what_is_granted(world, models):
    size = world.size
    with pytest.raises(NotGranted):
        world.open_run(world.acme, *models)
    assert world.size == size


def test_p7_a_caller_from_no_known_place_opens_nothing(world):
    world.apply(POLICY.replace('certificate: "spiffe://acme.example/ci"', 'certificate: "spiffe://acme.example/other"'))
    assert world.acme.environment is None
    with pytest.raises(NotGranted):
        world.open_run(world.acme)


@pytest.mark.parametrize("lease_s", [0, -1, MIN_LEASE_S - 1, MAX_LEASE_S + 1, 2**62])
def test_a_lease_out_of_range_is_refused(world, lease_s):
    size = world.size
    with pytest.raises(Invalid) as caught:
        world.open_run(world.acme, lease_s=lease_s)
    assert caught.value.field == "lease"
    assert world.size == size


def test_p3_a_run_is_not_opened_while_its_partner_is_blocked(world):
    world.revoke(OPS, Selector.of(partner="acme"), reason="x", whole_realm=False, request=request())
    with pytest.raises(Blocked):
        world.open_run(world.acme)


def test_p3_a_run_is_not_opened_by_who_was_removed_after_it_was_recognised(world):
    caller = world.acme
    world.apply("\n".join(line for line in POLICY.splitlines() if 'acme.example/ci", role' not in line) + "\n")
    with pytest.raises(Unauthenticated):
        world.open_run(caller)
    world.apply(POLICY)
    with pytest.raises(Forbidden):
        world.open_run(replace(caller, environment="globex-cluster"))


def test_a_run_ends_when_its_lease_has_run_out_and_cannot_be_kept(world):
    run = world.open_run(world.acme)
    world.clock.advance(59)
    kept = world.runs.keep(world.acme, run.id, request("keep"))
    assert timedelta(seconds=58) < kept.lease_ends_at - run.lease_ends_at < timedelta(seconds=61)
    world.clock.advance(61)
    with pytest.raises(RunEnded):
        world.runs.keep(world.acme, run.id, request("keep 2"))


def test_closing_writes_the_revocation_of_the_run_once(world):
    run = world.open_run(world.acme)
    assert world.runs.close(world.acme, run.id, request("close")).is_closed
    [record] = world.ledger.revocations(0, 10)
    assert record.selector == Selector.of(run=run.id)
    [entry] = world.ledger.entries(record.index, record.index + 1)
    assert decode_entry(entry).kind is Kind.RUN_CLOSED
    size = world.size
    assert world.runs.close(world.acme, run.id, request("close again")).is_closed
    assert world.size == size
    with pytest.raises(RunEnded):
        world.runs.keep(world.acme, run.id, request("keep"))


def test_a_repeated_open_returns_the_same_run_and_opens_no_other(world):
    key = request("open", principal=world.acme.principal)
    opened = [world.runs.open(world.acme, Wanted("evaluation", "acme", ("mythos",), 60), key) for _ in range(2)]
    assert opened[0].id == opened[1].id
    assert len(world.runs.listed(world.acme, None, 10)) == 1


def test_a_run_is_decided_again_when_the_policy_moved_behind_its_back(world):
    """Another broker on the same store applies a policy: this one learns of it from the refused append."""
    from broker.adapters.policy_file import load_policy
    from broker.service.policies import Policies

    behind = Policies(world.ledger, load_policy, world.clock)
    world.runs._policies = behind
    caller = world.acme
    without = POLICY.replace(
        "{id: acme-evaluation, partner: acme, realm: evaluation, models: [mythos, oracle]",
        "{id: acme-evaluation, partner: acme, realm: evaluation, models: [oracle]",
    )
    assert without != POLICY
    world.apply(without)
    assert behind.current().version < world.policies.current().version
    with pytest.raises(NotGranted):
        world.open_run(caller)
    assert world.open_run(caller, "oracle").models == ("oracle",)


def test_a_policy_that_never_rests_ends_in_an_error_that_says_retry(world, monkeypatch):
    monkeypatch.setattr("broker.service.runs.MAX_ATTEMPTS", 0)
    with pytest.raises(PolicyMoved, match="retry"):
        world.open_run(world.acme)


def problems(failure):
    return [text for name, text in sorted(failure.metadata.items()) if name.startswith("problem-")]


def test_everything_that_is_wrong_with_a_run_is_told_at_once(world):
    world.revoke(OPS, Selector.of(model="oracle"), reason="x", whole_realm=False, request=request())
    with pytest.raises(NotGranted) as caught:
        world.open_run(world.acme, "mythos", "sphinx", "oracle", "chimera", user="alice", lease_s=1)
    told = problems(caught.value)
    assert [text.split(":")[0] for text in told] == ["lease", "sphinx", "oracle", "chimera"]
    assert "block" in told[2]
    assert "4 problems" in caught.value.message
    assert "mythos" not in str(told)


def test_one_reason_for_several_models_is_told_once(world):
    world.revoke(OPS, Selector.of(partner="acme"), reason="x", whole_realm=False, request=request())
    with pytest.raises(Blocked) as caught:
        world.open_run(world.acme, "mythos", "oracle", user="alice")
    [told] = problems(caught.value)
    assert told.startswith("mythos, oracle: block ")


def test_p8_opening_a_run_tells_nothing_of_what_was_never_granted(world):
    """Whether a model or a realm exists, or is blocked, is not learnt by asking for it."""
    world.revoke(OPS, Selector.of(model="oracle"), reason="x", whole_realm=False, request=request())

    def told(realm, model):
        with pytest.raises(NotGranted) as caught:
            world.open_run(world.globex, model, realm=realm, user="bob")
        return str(caught.value).replace(model, "M").replace(realm, "R"), problems(caught.value)[0].split(":")[1:2]

    assert told("evaluation", "oracle") == told("evaluation", "sphinx") == told("research", "mythos")
    assert told("research", "mythos") == told("nowhere", "mythos")


def test_what_only_blocks_is_told_as_blocked(world):
    world.revoke(OPS, Selector.of(model="oracle"), reason="x", whole_realm=False, request=request())
    with pytest.raises(Blocked):
        world.open_run(world.acme, "mythos", "oracle", user="alice")


def test_a_run_records_for_whom_from_where_and_by_which_grants(world):
    run = world.open_run(world.acme, "mythos", "oracle", user="alice")
    assert (run.user, run.workload, run.environment) == ("alice", None, "acme-ci")
    assert run.grants == (("mythos", "acme-evaluation"), ("oracle", "acme-evaluation"))
    assert world.ledger.run(run.id).grants == run.grants
    [data] = world.ledger.entries(world.size - 1, world.size)
    body = decode_entry(data).body
    assert body["grants"] == {"mythos": "acme-evaluation", "oracle": "acme-evaluation"}
    assert (body["user"], body["environment"], body["proof"]) == ("alice", "acme-ci", "certificate")
    assert "workload" not in body


def test_a_run_for_one_user_gives_no_token_to_another(world):
    run = world.open_run(world.acme, user="alice")
    world.known_runs.check(world.acme, [ask(run.id)])
    with pytest.raises(NotGranted, match=r"for user alice, not for workload nightly"):
        world.known_runs.check(world.acme, [Ask("evaluation", "acme", None, "nightly", ("mythos",), "place", run.id)])
    with pytest.raises(NotGranted, match=r"not for user alice by workload nightly"):
        world.known_runs.check(
            world.acme, [Ask("evaluation", "acme", "alice", "nightly", ("mythos",), "place", run.id)]
        )


def test_a_run_for_who_is_granted_nothing_is_not_opened(world):
    with pytest.raises(NotGranted):
        world.open_run(world.acme, user="mallory")
    assert world.open_run(world.acme, workload="nightly").workload == "nightly"


def test_a_run_with_a_key_is_for_who_its_opener_is(world):
    key = {"kty": "EC", "crv": "P-256", "x": "x", "y": "y"}
    assert world.open_run(world.acme, key=key).workload == "nightly"
    assert world.open_run(world.acme).workload is None


def test_a_week_long_run_is_kept_and_no_run_for_ever(world):
    world.runs._max_life = timedelta(days=8)
    run = world.open_run(world.acme, lease_s=MAX_LEASE_S)
    for _ in range(10):
        world.clock.advance(MAX_LEASE_S * 0.75)
        run = world.runs.keep(world.acme, run.id, request(secrets.token_hex(8)))
        assert world.lapses.end() == 0
    assert world.clock.now() - run.opened_at > timedelta(days=7)
    assert run.lease_ends_at == run.opened_at + timedelta(days=8)
    world.clock.advance(MAX_LEASE_S)
    with pytest.raises(RunEnded):
        world.runs.keep(world.acme, run.id, request("too late"))
    assert world.lapses.end() == 1


def test_p4_a_lapsed_run_is_revoked_once_whoever_looks(world):
    lapsed, kept = world.open_run(world.acme), world.open_run(world.acme)
    world.clock.advance(50)
    world.runs.keep(world.acme, kept.id, request("keep"))
    world.clock.advance(15)
    others = [Lapses(world.ledger, world.revocations, world.clock) for _ in range(3)]
    assert [one.end() for one in (world.lapses, *others)] == [1, 0, 0, 0]
    [record] = world.ledger.revocations(0, 10)
    assert (record.selector, record.reason) == (Selector.of(run=lapsed.id), "the lease of the run ran out")
    [entry] = world.ledger.entries(record.index, record.index + 1)
    assert (decode_entry(entry).kind, decode_entry(entry).by) == (Kind.RUN_LAPSED, "broker")
    found = world.ledger.run(lapsed.id)
    assert (found.is_closed, found.is_lapsed) == (True, True)
    assert not world.ledger.run(kept.id).is_closed
    # Closing what has lapsed does nothing.
    size = world.size
    world.runs.close(world.acme, lapsed.id, request("close"))
    assert world.size == size


def test_many_runs_that_lapse_together_are_all_ended(world, monkeypatch):
    monkeypatch.setattr("broker.service.lapses.AT_ONCE", 3)
    runs = [world.open_run(world.acme) for _ in range(7)]
    world.clock.advance(61)
    assert world.lapses.end() == 7
    assert {str(one.selector) for one in world.ledger.revocations(0, 10)} == {
        str(Selector.of(run=run.id)) for run in runs
    }


def test_live_runs_are_limited_and_a_closed_one_makes_room(world):
    limited = POLICY.replace(
        "ttl: {default: 10m, max: 1h}}", "ttl: {default: 10m, max: 1h}, limits: {live_runs: 2}}", 1
    )
    assert limited != POLICY
    world.apply(limited)
    first = world.open_run(world.acme)
    world.open_run(world.acme)
    with pytest.raises(LimitReached) as caught:
        world.open_run(world.acme)
    assert caught.value.metadata["limit"] == "live_runs"
    world.runs.close(world.acme, first.id, request("close"))
    world.open_run(world.acme)
