"""What the decision promises, for any policy, any blocks and any ask."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.domain.asking import UNRECOGNISED, Ask
from broker.domain.decision import (
    BLOCKED,
    INVALID,
    LIMIT_REACHED,
    NOT_GRANTED,
    Allowed,
    Denied,
    decide,
    explain,
    over_limit,
    told,
)
from broker.domain.policy import EMPTY_POLICY, Environment, Grant, Limits, Partner, Policy, Realm
from broker.token.identifiers import bare_name
from broker.token.revocation import Selector
from tests.unit.domain.worlds import asks, blocks, granted, policies, selectors


def labels_of(policy, model):
    """A model's own labels and, for an instance, those of its name."""
    return {label for name in (model, bare_name(model)) for label in policy.labels_by_model.get(name, ())}


def covers(policy, grant, ask):
    """Tell, from the words of design.md, whether a grant covers the whole ask, its lifetime aside."""
    if grant.partner:
        is_for = grant.partner == ask.partner
    else:
        is_for = bool(grant.partner_labels) and grant.partner_labels <= set(policy.labels_of(ask.partner))
    return (
        is_for
        and grant.realm == ask.realm
        and all(
            model in grant.models
            or bare_name(model) in grant.models
            or (bool(grant.model_labels) and grant.model_labels <= labels_of(policy, model))
            for model in ask.models
        )
        and ask.environment in grant.environments
        and (ask.user is None or ask.user in grant.users)
        and (ask.workload is None or ask.workload in grant.workloads)
        and (
            ask.realm not in policy.realms
            or not policy.realms[ask.realm].needs_both
            or None not in (ask.user, ask.workload)
        )
    )


def knows(policy, ask):
    partner = policy.partners.get(ask.partner)
    return (
        ask.realm in policy.realms
        and partner is not None
        and ask.environment in partner.environments
        and (ask.user is None or ask.user in partner.users)
        and (ask.workload is None or ask.workload in partner.workloads)
        and all(model in policy.models or bare_name(model) in policy.models for model in ask.models)
    )


def stops(selector, ask, policy):
    """Tell whether a block holds an ask back: a token for the whole ask would be one that the selector names."""
    models = {*ask.models, *(bare_name(model) for model in ask.models)}

    def holds(name, value):
        match name:
            case "model":
                return value in models or bare_name(value) in ask.models
            case "label":
                # A token for a name reaches each instance, so it has the labels of all.
                reached = {name for name in policy.labels_by_model if bare_name(name) in ask.models} | {
                    name for model in ask.models for name in (model, bare_name(model))
                }
                of_models = {label for name in reached for label in policy.labels_by_model.get(name, ())}
                return value in policy.labels_of(ask.partner) or value in of_models
            case _:
                return value == getattr(ask, name)

    return all(holds(dimension.name.lower(), value) for dimension, value in selector.conditions)


@given(asks(), policies(), blocks)
def test_p7_an_allow_points_at_a_grant_that_covers_the_whole_ask(ask, policy, in_force):
    verdict = decide(ask, policy, in_force)
    if isinstance(verdict, Allowed):
        [grant] = [grant for grant in policy.grants if grant.id == verdict.grant]
        assert covers(policy, grant, ask)
        assert knows(policy, ask)
        assert not any(stops(selector, ask, policy) for selector in in_force)


@given(granted())
def test_what_a_grant_covers_is_allowed_unless_the_lifetime_is_above_every_maximum(world):
    ask, policy = world
    longest_s = max(
        min(grant.max_ttl_s, policy.realms[ask.realm].max_ttl_s)
        for grant in policy.grants
        if covers(policy, grant, ask)
    )
    verdict = decide(ask, policy, {})
    if ask.ttl_s is None or ask.ttl_s <= longest_s:
        assert isinstance(verdict, Allowed)
    else:
        assert isinstance(verdict, Denied)
        assert verdict.why.code == INVALID


@given(st.one_of(granted(), st.tuples(asks(), policies())))
def test_a_token_is_never_longer_than_asked_nor_than_its_grant_and_its_realm_allow(world):
    ask, policy = world
    verdict = decide(ask, policy, {})
    if isinstance(verdict, Allowed):
        [grant] = [grant for grant in policy.grants if grant.id == verdict.grant]
        assert 1 <= verdict.ttl_s <= min(grant.max_ttl_s, policy.realms[ask.realm].max_ttl_s)
        if ask.ttl_s is None:
            assert verdict.ttl_s <= grant.default_ttl_s
        else:
            assert verdict.ttl_s == ask.ttl_s


@given(asks(), blocks)
def test_p7_an_empty_policy_allows_nothing(ask, in_force):
    assert isinstance(decide(ask, EMPTY_POLICY, in_force), Denied)


@given(granted())
def test_p7_without_grants_nothing_is_allowed(world):
    ask, policy = world
    verdict = decide(ask, replace(policy, grants=()), {})
    assert isinstance(verdict, Denied)
    assert verdict.why.code == NOT_GRANTED


