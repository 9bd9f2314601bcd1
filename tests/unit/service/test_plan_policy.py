"""A plan says what would change and whom it would touch, and what is applied by it is what was looked at."""

import json
from dataclasses import replace
from datetime import timedelta

import pytest

from broker.domain.changes import Direction
from broker.domain.policy import Role
from broker.errors import ConfigInvalid, Forbidden, Invalid, PolicyMoved
from broker.ledger.entry import Entry, Kind, encode_entry
from broker.service.calling import Caller
from broker.service.ports import RunOpened, Write
from broker.token.revocation import Selector
from tests.served import ADMIN, POLICY
from tests.unit.service.test_policies import LONG
from tests.unit.service.world import OPS, request

WITHOUT_ORACLE = POLICY.replace("realm: evaluation, models: [mythos, oracle]", "realm: evaluation, models: [mythos]")
SHORTER = POLICY.replace("users: [bob], ttl: {default: 10m, max: 30m}", "users: [bob], ttl: {default: 10m, max: 20m}")


def apply(world, document, plan, *, expected_version=None, key=None):
    return world.apply_policy(
        OPS, document, expected_version=expected_version, request=key or request(), reason="as planned", plan=plan
    )


def minted(world, **claims):
    """Write what a mint's entry says, as far as a plan reads it."""
    at = world.clock.now()
    body = {
        "claims": {
            "realm": "evaluation",
            "partner": "acme",
            "user": "alice",
            "models": ["oracle"],
            "env": "acme-ci",
            "exp": int((at + timedelta(minutes=5)).timestamp()),
            **claims,
        }
    }
    write = Write([lambda index: encode_entry(Entry(index, Kind.TOKEN_MINTED, at, ADMIN, body))])
    world.ledger.append(write).result()


def test_a_plan_is_words_and_writes_nothing(world):
    before, size = world.policies.current(), world.size
    plan = world.plan(OPS, WITHOUT_ORACLE)
    assert (world.policies.current(), world.size) == (before, size)
    assert plan.version == before.version
    [loss, *_] = plan.changes
    assert loss.direction is Direction.LESS
    assert "lose oracle in evaluation from acme-ci" in loss.text


def test_a_plan_of_what_is_in_force_says_that_nothing_changes(world):
    plan = world.plan(OPS, POLICY + "# only a comment\n")
    assert (plan.changes, plan.runs, plan.tokens) == ((), (), 0)


def test_what_was_planned_is_applied_and_only_that(world):
    plan = world.plan(OPS, WITHOUT_ORACLE)
    size = world.size
    with pytest.raises(Invalid) as caught:
        apply(world, WITHOUT_ORACLE + " ", plan.id)
    assert caught.value.field == "plan"
    assert world.size == size
    key = request("planned")
    done = apply(world, WITHOUT_ORACLE, plan.id, key=key)
    assert done[0] == plan.version + 1
    # Repeated, it is answered as before, though the policy has moved: by itself.
    assert apply(world, WITHOUT_ORACLE, plan.id, key=key) == done


@pytest.mark.parametrize("how", ["another policy", "a block"])
def test_p3_a_plan_that_moved_under_you_is_refused(world, how):
    plan = world.plan(OPS, WITHOUT_ORACLE)
    if how == "a block":
        world.revoke(OPS, Selector.of(user="alice"), reason="x", whole_realm=False, request=request())
    else:
        world.apply(SHORTER)
    size = world.size
    with pytest.raises(PolicyMoved):
        apply(world, WITHOUT_ORACLE, plan.id)
    assert world.size == size
    assert apply(world, WITHOUT_ORACLE, world.plan(OPS, WITHOUT_ORACLE).id)


@pytest.mark.parametrize(
    "plan", ["x", "1", "1-", "-1-" + "0" * 32, "01-" + "0" * 32, "1-" + "0" * 31, "1-" + "G" * 32, "9" * 30, "1-\u0660"]
)
def test_what_is_no_plan_is_refused(world, plan):
    size = world.size
    with pytest.raises(Invalid) as caught:
        apply(world, POLICY, plan)
    assert (caught.value.field, bool(caught.value.hint)) == ("plan", True)
    assert world.size == size


