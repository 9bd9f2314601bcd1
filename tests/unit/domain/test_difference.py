"""The difference between two policies: nothing that a mint would notice is left out, and nothing else is told."""

from dataclasses import fields, replace
from datetime import date
from ipaddress import ip_network
from itertools import product

import pytest
from hypothesis import given, settings

from broker.adapters.policy_file import load_policy
from broker.domain.access_changes import Step, access_changes, merged, steps
from broker.domain.changes import Direction, listed, span
from broker.domain.difference import difference
from broker.domain.policy import (
    ApprovalRule,
    Binding,
    Environment,
    Grant,
    Limits,
    Partner,
    Policy,
    Principal,
    Quota,
    Realm,
    Receipts,
    Role,
)
from broker.domain.reach import ways
from broker.domain.trust import Provider, ProviderKind, TrustRule
from tests.served import POLICY
from tests.unit.domain.worlds import policies

RULE = TrustRule("sso", (("sub", "u-1"),))
OTHER_RULE = TrustRule("sso", (("sub", "u-2"),))
QUOTA = Quota(600, 1000, 20)
REALM = Realm("evaluation", "https://b.example/e", "models.e", 7200, 5000, 1000)
PLACE = Environment("ci", "spiffe://acme.example/ci", None, (ip_network("10.0.0.0/8"),))
PARTNER = Partner("acme", ("tier=one",), frozenset({"bob"}), frozenset({"ci"}), {"ci": PLACE}, QUOTA)
LIMITS = Limits(500, 2000, 100, QUOTA, QUOTA)
APPROVALS = ApprovalRule(2, "board", 3600, 28_800, 900)
GRANT = Grant(
    id="acme-evals",
    partner="acme",
    realm="evaluation",
    models=frozenset({"mythos"}),
    environments=frozenset({"ci"}),
    users=frozenset({"bob"}),
    workloads=frozenset({"ci"}),
    default_ttl_s=600,
    max_ttl_s=3600,
    limits=LIMITS,
    binding=Binding.ANY,
    delegation=2,
    approvals=APPROVALS,
    review_by=date(2027, 1, 31),
)
PROVIDER = Provider("sso", ProviderKind.OIDC, True, "https://sso.example", "broker", "https://10.0.0.1:6443")
HARNESS = Principal("bob", Role.HARNESS, "acme", user="bob", person="bob", rule=RULE)


def policy_with(realm=REALM, place=PLACE, partner=PARTNER, grant=GRANT, provider=PROVIDER, principal=HARNESS):
    partner = replace(partner, environments={place.name: place} if partner.environments else {})
    return Policy(
        realms={realm.name: realm},
        models=frozenset({"mythos", "oracle"}),
        partners={partner.name: partner},
        grants=(grant,),
        principals={principal.id: principal},
        providers={provider.name: provider},
        groups={"board": frozenset({"alice", "carol"})},
        labels_by_model={"mythos": frozenset({"clearance=low"})},
    )


