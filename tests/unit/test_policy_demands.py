"""Identities, groups, labels and demands of the policy file: read exactly, or told with the field and a fix."""

from datetime import date
from ipaddress import ip_network

import pytest

from broker.adapters.policy_file import load_policy
from broker.domain.policy import ApprovalRule, Binding, Environment, Limits, Principal, Quota, Role
from broker.domain.trust import Provider, ProviderKind, TrustRule
from tests.unit.test_policy_file import problems_of

GOOD = """\
version: 1
providers:
  sso: {kind: oidc, for: humans, issuer: "https://sso.example", audience: broker}
  github: {kind: github, for: workloads, issuer: "https://token.actions.example", audience: broker}
  cluster: {kind: kubernetes, for: workloads, issuer: "https://cluster.example", audience: broker, review: "https://cluster.example:6443"}
groups:
  board: [alice, carol]
realms:
  evaluation: {issuer: "https://broker.example/evaluation", audience: models.evaluation, max_ttl: 1h, subjects: both, labels: {path: guarded}}
models:
  - mythos
  - {name: vision, labels: {clearance: high}}
partners:
  acme:
    labels: {jurisdiction: us}
    users: [bob]
    workloads: [ci]
    environments:
      lab: {certificate: "spiffe://acme.example/lab", networks: ["10.0.0.0/8"]}
      cloud: {identity: {provider: github, claims: {repository_id: "456", repository_owner_id: "123"}}}
    limits: {mints_per_minute: 600, live_tokens: 1000, live_runs: 5}
grants:
  - id: acme-evaluation
    partner_labels: {jurisdiction: us}
    realm: evaluation
    models: [mythos]
    model_labels: {clearance: high}
    environments: [lab, cloud]
    users: [bob]
    workloads: [ci]
    ttl: {default: 10m, max: 1h}
    limits: {batch: 10, tokens_per_run: 2000, uses_per_token: 3, live_tokens: 7, user: {mints_per_minute: 60}}
    mode: audit
    binding: any
    delegation: 2
    approvals: {needed: 2, group: board, window: 30m, valid: 2h, login: 5m}
    review_by: "2027-01-31"
principals:
  - {id: "spiffe://acme.example/lab", role: harness, partner: acme, workload: ci}
  - {id: acme-ci, role: harness, partner: acme, workload: ci, identity: {provider: github, claims: {repository_id: "456", repository_owner_id: "123"}}}
  - {id: bob, role: harness, partner: acme, user: bob, identity: {provider: sso, claims: {sub: u-1}}}
  - {id: alice, role: approver, identity: {provider: sso, claims: {sub: a-1}}}
  - {id: alice-by-card, role: admin, person: alice, identity: {provider: sso, claims: {sub: a-2}}}
  - {id: "spiffe://lab.example/carol", role: approver, person: carol}
  - {id: "spiffe://acme.example/boss", role: partner-admin, partner: acme}
  - {id: "spiffe://lab.example/guard", role: security}
  - {id: "spiffe://lab.example/night", role: operator}
"""


def test_identities_labels_and_demands_are_read_exactly():
    policy = load_policy(GOOD)
    github = TrustRule("github", (("repository_id", "456"), ("repository_owner_id", "123")))
    assert policy.providers["github"] == Provider(
        "github", ProviderKind.GITHUB, False, "https://token.actions.example", "broker"
    )
    assert policy.providers["cluster"].review == "https://cluster.example:6443"
    assert policy.providers["sso"].for_humans
    assert policy.groups == {"board": frozenset({"alice", "carol"})}
    assert policy.realms["evaluation"].needs_both
    assert policy.realms["evaluation"].labels == ("path=guarded",)
    assert policy.models == {"mythos", "vision"}
    assert policy.labels_by_model == {"vision": frozenset({"clearance=high"})}
    acme = policy.partners["acme"]
    assert acme.quota == Quota(600, 1000, 5)
    assert acme.environments == {
        "lab": Environment("lab", "spiffe://acme.example/lab", None, (ip_network("10.0.0.0/8"),)),
        "cloud": Environment("cloud", "", github),
    }
    [grant] = policy.grants
    assert (grant.partner, grant.partner_labels, grant.model_labels) == ("", {"jurisdiction=us"}, {"clearance=high"})
    assert grant.limits == Limits(10, 2000, 3, Quota(None, 7, None), Quota(60, None, None))
    assert grant.binding is Binding.ANY
    assert (grant.is_audit_only, grant.delegation, grant.review_by) == (True, 2, date(2027, 1, 31))
    assert grant.approvals == ApprovalRule(2, "board", 1800, 7200, 300)
    assert policy.grants_for("acme", "evaluation") == (grant,)
    assert policy.principals["alice"] == Principal(
        "alice", Role.APPROVER, person="alice", rule=TrustRule("sso", (("sub", "a-1"),))
    )
    assert policy.principals["alice-by-card"].person == "alice"
    assert policy.principals["acme-ci"].person is None
    assert policy.labels_for("acme", "evaluation", ("vision",)) == ("clearance=high", "jurisdiction=us", "path=guarded")
    assert policy.labels_for("acme", "evaluation", ("mythos",)) == ("jurisdiction=us", "path=guarded")


