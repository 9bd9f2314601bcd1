"""Runs: opened for what is granted, kept and closed by their own partner alone."""

import secrets
from dataclasses import replace
from datetime import timedelta

import pytest

from broker.domain.asking import Ask
from broker.domain.policy import Role
from broker.errors import Blocked, Forbidden, Invalid, NotFound, NotGranted, PolicyMoved, RunEnded, Unauthenticated
from broker.ledger.entry import Kind, decode_entry
from broker.service.calling import Caller
from broker.service.runs import MAX_LEASE_S, MIN_LEASE_S, RunModels
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
    world.run_models.check(world.acme, [ask(run.id)])
    for models in (("mythos",), ("oracle",)):
        with pytest.raises(NotFound):
            world.run_models.check(world.globex, [ask(run.id, partner="globex", user="bob", models=models)])


def test_a_token_stays_within_the_models_of_its_run(world):
    run = world.open_run(world.acme, "mythos")
    world.run_models.check(
        world.acme, [ask(run.id), ask(run.id, models=("mythos@blue",)), ask(None, models=("oracle",))]
    )
    for beyond in (("oracle",), ("mythos", "oracle"), ("mythos2",)):
        with pytest.raises(NotGranted):
            world.run_models.check(world.acme, [ask(run.id), ask(run.id, models=beyond)])
    with pytest.raises(NotFound):
        world.run_models.check(world.acme, [ask(secrets.token_urlsafe(16))])


def test_a_run_for_one_instance_is_not_for_the_model(world):
    run = world.open_run(world.acme, "mythos@blue")
    with pytest.raises(NotGranted):
        world.run_models.check(world.acme, [ask(run.id)])


def test_what_is_remembered_of_runs_is_bounded(world):
    models = RunModels(world.ledger, capacity=2)
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
        world.runs.open(
            world.acme, realm="evaluation", partner="acme", models=("mythos",), lease_s=lease_s, request=request()
        )
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
    opened = [
        world.runs.open(world.acme, realm="evaluation", partner="acme", models=("mythos",), lease_s=60, request=key)
        for _ in range(2)
    ]
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
