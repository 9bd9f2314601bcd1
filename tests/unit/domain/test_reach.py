"""Ways: what they say is what a mint would be decided, for each and every combination of names."""

from dataclasses import replace
from itertools import product

from hypothesis import given, settings
from hypothesis import strategies as st

from broker.domain.asking import Ask
from broker.domain.decision import Allowed, decide
from broker.domain.reach import ways
from tests.unit.domain.worlds import MODELS, PARTNERS, PLACES, REALMS, USERS, WORKLOADS, granted, policies

ONE = [(user, None) for user in USERS] + [(None, workload) for workload in WORKLOADS]
BOTH = list(product(USERS, WORKLOADS))


def subjects_of(realm, *sides):
    needs_both = [side.realms[realm].needs_both for side in sides if realm in side.realms]
    return (ONE if not all(needs_both) else []) + (BOTH if any(needs_both) else [])


def check(before, after, partner, realm):
    told = {}
    for way, terms in ways([before, after], partner, realm):
        for (user, workload), model, place in product(way.subjects, way.models, way.environments):
            assert (user, workload, model, place) not in told
            told[user, workload, model, place] = terms
    named = {model for side in (before, after) for grant in side.grants_for(partner, realm) for model in grant.models}
    for (user, workload), model, place in product(subjects_of(realm, before, after), MODELS, PLACES):
        ask = Ask(realm, partner, user, workload, (model,), place)
        verdicts = [decide(ask, side, {}) for side in (before, after)]
        terms = told.pop((user, workload, model, place), (None, None))
        if terms == (None, None) and "@" in model and model not in named:
            # An instance that nobody names is covered by what is told of its name.
            continue
        for verdict, one in zip(verdicts, terms, strict=True):
            assert isinstance(verdict, Allowed) == (one is not None)
            if isinstance(verdict, Allowed):
                assert (one.grant, one.default_ttl_s) == (verdict.grant, verdict.ttl_s)
    assert not told


@given(policies(), policies(), st.sampled_from(PARTNERS), st.sampled_from(REALMS))
def test_the_ways_of_two_policies_are_what_both_would_decide_for_every_single_ask(before, after, partner, realm):
    check(before, after, partner, realm)


@st.composite
def edited(draw):
    """Return a policy that grants something to all names alike, the same after one edit, and where to look."""
    ask, policy = draw(granted())
    partner, realm = policy.partners[ask.partner], policy.realms[ask.realm]
    wide = [
        replace(grant, users=frozenset(USERS), workloads=frozenset(WORKLOADS), environments=frozenset(PLACES))
        if grant.id == "covering"
        else grant
        for grant in policy.grants
    ]
    before = replace(policy, grants=tuple(wide), models=frozenset(MODELS))
    places = {name: place for name, place in partner.environments.items() if name != draw(st.sampled_from(PLACES))}
    edits = [
        {"realms": {**before.realms, ask.realm: replace(realm, needs_both=not realm.needs_both)}},
        {"partners": {**before.partners, ask.partner: replace(partner, users=frozenset(USERS[:1]))}},
        {"partners": {**before.partners, ask.partner: replace(partner, workloads=frozenset(WORKLOADS[:1]))}},
        {"partners": {**before.partners, ask.partner: replace(partner, environments=places)}},
        {"models": frozenset(draw(st.sets(st.sampled_from(MODELS))))},
        {"grants": tuple(grant for grant in before.grants if grant.id != "covering")},
    ]
    return before, replace(before, **draw(st.sampled_from(edits))), ask.partner, ask.realm


@settings(max_examples=150)
@given(edited(), st.booleans())
def test_one_edit_is_found_in_both_directions(world, is_undone):
    before, after, partner, realm = world
    check(*((after, before) if is_undone else (before, after)), partner, realm)