BEFORE = policy_with()
# For each value of a policy, each of its fields with another value: a new field fails here until it is compared.
OTHER_VALUES = {
    "realm": (
        REALM,
        {
            "name": "research",
            "issuer": "https://b.example/x",
            "audience": "models.x",
            "max_ttl_s": 3600 * 4,
            "lease_ms": 6000,
            "heartbeat_ms": 2000,
            "needs_both": True,
            "labels": ("tier=two",),
            "receipts": Receipts.EACH,
        },
    ),
    "place": (
        PLACE,
        {"name": "lab", "certificate": "spiffe://acme.example/lab", "rule": RULE, "networks": ()},
    ),
    "partner": (
        PARTNER,
        {
            "name": "globex",
            "labels": ("tier=two",),
            "users": frozenset({"bob", "eve"}),
            "workloads": frozenset(),
            "environments": {},
            "quota": replace(QUOTA, live_runs=21),
        },
    ),
    "grant": (
        GRANT,
        {
            "id": "acme-more",
            "partner": "globex",
            "realm": "research",
            "models": frozenset({"oracle"}),
            "environments": frozenset({"lab"}),
            "users": frozenset(),
            "workloads": frozenset(),
            "default_ttl_s": 60,
            "max_ttl_s": 7200,
            "limits": Limits(),
            "partner_labels": None,
            "model_labels": None,
            "binding": Binding.MTLS,
            "delegation": 3,
            "approvals": None,
            "is_audit_only": True,
            "review_by": date(2028, 1, 31),
        },
    ),
    "provider": (
        PROVIDER,
        {
            "name": "okta",
            "kind": ProviderKind.KUBERNETES,
            "for_humans": False,
            "issuer": "https://evil.example",
            "audience": "other",
            "review": "",
        },
    ),
    "principal": (
        HARNESS,
        {
            "id": "robert",
            "role": Role.ADMIN,
            "partner": "globex",
            "realm": "evaluation",
            "workload": "ci",
            "user": None,
            "person": "alice",
            "rule": OTHER_RULE,
        },
    ),
}
CASES = [(what, value, name, other) for what, (value, others) in OTHER_VALUES.items() for name, other in others.items()]


def test_each_field_of_a_policy_has_a_case_here():
    for value, others in OTHER_VALUES.values():
        assert set(others) == {field.name for field in fields(value)}
    assert {field.name for field in fields(Policy) if field.init} == {
        *("realms", "partners", "grants", "principals", "providers"),
        # These have tests of their own below.
        *("models", "groups", "labels_by_model", "denies_overdue"),
        # What a day makes of it is no difference between two policies.
        "overdue",
    }


@pytest.mark.parametrize(
    ("what", "value", "name", "changed"), CASES, ids=lambda one: one if isinstance(one, str) else ""
)
def test_no_change_of_any_field_goes_untold(what, value, name, changed):
    if changed is None and name in ("partner_labels", "model_labels"):
        # By labels instead of by name: somebody else gains.
        by_label = {"partner_labels": frozenset({"tier=one"}), "partner": ""}
        by_label = (
            by_label if name == "partner_labels" else {"model_labels": frozenset({"tier=x"}), "models": frozenset()}
        )
        after = policy_with(grant=replace(GRANT, **by_label))
        if name == "partner_labels":
            # The same partner by its label: nobody gains, and nobody loses.
            assert difference(BEFORE, after) == ()
            return
    else:
        after = policy_with(**{what: replace(value, **{name: changed})})
    assert difference(BEFORE, after)
    assert difference(after, BEFORE)


def test_every_limit_and_every_demand_has_a_direction():
    for looser, field_of in (
        (replace(LIMITS, batch=None), "limits"),
        (replace(LIMITS, tokens_per_run=2001), "limits"),
        (replace(LIMITS, uses_per_token=None), "limits"),
        (replace(LIMITS, all=Quota()), "limits"),
        (replace(LIMITS, user=replace(QUOTA, mints_per_minute=601)), "limits"),
        (Binding.NONE, "binding"),
        (None, "approvals"),
        (replace(APPROVALS, needed=1), "approvals"),
        (replace(APPROVALS, window_s=7200), "approvals"),
        (replace(APPROVALS, valid_s=86_400), "approvals"),
        (replace(APPROVALS, login_s=3600), "approvals"),
        (3, "delegation"),
        (True, "is_audit_only"),
        (7200, "max_ttl_s"),
        (1200, "default_ttl_s"),
    ):
        after = policy_with(grant=replace(GRANT, **{field_of: looser}))
        assert {change.direction for change in difference(BEFORE, after)} == {Direction.MORE}, (field_of, looser)
        assert {change.direction for change in difference(after, BEFORE)} == {Direction.LESS}, (field_of, looser)


def test_a_change_is_told_as_a_sentence_with_who_what_and_where():
    after = load_policy(
        POLICY.replace("    users: [bob]\n", "    users: [bob, carol]\n").replace(
            "users: [bob], ttl", "users: [bob, carol], ttl"
        )
    )
    texts = [change.text for change in difference(load_policy(POLICY), after)]
    assert texts == [
        "user carol of globex gains mythos in evaluation from globex-cluster, for up to 30m, by grant globex-evaluation",
        "partner globex has users carol",
    ]