@pytest.mark.parametrize(
    ("old", "new", "field", "word"),
    [
        # B17: who owns a recycled name would be let in.
        ('claims: {repository_id: "456", repository_owner_id: "123"}}}\n    l', 'claims: {repository: a/b, repository_owner_id: "123"}}}\n    l', "partners.acme.environments.cloud.identity.claims", "repository_id"),
        ("{provider: sso, claims: {sub: u-1}}", "{provider: sso, claims: {email: bob@acme.example}}", "principals[2].identity.claims", "sub"),
        ("{provider: sso, claims: {sub: u-1}}", "{provider: cluster, claims: {sub: u-1}}", "principals[2].identity.claims", "uid"),
        ("{provider: sso, claims: {sub: u-1}}", "{provider: sso, claims: {}}", "principals[2].identity.claims", "empty"),
        ("{provider: sso, claims: {sub: u-1}}", '{provider: sso, claims: {sub: "u-*"}}', "principals[2].identity.claims.sub", "exactly"),
        ("{provider: sso, claims: {sub: u-1}}", '{provider: sso, claims: {sub: ""}}', "principals[2].identity.claims.sub", "exactly"),
        ("{provider: sso, claims: {sub: u-1}}", "{provider: okta, claims: {sub: u-1}}", "principals[2].identity.provider", "okta"),
        ("claims: {sub: a-2}", "claims: {sub: a-1}", "principals[4].identity", "one identity is one principal"),
        # Humans and workloads are kept apart.
        ("for: humans", "for: everybody", "providers.sso.for", "humans"),
        ("user: bob, identity", "workload: ci, identity", "principals[2].workload", "humans"),
        ("user: bob, identity", "identity", "principals[2]", "user"),
        ("workload: ci, identity", "user: bob, identity", "principals[1].user", "workloads"),
        ("role: approver, person: carol", "role: approver", "principals[5]", "human"),
        ("kind: github, for: workloads", "kind: github, for: humans", "providers.github.for", "workloads"),
        ("workload: ci}", "workload: ci, person: carol}", "principals[0].person", "workload"),
        ("{identity: {provider: github, claims", "{identity: {provider: sso, claims", "partners.acme.environments.cloud.identity.provider", "humans"),
        # Proofs.
        ("id: bob, role: harness, partner: acme, user: bob, identity: {provider: sso, claims: {sub: u-1}}", "id: bob, role: harness, partner: acme, user: bob", "principals[2].id", "proven by nothing"),
        ('id: "spiffe://lab.example/guard", role: security', 'id: "spiffe://lab.example/guard", role: security, identity: {provider: sso, claims: {sub: g-1}}', "principals[7].identity", "certificate"),
        ("alice-by-card, role: admin, person: alice", "alice-by-card, role: verifier, realm: evaluation", "principals[4].id", "certificate"),
        ('lab: {certificate: "spiffe://acme.example/lab", ', "lab: {", "partners.acme.environments.lab", "identity"),
        ('networks: ["10.0.0.0/8"]', 'networks: ["10.0.0.1/8"]', "partners.acme.environments.lab.networks[0]", "network"),
        ('"https://token.actions.example"', '"https://sso.example"', "providers.github.issuer", "sso"),
        ('"https://token.actions.example"', '"http://token.actions.example"', "providers.github.issuer", "https"),
        ("kind: oidc, for: humans,", 'kind: oidc, for: humans, review: "https://x.example",', "providers.sso.review", "TokenReview"),
        # OpenBao's lesson: a rule that needs nobody is open.
        ("needed: 2", "needed: 0", "grants[0].approvals.needed", "1"),
        ("needed: 2", "needed: 3", "grants[0].approvals.needed", "has 2"),
        ("group: board", "group: boards", "grants[0].approvals.group", "boards"),
        ("board: [alice, carol]", "board: []", "groups.board", "empty"),
        ("board: [alice, carol]", "board: [alice, alice]", "groups.board[1]", "twice"),
        ("board: [alice, carol]", "board: [alice, mallory]", "groups.board[1]", "mallory"),
        # Grants.
        ("    partner_labels: {jurisdiction: us}\n", "", "grants[0].partner", "either"),
        ("    partner_labels: {jurisdiction: us}\n", "    partner_labels: {jurisdiction: us}\n    partner: acme\n", "grants[0].partner", "either"),
        ("partner_labels: {jurisdiction: us}", "partner_labels: {jurisdiction: eu}", "grants[0].partner_labels", "no partner"),
        ("model_labels: {clearance: high}", "model_labels: {clearance: low}", "grants[0].model_labels", "no model"),
        ("    users: [bob]\n    workloads: [ci]\n    ttl", "    users: [bob]\n    ttl", "grants[0]", "both"),
        ("binding: any", "binding: all", "grants[0].binding", "mtls"),
        ("delegation: 2", "delegation: -1", "grants[0].delegation", "0"),
        ("mode: audit", "mode: permissive", "grants[0].mode", "audit"),
        ('"2027-01-31"', '"31.1.2027"', "grants[0].review_by", "date"),
        ("live_tokens: 7", "live_tokens: 0", "grants[0].limits.live_tokens", "1"),
        ("role: partner-admin, partner: acme", "role: partner-admin", "principals[6]", "partner"),
        ("role: security}", "role: security, partner: acme}", "principals[7].partner", "no partner"),
    ],
    ids=lambda value: value if isinstance(value, str) and "\n" not in value and len(value) < 40 else "",
)  # fmt: skip
def test_each_wrong_thing_is_told_with_its_field_and_a_fix(old, new, field, word):
    assert GOOD.count(old) == 1, old
    problems = [problem for problem in problems_of(GOOD.replace(old, new)) if f": {field}: " in problem]
    assert len(problems) == 1
    assert word in problems[0]


def test_labels_of_partner_realm_and_models_must_fit_one_token_together():
    many = "{" + ", ".join(f"l{n}: v" for n in range(15)) + "}"
    problems = problems_of(GOOD.replace("labels: {jurisdiction: us}\n    users", f"labels: {many}\n    users"))
    assert any("partners.acme.labels" in problem and "beside 2 of realms and models" in problem for problem in problems)
