"""Ways: what they say is what a mint would be decided, for each and every combination of names."""

from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from broker.domain.asking import Ask
from broker.domain.decision import Allowed, decide
from broker.domain.reach import ways
from tests.unit.domain.worlds import MODELS, PARTNERS, PLACES, REALMS, USERS, WORKLOADS, policies

ONE = [(user, None) for user in USERS] + [(None, workload) for workload in WORKLOADS]
BOTH = list(product(USERS, WORKLOADS))


def subjects_of(realm, *sides):
    needs_both = [side.realms[realm].needs_both for side in sides if realm in side.realms]
    return (ONE if not all(needs_both) else []) + (BOTH if any(needs_both) else [])


@given(policies(), policies(), st.sampled_from(PARTNERS), st.sampled_from(REALMS))
def test_the_ways_of_two_policies_are_what_both_would_decide_for_every_single_ask(before, after, partner, realm):
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
