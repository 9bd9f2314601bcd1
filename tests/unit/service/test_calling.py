"""Who is calling, by each kind of proof, judged by the policy as it is now."""

from dataclasses import replace
from ipaddress import ip_network

import pytest

from broker.domain.policy import Environment, Partner, Policy, Principal, Role
from broker.domain.trust import Provider, ProviderKind, TrustRule
from broker.errors import Forbidden, Unauthenticated
from broker.service.calling import (
    CertificateProof,
    IdentityProof,
    RunProof,
    identify,
    must_still_be_known,
)
from broker.service.policies import PolicyInForce

URI = "spiffe://acme.example/ci"
CI = TrustRule("sso", (("sub", "ci-1"),))
BOB = TrustRule("sso", (("sub", "u-1"),))
POLICY = Policy(
    providers={"sso": Provider("sso", ProviderKind.OIDC, False, "https://sso.example", "broker")},
    partners={
        "acme": Partner(
            "acme",
            (),
            frozenset({"bob"}),
            frozenset({"ci"}),
            {
                "lab": Environment("lab", URI, networks=(ip_network("10.0.0.0/8"),)),
                "cloud": Environment("cloud", rule=CI),
            },
        )
    },
    principals={
        URI: Principal(URI, Role.HARNESS, "acme", workload="ci"),
        "acme-ci": Principal("acme-ci", Role.HARNESS, "acme", workload="ci", rule=CI),
        "bob": Principal("bob", Role.HARNESS, "acme", user="bob", person="bob", rule=BOB),
    },
)
RUN = RunProof("run-12345678", "acme-ci", "acme", "cloud", "bob", "ci", "thumbprint")


def in_force(policy=POLICY):
    return PolicyInForce(1, policy, {}, frozenset(), "", "", None)


def known(proof, policy=POLICY):
    return identify(proof, in_force(policy), frozenset())


def test_a_certificate_is_its_principal_and_its_place():
    caller = known(CertificateProof(URI, network="10.1.1.1"))
    assert (caller.principal, caller.partner, caller.environment, caller.workload) == (URI, "acme", "lab", "ci")


def test_p7_a_place_is_not_proven_from_outside_of_its_networks():
    assert known(CertificateProof(URI, network="192.0.2.1")).environment is None
    assert known(CertificateProof(URI)).environment is None


def test_an_identity_is_its_principal_and_its_place():
    caller = known(IdentityProof("sso", {"sub": "ci-1"}))
    assert (caller.principal, caller.environment, caller.workload, caller.user) == ("acme-ci", "cloud", "ci", None)
    human = known(IdentityProof("sso", {"sub": "u-1"}))
    assert (human.principal, human.environment, human.user, human.person) == ("bob", None, "bob", "bob")


@pytest.mark.parametrize("claims", [{}, {"sub": ""}, {"sub": "ci-1 "}, {"sub": "ci"}, {"email": "ci-1"}])
def test_p7_an_unknown_identity_is_nobody(claims):
    with pytest.raises(Unauthenticated, match="no principal"):
        known(IdentityProof("sso", claims))


def test_p7_an_identity_that_is_two_principals_is_nobody():
    twice = replace(
        POLICY, principals={**POLICY.principals, "other": Principal("other", Role.ADMIN, person="x", rule=CI)}
    )
    with pytest.raises(Unauthenticated, match="more than one"):
        known(IdentityProof("sso", {"sub": "ci-1"}), twice)


def test_p7_a_principal_that_proves_itself_by_an_identity_is_no_certificate():
    # A certificate's URI can never be a name, but who relies on that?
    with pytest.raises(Unauthenticated):
        known(CertificateProof("acme-ci"))
    assert identify(CertificateProof("spiffe://lab/x"), in_force(), frozenset({"spiffe://lab/x"})).role is Role.ADMIN


def test_a_run_is_called_by_who_opened_it_for_whom_and_from_where_it_was_opened():
    caller = known(RUN)
    assert (caller.principal, caller.environment, caller.user, caller.workload) == ("acme-ci", "cloud", "bob", "ci")


@pytest.mark.parametrize(
    "now",
    [
        None,
        Principal("acme-ci", Role.AUDITOR, rule=CI),
        Principal("acme-ci", Role.HARNESS, "globex", rule=CI),
    ],
)
def test_p3_a_run_ends_with_the_rights_of_who_opened_it(now):
    principals = {name: one for name, one in POLICY.principals.items() if name != "acme-ci"}
    if now is not None:
        principals["acme-ci"] = now
    with pytest.raises(Unauthenticated):
        known(RUN, replace(POLICY, principals=principals))


def test_p3_a_caller_who_has_become_another_is_refused():
    caller = known(IdentityProof("sso", {"sub": "ci-1"}))
    must_still_be_known(caller, in_force())
    moved = replace(POLICY, partners={"acme": replace(POLICY.partners["acme"], environments={})})
    with pytest.raises(Forbidden):
        must_still_be_known(caller, in_force(moved))
    with pytest.raises(Unauthenticated):
        must_still_be_known(caller, in_force(replace(POLICY, principals={})))


def test_a_human_speaks_for_nobody_else():
    bob = known(IdentityProof("sso", {"sub": "u-1"}))
    bob.must_speak_for("bob", None)
    for user, workload in (("alice", None), (None, "ci"), (None, None), ("bob", "ci")):
        with pytest.raises(Forbidden):
            bob.must_speak_for(user, workload)


def test_a_run_speaks_for_its_own_user_and_workload_only():
    run = known(RUN)
    run.must_speak_for("bob", "ci")
    for user, workload in (("alice", "ci"), ("bob", None), ("bob", "other"), (None, "ci")):
        with pytest.raises(Forbidden):
            run.must_speak_for(user, workload)


def test_a_workload_may_name_another_user_or_workload_of_its_partner():
    known(CertificateProof(URI)).must_speak_for("bob", None)
    known(CertificateProof(URI)).must_speak_for(None, "nightly")


def test_p3_what_one_issuer_vouched_for_is_nothing_once_another_goes_by_its_providers_name():
    proof = IdentityProof("sso", {"sub": "ci-1", "iss": "https://sso.example"})
    assert known(proof).principal == "acme-ci"
    moved = replace(
        POLICY, providers={"sso": Provider("sso", ProviderKind.OIDC, False, "https://other.example", "broker")}
    )
    with pytest.raises(Unauthenticated, match="another issuer"):
        known(proof, moved)