@given(st.one_of(granted(), st.tuples(asks(), policies())), blocks, st.data())
def test_p7_removing_a_grant_never_turns_a_deny_into_an_allow(world, in_force, data):
    ask, policy = world
    if policy.grants and isinstance(decide(ask, policy, in_force), Denied):
        gone = data.draw(st.sampled_from(policy.grants))
        fewer = replace(policy, grants=tuple(grant for grant in policy.grants if grant is not gone))
        assert isinstance(decide(ask, fewer, in_force), Denied)


@given(granted(), st.sampled_from(["realms", "partners", "models"]))
def test_p7_a_grant_for_what_the_policy_no_longer_names_allows_nothing(world, part):
    ask, policy = world
    bare = replace(policy, **{part: type(getattr(policy, part))()})
    verdict = decide(ask, bare, {})
    assert isinstance(verdict, Denied)
    assert verdict.why.code == NOT_GRANTED


@given(granted(), selectors(), blocks)
def test_a_block_denies_exactly_what_it_covers_and_lifting_it_allows_it_again(world, selector, others):
    ask, policy = world
    without = decide(ask, policy, others)
    verdict = decide(ask, policy, {**others, selector: 7})
    if stops(selector, ask, policy):
        assert isinstance(verdict, Denied)
        assert verdict.why.code == BLOCKED
    elif selector not in others:
        assert verdict == without
    lifted = {**others, selector: 7}
    del lifted[selector]
    assert decide(ask, policy, lifted) == decide(ask, policy, {s: i for s, i in others.items() if s != selector})


@given(granted(), blocks, selectors())
def test_p7_a_further_block_never_turns_a_deny_into_an_allow(world, in_force, selector):
    ask, policy = world
    if isinstance(decide(ask, policy, in_force), Denied):
        assert isinstance(decide(ask, policy, {**in_force, selector: 7}), Denied)


@given(st.one_of(granted(), st.tuples(asks(), policies())), blocks, st.randoms(use_true_random=False))
def test_the_order_of_grants_and_blocks_changes_nothing_about_the_verdict(world, in_force, random):
    ask, policy = world
    shuffled, items = list(policy.grants), list(in_force.items())
    random.shuffle(shuffled)
    random.shuffle(items)
    one = decide(ask, policy, in_force)
    other = decide(ask, replace(policy, grants=tuple(shuffled)), dict(items))
    assert type(one) is type(other)
    if isinstance(one, Allowed):
        assert one == other
    else:
        assert one.why.code == other.why.code


@given(st.one_of(granted(), st.tuples(asks(), policies())), blocks)
def test_explain_and_decide_agree_always(world, in_force):
    ask, policy = world
    verdict, rules = decide(ask, policy, in_force), explain(ask, policy, in_force)
    assert rules
    assert all(rule.rule and rule.detail for rule in rules)
    last = rules[-1]
    match verdict:
        case Allowed(grant=grant):
            assert (last.rule, last.passes) == (f"grant {grant}", True)
        case Denied(why=why):
            assert not last.passes
            assert last.detail == why.detail or why.code == INVALID
            assert why.detail


@given(asks(), policies())
def test_p7_a_caller_whose_place_is_not_recognised_is_denied_whatever_the_policy_names(ask, policy):
    """An environment that happens to be called like the absence of one must not let anybody in."""
    nowhere = replace(ask, environment=UNRECOGNISED)
    partner = Partner(
        ask.partner,
        (),
        frozenset({ask.user} - {None}),
        frozenset({ask.workload} - {None}),
        {UNRECOGNISED: Environment(UNRECOGNISED, "spiffe://acme.example/other")},
    )
    grant = Grant(
        "g",
        ask.partner,
        ask.realm,
        frozenset(ask.models),
        frozenset({UNRECOGNISED}),
        partner.users,
        partner.workloads,
        60,
        120,
    )
    tricky = Policy(
        realms={**policy.realms, ask.realm: Realm(ask.realm, "https://x.example", "x", 120)},
        models=frozenset(ask.models),
        partners={ask.partner: partner},
        grants=(grant,),
    )
    assert isinstance(decide(nowhere, tricky, {}), Denied)
    assert isinstance(decide(nowhere, policy, {}), Denied)


EVALUATION = Realm("evaluation", "https://broker.example/evaluation", "models.evaluation", 3600)
ACME = Partner("acme", (), frozenset({"alice"}), frozenset({"nightly"}), {"ci": Environment("ci", "spiffe://a.b/ci")})


def one_grant(**changes):
    return Grant(
        **{
            "id": "only",
            "partner": "acme",
            "realm": "evaluation",
            "models": frozenset({"mythos"}),
            "environments": frozenset({"ci"}),
            "users": frozenset({"alice"}),
            "workloads": frozenset(),
            "default_ttl_s": 600,
            "max_ttl_s": 1200,
            **changes,
        }
    )


