"""PolicyService."""

import asyncio

from grpc.aio import ServicerContext

from broker.domain.changes import Direction
from broker.domain.policy import Role
from broker.edge.grpc.outermost import CALLER
from broker.edge.grpc.translate import ask, limit, request_key, timestamp
from broker.service.apply_policy import ApplyPolicy
from broker.service.explain import Explain
from broker.service.plan_policy import PlanPolicy
from broker.service.policy_versions import PolicyVersions
from broker.v1 import policy_pb2, policy_pb2_grpc

_DIRECTIONS = {
    Direction.MORE: policy_pb2.POLICY_CHANGE_DIRECTION_MORE,
    Direction.LESS: policy_pb2.POLICY_CHANGE_DIRECTION_LESS,
    Direction.OTHER: policy_pb2.POLICY_CHANGE_DIRECTION_OTHER,
}


class PolicyService(policy_pb2_grpc.PolicyServiceServicer):
    """Shows, plans, applies, restores and explains."""

    def __init__(self, apply: ApplyPolicy, plan: PlanPolicy, versions: PolicyVersions, explain: Explain) -> None:
        self._apply = apply
        self._plan = plan
        self._versions = versions
        self._explain = explain

    async def ShowPolicy(
        self, request: policy_pb2.ShowPolicyRequest, context: ServicerContext
    ) -> policy_pb2.ShowPolicyResponse:
        """Show what is in force, or was."""
        del context
        version = request.version if request.HasField("version") else None
        shown = await asyncio.to_thread(self._versions.show, CALLER.get(), version)
        if shown.kept is None:
            return policy_pb2.ShowPolicyResponse(version=shown.version)
        applied = shown.kept.applied
        return policy_pb2.ShowPolicyResponse(
            version=shown.version,
            document=shown.kept.document,
            by=applied.by,
            applied_at=timestamp(applied.at),
            reason=applied.reason,
            applied_version=applied.version,
        )

    async def ListPolicyVersions(
        self, request: policy_pb2.ListPolicyVersionsRequest, context: ServicerContext
    ) -> policy_pb2.ListPolicyVersionsResponse:
        """List what was ever applied."""
        del context
        most = limit(request.limit)
        below = request.below if request.HasField("below") else None
        applied = await asyncio.to_thread(self._versions.listed, CALLER.get(), below, most + 1)
        return policy_pb2.ListPolicyVersionsResponse(
            versions=[
                policy_pb2.PolicyVersion(
                    version=one.version, index=one.index, by=one.by, applied_at=timestamp(one.at), reason=one.reason
                )
                for one in applied[:most]
            ],
            more=len(applied) > most,
        )

    async def RestorePolicy(
        self, request: policy_pb2.RestorePolicyRequest, context: ServicerContext
    ) -> policy_pb2.RestorePolicyResponse:
        """Apply an earlier one again."""
        del context
        caller = CALLER.get()
        version, index = await asyncio.to_thread(
            self._versions.restore,
            caller,
            request.version,
            reason=request.reason,
            expected_version=request.expected_version if request.HasField("expected_version") else None,
            request=request_key(caller, request),
        )
        return policy_pb2.RestorePolicyResponse(version=version, index=index)

    async def PlanPolicy(
        self, request: policy_pb2.PlanPolicyRequest, context: ServicerContext
    ) -> policy_pb2.PlanPolicyResponse:
        """Say what it would change."""
        del context
        plan = await asyncio.to_thread(self._plan, CALLER.get(), request.document)
        return policy_pb2.PlanPolicyResponse(
            plan=plan.id,
            version=plan.version,
            changes=[
                policy_pb2.PolicyChange(direction=_DIRECTIONS[one.direction], subject=one.subject, text=one.text)
                for one in plan.changes
            ],
            runs=[
                policy_pb2.TouchedRun(
                    run=one.run.id,
                    realm=one.run.realm,
                    partner=one.run.partner,
                    lost=one.lost,
                    changed=one.changed,
                )
                for one in plan.runs
            ],
            more_runs=plan.has_more_runs,
            tokens=plan.tokens,
        )

    async def ApplyPolicy(
        self, request: policy_pb2.ApplyPolicyRequest, context: ServicerContext
    ) -> policy_pb2.ApplyPolicyResponse:
        """Replace it."""
        del context
        caller = CALLER.get()
        version, index = await asyncio.to_thread(
            self._apply,
            caller,
            request.document,
            expected_version=request.expected_version if request.HasField("expected_version") else None,
            request=request_key(caller, request),
            reason=request.reason,
            plan=request.plan,
        )
        return policy_pb2.ApplyPolicyResponse(version=version, index=index)

    async def Explain(self, request: policy_pb2.ExplainRequest, context: ServicerContext) -> policy_pb2.ExplainResponse:
        """Say why."""
        del context
        caller = CALLER.get()
        environment = caller.environment if caller.role is Role.HARNESS else request.environment or None
        explanation = await asyncio.to_thread(self._explain, caller, ask(request.spec, environment, caller))
        return policy_pb2.ExplainResponse(
            allowed=explanation.is_allowed,
            grant=explanation.grant,
            rules=[
                policy_pb2.ExplainedRule(rule=rule.rule, passes=rule.passes, detail=rule.detail)
                for rule in explanation.rules
            ],
            demands=[
                policy_pb2.ExplainedDemand(rule=one.rule, detail=one.detail, enforced=one.is_enforced)
                for one in explanation.demands
            ],
            remedy=explanation.remedy,
        )
