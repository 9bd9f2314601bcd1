"""Selectors and revocations: what each dimension matches, what blocks, what is absolute (P4, P8)."""

import itertools

import pytest

from broker.token.revocation import Dimension, Matcher, Revocation, Selector, facts_of
from tests.realm_keys import RealmKeys

KEYS = RealmKeys()
KID = KEYS.token.kid
CLAIMS = KEYS.claims(
    run="run-0001",
    test="case-7",
    jti="token-0001",
    models=("mythos", "oracle@eu"),
    scope="model:mythos model:oracle@eu",
    labels=("tier=gold", "where=eu"),
    parents=("token-0091", "token-0092"),
)
FACTS = facts_of(CLAIMS, KID, "mythos@us")
HOLDS = {
    "realm": ["evaluation"],
    "partner": ["acme"],
    "user": ["bob"],
    "workload": [],
    "environment": ["ci"],
    "model": ["mythos", "mythos@us", "oracle", "oracle@eu"],
    "run": ["run-0001"],
    "test": ["case-7"],
    # What kills a token kills what was derived from it.
    "token": ["token-0001", "token-0091", "token-0092"],
    "parent": ["token-0091", "token-0092"],
    "key": [KID],
    "label": ["tier=gold", "where=eu"],
}
FAILS = {
    "realm": ["production", "evaluation.x", "eval"],
    "partner": ["globex", "acm", "acme2", "acme-evil", "bob"],
    "user": ["alice", "acme"],
    "workload": ["bob"],
    "environment": ["lab"],
    "model": ["oracle@us", "mythos@eu", "us", "eu", "myth"],
    "run": ["run-0002", "token-0001"],
    "test": ["case-8"],
    "token": ["token-0002", "token-0093", "run-0001"],
    "parent": ["token-0001", "token-0093"],
    "key": ["A" * 43],
    "label": ["tier=lead", "where=us", "tier=gol", "gold=tier"],
}


def is_dead(idx: int, *selectors: tuple[int, Selector]) -> bool:
    matcher = Matcher()
    for index, selector in selectors:
        matcher.add(Revocation(index, selector), 10**18)
    found = matcher.find(FACTS, idx) is not None
    assert found == any(Revocation(index, selector).kills(FACTS, idx) for index, selector in selectors)
    return found


@pytest.mark.parametrize("name", HOLDS)
def test_p4_each_dimension_matches_its_own_values_and_no_others(name):
    for value in HOLDS[name]:
        assert is_dead(5, (6, Selector.of(**{name: value}))), value
        assert is_dead(5, (5, Selector.of(**{name: value}))) == (name == "key")
    for value in FAILS[name]:
        assert not is_dead(5, (6, Selector.of(**{name: value}))), value


@pytest.mark.parametrize(("one", "other"), list(itertools.combinations(HOLDS, 2)), ids="-".join)
def test_p4_a_selector_is_an_and_of_its_conditions(one, other):
    for a, b in itertools.product(HOLDS[one], HOLDS[other]):
        assert is_dead(5, (6, Selector.of(**{one: a, other: b})))
        # Together with anything else a key is no longer absolute: the index counts.
        assert not is_dead(6, (6, Selector.of(**{one: a, other: b})))
    for a, b in itertools.chain(
        itertools.product(HOLDS[one], FAILS[other]), itertools.product(FAILS[one], HOLDS[other] + FAILS[other])
    ):
        assert not is_dead(5, (6, Selector.of(**{one: a, other: b})))


def test_p4_no_other_revocation_masks_one():
    """Wider, narrower, older or newer: the one that kills kills."""
    killing = (6, Selector.of(partner="acme", model="mythos"))
    others = [
        (2, Selector.of(partner="acme")),
        (3, Selector.of(partner="acme", model="mythos", environment="ci")),
        (1, Selector.of(partner="acme", model="mythos")),
        (99, Selector.of(partner="globex", model="mythos")),
        (4, Selector.of(realm="evaluation")),
        (99, Selector.of(realm="production")),
    ]
    for order in itertools.permutations([killing, *others]):
        assert is_dead(5, *order)
    assert not is_dead(5, *others)


def test_p9_a_key_alone_is_absolute_and_known_to_be_revoked():
    matcher = Matcher()
    assert not matcher.is_key_revoked(KID)
    matcher.add(Revocation(3, Selector.of(key=KID, partner="acme")), 10**18)
    assert not matcher.is_key_revoked(KID), "not the key alone"
    matcher.add(Revocation(3, Selector.of(key=KID)), 10**18)
    assert matcher.is_key_revoked(KID)
    assert not matcher.is_key_revoked("A" * 43)
    assert matcher.find(FACTS, 2**53 - 1) == Revocation(3, Selector.of(key=KID))
    assert matcher.shapes == len(matcher) == 2


@pytest.mark.parametrize("name", HOLDS)
def test_what_a_selector_says_of_itself(name):
    value = (HOLDS[name] or ["bob"])[0]
    selector = Selector.of(**{name: value})
    dimension = Dimension[name.upper()]
    assert str(selector) == f"{name}={value}"
    assert selector.get(dimension) == value
    assert all(selector.get(other) is None for other in Dimension if other is not dimension)
    assert selector.dimensions == (dimension,)
    assert selector.names_only(dimension)
    assert not selector.names_only(dimension, Dimension.REALM if name != "realm" else Dimension.USER)
    assert selector.is_absolute == (name == "key")
    # What ends by itself is not blocked: a run, a test, a token, a parent, a key.
    assert selector.is_blocking == (name not in {"run", "test", "token", "parent", "key"})


def test_a_selector_of_several_dimensions_says_them_in_order():
    selector = Selector.of(model="mythos", partner="acme", user=None)
    assert str(selector) == "partner=acme model=mythos"
    assert selector.names_only(Dimension.MODEL, Dimension.PARTNER)
    assert selector.is_blocking
    assert not Selector.of(model="mythos", run="run-0001").is_blocking
    assert not Selector.of(key=KID, partner="acme").is_absolute


def test_p8_a_selector_that_names_another_realm_concerns_it_alone():
    assert Selector.of(partner="acme").concerns("evaluation")
    assert Selector.of(partner="acme", realm="evaluation").concerns("evaluation")
    assert not Selector.of(partner="acme", realm="production").concerns("evaluation")
    assert not Selector.of(realm="evaluation.x").concerns("evaluation")


def test_p4_an_instance_dies_for_whoever_asks_for_it_and_for_nobody_else():
    """A token for all of a model is dead for the revoked instance, and lives for the others."""
    claims = KEYS.claims()
    matcher = Matcher()
    matcher.add(Revocation(9, Selector.of(model="mythos@eu")), 10**18)
    assert matcher.find(facts_of(claims, KID, "mythos@eu"), 5)
    for asked in ("mythos@us", "mythos", None):
        assert matcher.find(facts_of(claims, KID, asked), 5) is None
    matcher.add(Revocation(9, Selector.of(model="mythos")), 10**18)
    for asked in ("mythos@us", "mythos@eu", "mythos", None):
        assert matcher.find(facts_of(claims, KID, asked), 5)
