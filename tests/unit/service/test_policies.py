"""The policy in force: applied whole or not at all, and never allowing more than the broker's own maximum."""

from datetime import timedelta

import pytest

from broker.adapters.policy_file import load_policy
from broker.domain.asking import UNRECOGNISED, Ask
from broker.domain.decision import Allowed, decide
from broker.domain.policy import EMPTY_POLICY, Role
from broker.errors import ConfigInvalid, Forbidden, Invalid, PolicyMoved, Unauthenticated
from broker.ledger.entry import Kind, decode_entry
from broker.service.calling import Caller, CertificateProof, identify, must_still_be_known
from broker.service.policies import Policies
from broker.service.ports import PolicyReplaced, Write
from broker.token.revocation import Selector
from tests.served import ADMIN, POLICY
from tests.unit.service.world import MAX_TTL_S, OPS, request

ASK = Ask("evaluation", "acme", "alice", None, ("mythos",), "acme-ci")
LONG = POLICY.replace("max_ttl: 1h", "max_ttl: 7d").replace("max: 1h", "max: 7d")


@pytest.mark.parametrize("role", [Role.HARNESS, Role.VERIFIER, Role.AUDITOR])
def test_nobody_but_an_admin_applies_a_policy(world, role):
    size = world.size
    with pytest.raises(Forbidden):
        world.apply_policy(Caller("spiffe://x.y/z", role), POLICY, expected_version=None, request=request())
    assert world.size == size


@pytest.mark.parametrize("role", [Role.HARNESS, Role.VERIFIER])
def test_nobody_but_admin_and_auditor_sees_the_policy(world, role):
    with pytest.raises(Forbidden):
        world.versions.show(Caller("spiffe://x.y/z", role, "acme"), None)
    assert world.versions.show(Caller("spiffe://x.y/z", Role.AUDITOR), None).kept.document == POLICY


def test_applying_is_one_entry_and_moves_the_version(world):
    version, size = world.policies.current().version, world.size
    applied, index = world.apply(POLICY + "# again\n")
    assert (applied, index, world.size) == (version + 1, size, size + 1)
    [entry] = world.ledger.entries(index, index + 1)
    assert decode_entry(entry).kind is Kind.POLICY_APPLIED
    assert world.policies.current().document == POLICY + "# again\n"


@pytest.mark.parametrize(
    "document",
    ["", "  \n", "version: 1\n", POLICY.replace("partner: acme,", "partner: nobody,"), LONG, "#" * ((1 << 20) + 1)],
    ids=["empty", "blank", "half", "unknown partner", "too long a life", "too large"],
)
def test_p7_a_policy_with_a_problem_is_refused_and_the_old_one_stays(world, document):
    before, size = world.policies.current(), world.size
    with pytest.raises((Invalid, ConfigInvalid)) as caught:
        world.apply(document)
    assert caught.value.metadata["field"]
    assert caught.value.hint
    assert world.policies.refresh() == before
    assert world.size == size


@pytest.mark.parametrize("off", [-1, 1, 100])
def test_p3_a_policy_is_applied_only_at_the_expected_version(world, off):
    version, size = world.policies.current().version, world.size
    with pytest.raises(PolicyMoved):
        world.apply(POLICY + "# next\n", expected_version=version + off)
    assert world.size == size
    assert world.apply(POLICY + "# next\n", expected_version=version)[0] == version + 1


def test_p3_a_block_moves_the_version_that_a_policy_is_expected_at(world):
    version = world.policies.current().version
    world.revoke(OPS, Selector.of(partner="acme"), reason="x", whole_realm=False, request=request())
    with pytest.raises(PolicyMoved):
        world.apply(POLICY + "# decided before the block\n", expected_version=version)


def test_p4_a_new_policy_lifts_no_block(world):
    world.revoke(OPS, Selector.of(partner="acme"), reason="x", whole_realm=False, request=request())
    world.apply(POLICY + "# new\n")
    assert not world.explain(OPS, ASK).is_allowed


def test_p7_a_stored_policy_that_cannot_be_read_allows_nothing_and_says_so(world):
    effect = PolicyReplaced("version: 99\n", ADMIN, world.clock.now())
    world.ledger.append(Write([lambda index: b"entry"], effects=(effect,))).result()
    in_force = world.policies.refresh()
    assert in_force.policy == EMPTY_POLICY
    assert "cannot be read" in in_force.problem
    assert not world.explain(OPS, ASK).is_allowed


def test_a_life_is_never_above_the_brokers_maximum_also_when_that_was_lowered_after_the_policy_was_applied(world):
    effect = PolicyReplaced(LONG, ADMIN, world.clock.now())
    world.ledger.append(Write([lambda index: b"entry"], effects=(effect,))).result()
    lowered = Policies(world.ledger, load_policy, world.clock, max_ttl_s=MAX_TTL_S)
    assert {realm.max_ttl_s for realm in lowered.current().policy.realms.values()} == {MAX_TTL_S}
    assert {keys.max_ttl_s for keys in lowered.realm_keys()} == {MAX_TTL_S}


