"""Whom a trust rule means: exactly one immutable subject, by whole claims, from the right place."""

from ipaddress import ip_network

import pytest

from broker.domain.policy import Environment, Partner, Policy, Principal, Role
from broker.domain.trust import IMMUTABLE, Provider, ProviderKind, TrustRule, is_within

GITHUB = Provider("github", ProviderKind.GITHUB, False, "https://token.actions.githubusercontent.com", "broker")
REPOSITORY = {"repository_id": "456", "repository_owner_id": "123", "ref": "refs/heads/main"}


def rule(**claims):
    return TrustRule("github", tuple(sorted(claims.items())))


def policy(*principals, **environments):
    return Policy(
        providers={"github": GITHUB},
        partners={"acme": Partner("acme", (), frozenset(), frozenset(), environments)},
        principals={principal.id: principal for principal in principals},
    )


def test_b16_claims_are_compared_whole_and_letter_by_letter():
    mine = rule(**REPOSITORY)
    assert mine.matches("github", {**REPOSITORY, "actor": "somebody"})
    for near in ("45", "4567", "456 ", " 456", "456\n", "\uff14\uff15\uff16", "456*", "0456", ""):
        assert not mine.matches("github", {**REPOSITORY, "repository_id": near})
    for near in ("refs/heads/main2", "refs/heads/Main", "refs/heads/main/", "refs/heads", "refs/heads/mai"):
        assert not mine.matches("github", {**REPOSITORY, "ref": near})


def test_p7_a_rule_without_claims_means_nobody():
    assert not TrustRule("github", ()).matches("github", {})
    assert not TrustRule("github", ()).matches("github", REPOSITORY)


@pytest.mark.parametrize("gone", sorted(REPOSITORY))
def test_p7_a_claim_that_is_not_there_matches_nothing(gone):
    assert not rule(**REPOSITORY).matches("github", {name: REPOSITORY[name] for name in REPOSITORY if name != gone})


def test_the_same_claims_of_another_provider_are_somebody_else():
    assert not rule(**REPOSITORY).matches("gitlab", REPOSITORY)
    known = policy(Principal("acme-ci", Role.HARNESS, "acme", rule=rule(**REPOSITORY)))
    assert [one.id for one in known.principals_proven("github", REPOSITORY)] == ["acme-ci"]
    assert known.principals_proven("gitlab", REPOSITORY) == ()
    assert known.principals_proven("github", {}) == ()


def test_b17_each_kind_of_provider_has_a_subject_that_is_never_given_again():
    assert set(IMMUTABLE) == set(ProviderKind)
    assert "sub" not in IMMUTABLE[ProviderKind.GITHUB]


def test_all_whom_an_identity_could_be_are_told():
    wide, narrow = rule(repository_id="456", repository_owner_id="123"), rule(**REPOSITORY)
    known = policy(
        Principal("wide", Role.HARNESS, "acme", rule=wide), Principal("narrow", Role.HARNESS, "acme", rule=narrow)
    )
    assert {one.id for one in known.principals_proven("github", REPOSITORY)} == {"wide", "narrow"}
    assert [one.id for one in known.principals_proven("github", {**REPOSITORY, "ref": "x"})] == ["wide"]


def test_an_identity_that_could_be_two_places_is_no_place():
    wide, narrow = rule(repository_id="456", repository_owner_id="123"), rule(**REPOSITORY)
    places = {"wide": Environment("wide", rule=wide), "narrow": Environment("narrow", rule=narrow)}
    known = policy(**places)
    assert known.environment_proven("acme", "github", REPOSITORY) is None
    assert known.environment_proven("acme", "github", {**REPOSITORY, "ref": "x"}) == places["wide"]
    assert known.environment_proven("globex", "github", REPOSITORY) is None


@pytest.mark.parametrize(
    ("address", "is_inside"),
    [
        ("10.1.2.3", True),
        ("::ffff:10.1.2.3", True),
        ("2001:db8::7", True),
        ("11.1.2.3", False),
        ("2001:db9::7", False),
        ("::ffff:11.1.2.3", False),
        ("", False),
        ("10.1.2.3:443", False),
        ("010.1.2.3", False),
        ("unix:/socket", False),
    ],
)
def test_p7_only_an_address_within_the_networks_is_inside(address, is_inside):
    networks = (ip_network("10.0.0.0/8"), ip_network("2001:db8::/32"))
    assert is_within(address, networks) is is_inside
    assert is_within(address, ())