def test_what_happens_alike_to_many_is_one_sentence():
    many = frozenset(f"user-{n:04}" for n in range(5000))
    partner, grant = replace(PARTNER, users=many), replace(GRANT, users=many, workloads=frozenset())
    before = policy_with(partner=replace(partner, users=frozenset()), grant=grant)
    gains = [one for one in difference(before, policy_with(partner=partner, grant=grant)) if one.subject == "access"]
    assert len(gains) == 1
    assert "and 4988 more of acme gain mythos in evaluation" in gains[0].text


def test_groups_models_and_labels_are_told():
    for after, words in (
        (
            replace(BEFORE, groups={"board": frozenset({"alice", "mallory"})}),
            ("mallory may approve", "carol may approve"),
        ),
        (replace(BEFORE, groups={}), ("alice and carol may approve as group board no more",)),
        (replace(BEFORE, models=frozenset({"mythos"})), ("oracle: removed",)),
        (replace(BEFORE, models=frozenset({"mythos", "oracle", "sphinx"})), ("sphinx: new",)),
        (replace(BEFORE, labels_by_model={}), ("has labels none (had clearance=low)",)),
        (replace(BEFORE, denies_overdue=True), ("no new tokens once their review is overdue",)),
    ):
        texts = " ".join(change.text for change in difference(BEFORE, after))
        for word in words:
            assert word in texts


def test_a_model_that_gets_a_label_is_gained_by_whom_a_grant_lets_use_that_label():
    by_label = replace(GRANT, models=frozenset(), model_labels=frozenset({"clearance=low"}))
    before = policy_with(grant=by_label)
    after = replace(before, labels_by_model={"mythos": frozenset(), "oracle": frozenset({"clearance=low"})})
    texts = [change.text for change in difference(before, after) if change.subject == "access"]
    assert any("gain oracle in evaluation" in text for text in texts)
    assert any("lose mythos in evaluation" in text for text in texts)


@settings(max_examples=60)
@given(policies(), policies())
def test_no_step_is_left_out_because_nothing_seemed_to_have_moved(before, after):
    everything = [
        Step(way, was, becomes)
        for partner, realm in product(
            sorted({*before.partners, *after.partners}), sorted({*before.realms, *after.realms})
        )
        for way, (was, becomes) in ways([before, after], partner, realm)
        if was != becomes
    ]
    assert list(steps(before, after)) == everything


@settings(max_examples=60)
@given(policies(), policies())
def test_what_one_way_is_gained_the_other_way_is_lost(before, after):
    def told(one, other, word):
        return sorted(
            text.split(word)[0] + text.split(word)[1].split(", for up to")[0].split(" (until")[0]
            for change in access_changes(steps(one, other))
            for text in [change.text]
            if change.subject == "access" and word in text
        )

    assert len(told(before, after, " gain")) == len(told(after, before, " lose"))
    assert difference(before, before) == ()


@settings(max_examples=60)
@given(policies(), policies())
def test_merging_ways_loses_nobody_and_lets_in_nobody(before, after):
    def singles(found):
        return sorted(
            repr((way.partner, way.realm, *one))
            for way in found
            for one in product(way.subjects, way.models, way.environments)
        )

    together = {}
    for step in steps(before, after):
        together.setdefault((step.way.partner, step.way.realm, step.before, step.after), []).append(step.way)
    for alike in together.values():
        assert singles(merged(alike)) == singles(alike)


def test_names_and_spans_are_short():
    assert [listed(["b", "a"]), listed(["a"]), listed(["c", "b", "a"])] == ["a and b", "a", "a, b and c"]
    assert listed(str(n) for n in range(100)).endswith("and 88 more")
    assert [span(n) for n in (90, 600, 3600, 86_400, 61, 0)] == ["90s", "10m", "1h", "1d", "61s", "0s"]