def test_a_plan_and_another_expected_version_contradict_each_other(world):
    plan = world.plan(OPS, POLICY)
    with pytest.raises(Invalid):
        apply(world, POLICY, plan.id, expected_version=plan.version + 1)
    assert apply(world, POLICY, plan.id, expected_version=plan.version)


@pytest.mark.parametrize("document", ["", "version: 1\n", "users: [", LONG, "#" * ((1 << 20) + 1)])
def test_p7_a_plan_for_what_could_not_be_applied_names_what_is_wrong(world, document):
    with pytest.raises((Invalid, ConfigInvalid)) as caught:
        world.plan(OPS, document)
    assert caught.value.hint


@pytest.mark.parametrize("role", [role for role in Role if role not in (Role.ADMIN, Role.AUDITOR)])
def test_nobody_but_admin_and_auditor_plans(world, role):
    with pytest.raises(Forbidden):
        world.plan(Caller("spiffe://x.y/z", role, "acme"), POLICY)


def test_open_runs_that_would_be_touched_are_named_and_no_others(world):
    hit = world.open_run(world.acme, "mythos", "oracle")
    spared = world.open_run(world.acme, "mythos")
    closed = world.open_run(world.acme, "oracle")
    world.runs.close(world.acme, closed.id, request(principal=world.acme.principal))
    elsewhere = world.open_run(world.globex)
    [run] = world.plan(OPS, WITHOUT_ORACLE).runs
    assert (run.run.id, run.lost, run.changed) == (hit.id, ("oracle",), ())
    [run] = world.plan(OPS, SHORTER).runs
    assert (run.run.id, run.lost, run.changed) == (elsewhere.id, (), ("mythos",))
    world.clock.advance(120)
    assert world.plan(OPS, WITHOUT_ORACLE).runs == ()
    assert spared.id


@pytest.mark.parametrize(
    ("whose", "is_touched"),
    [
        ({}, True),
        ({"user": "alice"}, True),
        ({"workload": "nightly"}, False),
        ({"user": "eve"}, False),
        ({"user": "alice", "workload": "nightly"}, True),
        ({"environment": "acme-ci"}, True),
        ({"environment": "elsewhere"}, False),
    ],
    ids=str,
)
def test_a_run_is_touched_by_what_happens_to_whom_and_where_it_is_for(world, whose, is_touched):
    run = world.open_run(world.acme, "mythos")
    at = {"id": "run-of-somebody", "user": None, "workload": None, "environment": None, **whose}
    world.runs.close(world.acme, run.id, request(principal=world.acme.principal))
    effect = RunOpened(replace(run, **at))
    world.ledger.append(Write([lambda index: b"entry"], effects=(effect,))).result()
    without_alice = POLICY.replace(
        "models: [mythos, oracle], environments: [acme-ci], users: [alice], workloads: [nightly]",
        "models: [mythos, oracle], environments: [acme-ci], workloads: [nightly]",
    )
    assert [one.lost for one in world.plan(OPS, without_alice).runs] == ([("mythos",)] if is_touched else [])


def test_live_tokens_that_could_not_be_minted_again_are_counted(world):
    minted(world)
    minted(world)
    minted(world, models=["mythos", "oracle"])
    minted(world, models=["mythos"])
    minted(world, models=["oracle@one"])
    minted(world, user="bob", partner="globex", env="globex-cluster", models=["mythos"])
    minted(world, exp=int(world.clock.now().timestamp()) - 1)
    # What the policy of today would not allow either is not lost by this one.
    minted(world, user="mallory")
    assert world.plan(OPS, WITHOUT_ORACLE).tokens == 4
    without_acme = POLICY.replace("partner: acme, realm: evaluation", "partner: globex, realm: evaluation").replace(
        "models: [mythos, oracle], environments: [acme-ci], users: [alice], workloads: [nightly]",
        "models: [mythos, oracle], environments: [globex-cluster], users: [bob]",
    )
    assert world.plan(OPS, without_acme).tokens == 5


def test_a_policy_of_ten_thousand_principals_is_planned_and_applied_within_a_calls_deadline(world):
    many = POLICY + "".join(
        f'  - {{id: "spiffe://acme.example/ci/{n}", role: harness, partner: acme}}\n' for n in range(10_000)
    )
    plan = world.plan(OPS, many)
    assert len(plan.changes) == 10_000
    assert apply(world, many, plan.id)
    assert len(json.dumps([change.text for change in plan.changes])) < 2 << 20
