"""A policy under review, at a broker's door: planned, applied as planned, kept, and restored."""

import grpc
import pytest

from broker.v1 import policy_pb2, runs_pb2
from tests.edge.test_callers import refusal
from tests.served import POLICY, Served, request_id

SHORTER = POLICY.replace("ttl: {default: 10m, max: 30m}", "ttl: {default: 10m, max: 20m}")


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with Served(tmp_path_factory.mktemp("served")) as served:
        yield served


def plan(served, document):
    return served.policies("auditor").PlanPolicy(policy_pb2.PlanPolicyRequest(document=document), timeout=10)


def apply(served, document, **options):
    request = policy_pb2.ApplyPolicyRequest(request_id=request_id(), document=document, reason="a test", **options)
    return served.policies().ApplyPolicy(request, timeout=10)


def test_a_policy_is_planned_applied_as_planned_kept_and_restored(served):
    opened = served.runs("globex").OpenRun(
        runs_pb2.OpenRunRequest(request_id=request_id(), realm="evaluation", partner="globex", models=["mythos"])
    )
    planned = plan(served, SHORTER)
    [change] = planned.changes
    assert change.direction == policy_pb2.POLICY_CHANGE_DIRECTION_LESS
    assert change.text.endswith("shorter lives, up to 20m (was 30m)")
    assert [run.run for run in planned.runs] == [opened.run.id]
    assert refusal(lambda: apply(served, POLICY, plan=planned.plan))[1] == "INVALID"
    applied = apply(served, SHORTER, plan=planned.plan)
    assert applied.version == planned.version + 1
    moved = refusal(lambda: apply(served, SHORTER, plan=planned.plan))
    assert moved[:2] == (grpc.StatusCode.ABORTED, "POLICY_MOVED")
    kept = served.policies().ListPolicyVersions(policy_pb2.ListPolicyVersionsRequest(limit=1))
    assert [(one.version, one.reason, one.by) for one in kept.versions] == [
        (applied.version, "a test", "spiffe://lab.example/ops")
    ]
    assert kept.more
    first = served.policies().ListPolicyVersions(policy_pb2.ListPolicyVersionsRequest()).versions[-1]
    restored = served.policies().RestorePolicy(
        policy_pb2.RestorePolicyRequest(request_id=request_id(), version=first.version, reason="a slip")
    )
    shown = served.policies("auditor").ShowPolicy(policy_pb2.ShowPolicyRequest())
    assert (shown.document, shown.reason, shown.applied_version) == (POLICY, "a slip", restored.version)
    old = served.policies("auditor").ShowPolicy(policy_pb2.ShowPolicyRequest(version=applied.version))
    assert (old.document, old.reason) == (SHORTER, "a test")


@pytest.mark.parametrize("version", [0, 10**6, 2**64 - 1])
def test_an_unknown_version_is_neither_shown_nor_restored(served, version):
    for call in (
        lambda: served.policies().ShowPolicy(policy_pb2.ShowPolicyRequest(version=version)),
        lambda: served.policies().RestorePolicy(
            policy_pb2.RestorePolicyRequest(request_id=request_id(), version=version, reason="x")
        ),
    ):
        found = refusal(call)
        assert found[:2] == (grpc.StatusCode.NOT_FOUND, "NOT_FOUND")
        assert found[3]["hint"]


@pytest.mark.parametrize("document", ["", "version: 1\n", "a: [", "\x00", "version: 99\n"])
def test_a_plan_for_a_file_with_problems_names_them(served, document):
    found = refusal(lambda: plan(served, document))
    assert found[:2] == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID")


def test_ten_thousand_principals_are_planned_and_applied_within_the_deadline_of_a_call(served):
    many = POLICY + "".join(
        f'  - {{id: "spiffe://acme.example/ci/{n}", role: harness, partner: acme}}\n' for n in range(10_000)
    )
    planned = plan(served, many)
    assert len(planned.changes) == 10_000
    assert apply(served, many, plan=planned.plan).version == planned.version + 1
    assert served.mint().token
