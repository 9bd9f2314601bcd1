"""What a run will need, decided at once: as a mint would be, for whom it is, and every problem told."""

from dataclasses import replace

import pytest

from broker.adapters.policy_file import load_policy
from broker.domain.run_plan import Plan, judge, worst_code
from broker.token.revocation import Selector
from tests.served import POLICY

BASE = load_policy(POLICY)
ALICE = Plan("evaluation", "acme", ("mythos", "oracle"), "acme-ci", ("alice", None))


def codes(outcome):
    return [(problem.models, problem.why.code) for problem in outcome.problems]


def test_each_model_has_its_grant():
    assert judge(ALICE, BASE, {}).grants == (("mythos", "acme-evaluation"), ("oracle", "acme-evaluation"))


def test_what_one_model_lacks_is_not_told_of_another():
    outcome = judge(replace(ALICE, models=("mythos", "sphinx", "chimera")), BASE, {})
    assert outcome.grants == (("mythos", "acme-evaluation"),)
    assert codes(outcome) == [(("sphinx",), "NOT_GRANTED"), (("chimera",), "NOT_GRANTED")]


def test_a_block_is_told_as_one_and_a_missing_grant_weighs_more():
    blocked = judge(ALICE, BASE, {Selector.of(model="oracle"): 7})
    assert codes(blocked) == [(("oracle",), "BLOCKED")]
    assert worst_code(blocked.problems) == "BLOCKED"
    both = judge(replace(ALICE, models=("oracle", "sphinx")), BASE, {Selector.of(model="oracle"): 7})
    assert worst_code(both.problems) == "NOT_GRANTED"


def test_for_anybody_means_that_somebody_of_the_partner_is_granted():
    anybody = replace(ALICE, subject=None)
    assert len(judge(anybody, BASE, {}).grants) == 2
    # Of several reasons, the one that can be lifted: somebody is granted, and blocked.
    blocks = {Selector.of(user="alice"): 7, Selector.of(workload="nightly"): 8}
    assert {code for _, code in codes(judge(anybody, BASE, blocks))} == {"BLOCKED"}
    # One of them is enough.
    assert len(judge(anybody, BASE, {Selector.of(user="alice"): 7}).grants) == 2


@pytest.mark.parametrize("partner", ["nobody", "empty"])
def test_p7_for_anybody_of_nobody_is_for_nobody(partner):
    empty = replace(BASE.partners["acme"], name="empty", users=frozenset(), workloads=frozenset())
    policy = replace(BASE, partners={**BASE.partners, "empty": empty})
    outcome = judge(Plan("evaluation", partner, ("mythos",), "acme-ci", None), policy, {})
    assert outcome.grants == ()
    assert codes(outcome) == [(("mythos",), "NOT_GRANTED")]
    assert f"{partner} may not use mythos in evaluation" in str(outcome.problems[0])


def test_where_two_subjects_are_needed_both_are_tried():
    realms = {**BASE.realms, "evaluation": replace(BASE.realms["evaluation"], needs_both=True)}
    policy = replace(BASE, realms=realms)
    assert len(judge(replace(ALICE, subject=None), policy, {}).grants) == 2
    assert codes(judge(ALICE, policy, {})) == [(("mythos", "oracle"), "NOT_GRANTED")]
