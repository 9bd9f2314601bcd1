"""Explain: by the code that decides, with the one thing that would change the answer, and nothing that is not theirs."""

import pytest

from broker.domain.asking import Ask
from broker.domain.policy import Role
from broker.errors import Forbidden
from broker.service.calling import Caller
from broker.service.explain import NO_ONE_THING
from broker.token.revocation import Selector
from tests.served import POLICY
from tests.unit.service.world import OPS, request

ALICE = Ask("evaluation", "acme", "alice", None, ("mythos",), "acme-ci")
DEMANDING = POLICY.replace(
    "users: [alice], workloads: [nightly], ttl: {default: 10m, max: 1h}}",
    "users: [alice], workloads: [nightly], ttl: {default: 10m, max: 1h}, binding: any, "
    "limits: {batch: 5, live_runs: 2, user: {mints_per_minute: 3}}, "
    "approvals: {needed: 1, group: board, window: 1h, valid: 8h, login: 15m}}",
).replace("realms:\n", "groups: {board: [carol]}\nrealms:\n", 1)


def ask(**changes):
    return Ask(
        **{
            "realm": "evaluation",
            "partner": "acme",
            "user": "alice",
            "workload": None,
            "models": ("mythos",),
            "environment": "acme-ci",
            **changes,
        }
    )


@pytest.mark.parametrize(
    ("changes", "remedy"),
    [
        ({"ttl_s": 7200}, "ask for a lifetime of at most 3600 s"),
        ({"environment": "unrecognised"}, "ask from environment acme-ci"),
        ({"realm": "research"}, "an admin adds mythos to models of grant acme-research"),
        ({"realm": "research", "models": ("oracle", "mythos")}, "leave out mythos"),
        ({"realm": "research", "user": None, "workload": "nightly", "models": ("oracle",)}, "an admin adds nightly to workloads of grant acme-research"),
        ({"user": "mallory"}, NO_ONE_THING),
        ({"realm": "nowhere"}, NO_ONE_THING),
    ],
)  # fmt: skip
def test_the_one_thing_that_would_change_a_denial_is_named(world, changes, remedy):
    explained = world.explain(OPS, ask(**changes))
    assert (explained.is_allowed, explained.remedy) == (False, remedy)


def test_a_block_is_the_one_thing(world):
    world.revoke(OPS, Selector.of(model="mythos"), reason="x", whole_realm=False, request=request())
    assert world.explain(OPS, ALICE).remedy == "an admin reinstates model=mythos"
    world.revoke(OPS, Selector.of(user="alice"), reason="x", whole_realm=False, request=request())
    assert world.explain(OPS, ALICE).remedy == NO_ONE_THING


def test_an_allowed_mint_says_what_it_rests_on_and_what_more_is_demanded(world):
    world.apply(DEMANDING)
    explained = world.explain(world.acme, ALICE)
    assert explained.is_allowed
    assert explained.remedy == "only grant acme-evaluation allows it: without it, it would be denied"
    assert [one.rule for one in explained.demands] == [
        *("binding", "approvals", "batch", "live_runs", "mints_per_minute"),
    ]
    assert all(one.is_enforced for one in explained.demands)
    assert "1 of group board must approve within 1h" in explained.demands[1].detail
    world.apply(DEMANDING.replace("binding: any", "mode: audit, binding: any"))
    assert not any(one.is_enforced for one in world.explain(world.acme, ALICE).demands)


@pytest.mark.parametrize(
    "changes",
    [
        {"realm": "production"},
        {"models": ("secret",)},
        {"models": ("mythos", "secret")},
        {"realm": "nowhere", "models": ("unheard-of",)},
    ],
    ids=str,
)
def test_p8_a_partner_is_explained_nothing_of_what_it_was_never_granted(world, changes):
    more = POLICY.replace("models: [mythos, oracle]\n", "models: [mythos, oracle, secret]\n").replace(
        "models: [mythos, oracle, secret]\n",
        '  production: {issuer: "https://broker.example/p", audience: models.p, max_ttl: 1h}\n'
        "models: [mythos, oracle, secret]\n",
    )
    world.apply(more)
    world.revoke(OPS, Selector.of(model="secret"), reason="x", whole_realm=False, request=request())
    for caller in (world.acme, Caller("spiffe://acme.example/admin", Role.PARTNER_ADMIN, "acme")):
        explained = world.explain(caller, ask(**changes))
        [rule] = explained.rules
        assert (rule.rule, rule.passes, explained.remedy) == ("default", False, NO_ONE_THING)
        assert "block" not in rule.detail
    # Whoever may know is told rule by rule.
    assert len(world.explain(OPS, ask(**changes)).rules) >= 1


MAY = {Role.ADMIN: True, Role.AUDITOR: True, Role.HARNESS: True, Role.PARTNER_ADMIN: True}


@pytest.mark.parametrize("role", list(Role))
@pytest.mark.parametrize("partner", ["acme", "globex"])
def test_b20_each_role_is_explained_what_it_may_know(world, role, partner):
    has_partner = role in (Role.HARNESS, Role.PARTNER_ADMIN)
    caller = Caller("spiffe://x.y/z", role, partner if has_partner else None)
    if MAY.get(role, False) and (partner == "acme" or not has_partner):
        assert world.explain(caller, ALICE).is_allowed
    else:
        with pytest.raises(Forbidden):
            world.explain(caller, ALICE)