def test_watchers_learn_of_each_policy_once(world):
    seen = []
    world.policies.watch(lambda in_force: seen.append(in_force.version))
    world.apply(POLICY + "# a\n")
    world.policies.refresh()
    world.apply(POLICY + "# b\n")
    assert seen == [seen[0], seen[0] + 1]


def test_a_harness_has_explained_only_what_concerns_its_own_partner(world):
    assert world.explain(world.acme, ASK).is_allowed
    with pytest.raises(Forbidden):
        world.explain(world.globex, ASK)
    with pytest.raises(Forbidden):
        world.explain(Caller("spiffe://lab.example/gateway", Role.VERIFIER, None, "evaluation"), ASK)


def test_explain_sees_a_block_of_the_moment_before(world):
    explained = world.explain(world.acme, ASK)
    assert (explained.is_allowed, explained.grant) == (True, "acme-evaluation")
    world.revoke(OPS, Selector.of(user="alice"), reason="x", whole_realm=False, request=request())
    blocked = world.explain(world.acme, ASK)
    assert (blocked.is_allowed, blocked.grant) == (False, "")
    assert blocked.rules[-1].rule == "block user=alice"


# Who is calling.


def test_p7_who_is_not_in_the_policy_is_nobody(world):
    in_force = world.policies.current()
    for uri in ("spiffe://stranger.example/ci", "spiffe://acme.example/ci2", "spiffe://acme.example/c", ""):
        with pytest.raises(Unauthenticated):
            identify(CertificateProof(uri), in_force, frozenset({ADMIN}))


def test_an_admin_of_the_configuration_can_apply_a_first_policy_and_a_policy_can_make_it_less(world):
    assert (
        identify(
            CertificateProof("spiffe://lab.example/root"),
            world.policies.current(),
            frozenset({"spiffe://lab.example/root"}),
        ).role
        is Role.ADMIN
    )
    world.apply(
        POLICY.replace(
            '{id: "spiffe://lab.example/ops", role: admin}', '{id: "spiffe://lab.example/ops", role: auditor}'
        )
    )
    assert identify(CertificateProof(ADMIN), world.policies.current(), frozenset({ADMIN})).role is Role.AUDITOR


def test_the_place_of_another_partner_is_no_place(world):
    world.apply(POLICY)
    assert world.acme.environment == "acme-ci"
    swapped = POLICY.replace(
        'certificate: "spiffe://acme.example/ci"', 'certificate: "spiffe://acme.example/elsewhere"'
    )
    world.apply(swapped)
    assert world.acme.environment is None


def test_a_caller_acts_for_its_own_partner_alone(world):
    world.acme.must_act_for("acme")
    for caller, partner in ((world.acme, "globex"), (world.acme, ""), (OPS, "acme"), (world.acme, "acme-evil")):
        with pytest.raises(Forbidden):
            caller.must_act_for(partner)


def test_p3_a_caller_who_changed_is_no_longer_who_was_recognised(world):
    caller = world.acme
    must_still_be_known(caller, world.policies.current())
    world.apply(
        POLICY.replace(
            '{id: "spiffe://acme.example/ci", role: harness, partner: acme, workload: nightly}',
            '{id: "spiffe://acme.example/ci", role: auditor}',
        )
    )
    with pytest.raises(Forbidden):
        must_still_be_known(caller, world.policies.current())


def test_the_word_for_no_place_is_no_place(world):
    nowhere = Ask("evaluation", "acme", "alice", None, ("mythos",), UNRECOGNISED)
    assert not world.explain(OPS, nowhere).is_allowed


@pytest.mark.parametrize(("setting", "is_allowed_later"), [("allow", True), ("deny", False)])
def test_p7_an_overdue_grant_allows_nothing_from_the_day_after_its_review_where_the_policy_says_so(
    world, setting, is_allowed_later
):
    due_by = world.clock.now().date() + timedelta(days=1)
    due = POLICY.replace("ttl: {default: 10m, max: 1h}}", f'ttl: {{default: 10m, max: 1h}}, review_by: "{due_by}"}}')
    assert due != POLICY
    document = f"{due}overdue_grants: {setting}\n"
    world.apply_policy(OPS, document, expected_version=None, request=request(principal=ADMIN))
    policies = Policies(world.ledger, load_policy, world.clock, max_ttl_s=MAX_TTL_S)
    assert isinstance(decide(ASK, policies.current().policy, {}), Allowed)
    world.clock.advance(86_400)
    assert isinstance(decide(ASK, policies.current().policy, {}), Allowed)
    world.clock.advance(86_400)
    later = decide(ASK, policies.current().policy, {})
    assert isinstance(later, Allowed) is is_allowed_later
    assert isinstance(later, Allowed) or str(due_by) in later.why.detail
