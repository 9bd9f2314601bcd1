"""Users who prove themselves beside a workload, judged by the policy as it is now."""

from dataclasses import replace

import pytest

from broker.domain.asking import Ask
from broker.domain.policy import Partner, Policy, Principal, Realm, Role
from broker.domain.trust import Provider, ProviderKind, TrustRule
from broker.errors import Forbidden, Unauthenticated
from broker.service.calling import Caller, CertificateProof, IdentityProof, ProvenUser
from broker.service.policies import PolicyInForce
from broker.service.users import must_prove_users, prove_user


def rule(provider, sub):
    return TrustRule(provider, (("sub", sub),))


POLICY = Policy(
    realms={
        "one": Realm("one", "https://broker.example/one", "one", 3600),
        "both": Realm("both", "https://broker.example/both", "both", 3600, needs_both=True),
    },
    providers={
        "sso": Provider("sso", ProviderKind.OIDC, True, "https://sso.example", "broker"),
        "ci": Provider("ci", ProviderKind.OIDC, False, "https://ci.example", "broker"),
    },
    partners={
        name: Partner(name, (), frozenset({"alice", "bob"}), frozenset({"ci"}), {}) for name in ("acme", "globex")
    },
    principals={
        "alice": Principal("alice", Role.HARNESS, "acme", user="alice", rule=rule("sso", "u-alice")),
        "theirs": Principal("theirs", Role.HARNESS, "globex", user="alice", rule=rule("sso", "u-theirs")),
        "admin": Principal("admin", Role.ADMIN, rule=rule("sso", "u-admin")),
        # No policy file can say so; the rule does not depend on it.
        "robot": Principal("robot", Role.HARNESS, "acme", user="alice", rule=rule("ci", "r-1")),
    },
)
CALLER = Caller("spiffe://acme.example/ci", Role.HARNESS, "acme", workload="ci", proof=CertificateProof("x"))


def in_force(policy=POLICY):
    return PolicyInForce(1, policy, {}, frozenset(), "", "", None)


def proof(sub, provider="sso"):
    return IdentityProof(provider, {"sub": sub})


def ask(user, realm="one"):
    return Ask(realm, "acme", user, "ci", ("mythos",), "lab")


def beside(sub, name="alice"):
    return replace(CALLER, beside=ProvenUser(name, proof(sub)))


def test_a_user_of_the_partner_is_proven_by_name():
    assert prove_user(proof("u-alice"), "acme", in_force()) == ProvenUser("alice", proof("u-alice"))


@pytest.mark.parametrize(
    ("sub", "provider", "partner"),
    [
        ("u-theirs", "sso", "acme"),
        ("u-alice", "sso", "globex"),
        ("u-alice", "sso", None),
        ("u-admin", "sso", "acme"),
        ("u-nobody", "sso", "acme"),
        ("r-1", "ci", "acme"),
        ("u-alice", "unheard-of", "acme"),
    ],
)
def test_p7_what_is_not_a_human_who_is_a_user_of_the_partner_proves_nobody(sub, provider, partner):
    with pytest.raises(Unauthenticated) as caught:
        prove_user(proof(sub, provider), partner, in_force())
    assert caught.value.hint


def test_who_is_proven_can_be_named_and_nobody_else_in_any_realm():
    for realm in ("one", "both"):
        must_prove_users(beside("u-alice"), [ask("alice", realm), ask(None, realm)], in_force())
        with pytest.raises(Forbidden, match="proves alice, and bob is named"):
            must_prove_users(beside("u-alice"), [ask("alice", realm), ask("bob", realm)], in_force())


def test_without_proof_a_user_is_named_only_where_one_subject_is_enough():
    must_prove_users(CALLER, [ask("alice")], in_force())
    with pytest.raises(Forbidden, match="nobody's word"):
        must_prove_users(CALLER, [ask("alice"), ask("alice", "both")], in_force())
    # The user themselves, or a run that is theirs.
    must_prove_users(replace(CALLER, user="alice"), [ask("alice", "both")], in_force())


def test_p3_a_user_whom_the_policy_has_taken_out_since_is_not_proven():
    without = replace(POLICY, principals={})
    with pytest.raises(Unauthenticated):
        must_prove_users(beside("u-alice"), [ask("alice")], in_force(without))


def test_the_ledger_says_how_both_were_proven():
    assert beside("u-alice").proven_by == "certificate, user by identity sso"
    assert CALLER.proven_by == "certificate"