def policy_of(*grants):
    return Policy({"evaluation": EVALUATION}, frozenset({"mythos", "oracle"}), {"acme": ACME}, grants)


def ask_of(**changes):
    return Ask(
        **{
            "realm": "evaluation",
            "partner": "acme",
            "user": "alice",
            "workload": None,
            "models": ("mythos",),
            "environment": "ci",
            **changes,
        }
    )


def test_two_grants_that_cover_an_ask_only_together_do_not_allow_it():
    halves = policy_of(one_grant(id="a"), one_grant(id="b", models=frozenset({"oracle"})))
    assert isinstance(decide(ask_of(models=("mythos",)), halves, {}), Allowed)
    verdict = decide(ask_of(models=("mythos", "oracle")), halves, {})
    assert isinstance(verdict, Denied)


def test_a_grant_of_an_instance_is_none_of_the_model_or_of_its_other_instances():
    policy = policy_of(one_grant(models=frozenset({"mythos@blue"})))
    assert isinstance(decide(ask_of(models=("mythos@blue",)), policy, {}), Allowed)
    for beyond in ("mythos", "mythos@green", "mythos@blu", "mythos@blue2"):
        assert isinstance(decide(ask_of(models=(beyond,)), policy, {}), Denied), beyond


def test_a_user_is_never_a_workload_of_the_same_name():
    policy = policy_of(one_grant(workloads=frozenset({"nightly"})))
    assert isinstance(decide(ask_of(user="nightly"), policy, {}), Denied)
    assert isinstance(decide(ask_of(user=None, workload="alice"), policy, {}), Denied)


@pytest.mark.parametrize(
    ("ttl_s", "expected"),
    [(1, 1), (1199, 1199), (1200, 1200), (1201, None), (3600, None), (10**12, None), (None, 600)],
)
def test_a_lifetime_above_the_grant_is_refused_and_not_shortened(ttl_s, expected):
    verdict = decide(ask_of(ttl_s=ttl_s), policy_of(one_grant()), {})
    if expected is None:
        assert isinstance(verdict, Denied)
        assert (verdict.why.code, verdict.why.rule) == (INVALID, "lifetime")
        assert "1200" in verdict.why.detail
    else:
        assert verdict == Allowed("only", expected)


def test_of_several_grants_the_one_that_allows_the_longest_is_taken():
    short, long = one_grant(id="a-short", max_ttl_s=60, default_ttl_s=60), one_grant(id="z-long")
    for grants in ((short, long), (long, short)):
        assert decide(ask_of(), policy_of(*grants), {}) == Allowed("z-long", 600)


def test_too_long_a_lifetime_for_a_grant_that_does_not_cover_the_ask_says_only_that_there_is_none():
    verdict = decide(ask_of(models=("oracle",), ttl_s=10**6), policy_of(one_grant()), {})
    assert isinstance(verdict, Denied)
    assert verdict.why.code == NOT_GRANTED


def test_a_block_on_one_instance_stops_an_ask_for_all_instances():
    in_force = {Selector.of(model="mythos@blue"): 7}
    policy = policy_of(one_grant())
    assert isinstance(decide(ask_of(models=("mythos",)), policy, in_force), Denied)
    assert isinstance(decide(ask_of(models=("mythos@blue",)), policy, in_force), Denied)
    assert isinstance(decide(ask_of(models=("mythos@green",)), policy, in_force), Allowed)


def test_a_batch_is_as_large_as_its_grant_allows_and_no_larger():
    policy = policy_of(one_grant(id="few", limits=Limits(batch=3)), one_grant(id="many"))
    assert list(over_limit([], policy)) == []
    assert list(over_limit(["few"] * 3 + ["many"] * 997, policy)) == []
    [(grant, why)] = over_limit(["many", "few", "few", "few", "few"], policy)
    assert grant.id == "few"
    assert (why.code, why.rule) == (LIMIT_REACHED, "grant few")
    assert "allows 3" in why.detail


@given(asks(), policies(), blocks)
def test_p8_a_partner_cannot_tell_what_it_was_never_granted_from_what_does_not_exist(ask, policy, in_force):
    verdict = decide(ask, policy, in_force)
    grants = [grant for grant in policy.grants if covers_place(policy, grant, ask)]
    if isinstance(verdict, Denied) and not grants:
        empty = decide(ask, EMPTY_POLICY, {})
        assert isinstance(empty, Denied)
        assert told(ask, policy, verdict.why) == told(ask, EMPTY_POLICY, empty.why)


def covers_place(policy, grant, ask):
    """Tell whether a grant gives the partner something in the realm."""
    partner = policy.partners.get(ask.partner)
    is_for = grant.partner == ask.partner if grant.partner else partner is not None and grant.is_for(partner)
    return is_for and grant.realm == ask.realm
