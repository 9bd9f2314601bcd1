"""PolicyService."""

import asyncio
from dataclasses import dataclass

from grpc.aio import ServicerContext

from broker.domain.changes import Direction
from broker.domain.policy import Role
from broker.edge.grpc.explained import denial_message, explanation_message, fate_message, reached_message
from broker.edge.grpc.outermost import CALLER
from broker.edge.grpc.translate import ask, is_request_id, limit, request_key, timestamp
from broker.errors import Invalid
from broker.service.apply_policy import ApplyPolicy
from broker.service.denials import SEES_DENIALS, DenialBook
from broker.service.explain import Explain
from broker.service.explain_path import ExplainPath
from broker.service.explain_token import ExplainToken
from broker.service.plan_policy import PlanPolicy
from broker.service.policy_versions import PolicyVersions
from broker.token.identifiers import identifier
from broker.v1 import policy_pb2, policy_pb2_grpc

_DIRECTIONS = {
    Direction.MORE: policy_pb2.POLICY_CHANGE_DIRECTION_MORE,
    Direction.LESS: policy_pb2.POLICY_CHANGE_DIRECTION_LESS,
    Direction.OTHER: policy_pb2.POLICY_CHANGE_DIRECTION_OTHER,
}


@dataclass(frozen=True, slots=True)
class Explains:
    """What can be explained."""

    mint: Explain
    denials: DenialBook
    token: ExplainToken
    path: ExplainPath


class PolicyService(policy_pb2_grpc.PolicyServiceServicer):
    """Shows, plans, applies, restores and explains."""

    def __init__(self, apply: ApplyPolicy, plan: PlanPolicy, versions: PolicyVersions, explains: Explains) -> None:
        self._apply = apply
        self._plan = plan
        self._versions = versions
        self._explains = explains

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
        explanation = await asyncio.to_thread(self._explains.mint, caller, ask(request.spec, environment, caller))
        return explanation_message(explanation)

    async def ExplainDenial(
        self, request: policy_pb2.ExplainDenialRequest, context: ServicerContext
    ) -> policy_pb2.ExplainDenialResponse:
        """Say why it was denied."""
        del context
        caller = CALLER.get()
        partner = identifier("partner", request.partner) if request.partner else None
        if not is_request_id(request.request_id):
            caller.must_be(*SEES_DENIALS)
            raise Invalid(
                "request_id",
                "is not the id of a request",
                hint="it is the one that was sent with the request, 16 to 64 characters",
            )
        denial = await asyncio.to_thread(self._explains.denials.find, caller, request.request_id, partner)
        return denial_message(denial)

    async def ExplainToken(
        self, request: policy_pb2.ExplainTokenRequest, context: ServicerContext
    ) -> policy_pb2.ExplainTokenResponse:
        """Say what became of a token."""
        del context
        fate = await asyncio.to_thread(
            self._explains.token,
            CALLER.get(),
            request.token,
            index=request.index or None,
            sha256=request.sha256.hex() or None,
        )
        return fate_message(fate)

    async def ExplainPath(
        self, request: policy_pb2.ExplainPathRequest, context: ServicerContext
    ) -> policy_pb2.ExplainPathResponse:
        """Say who reaches a model."""
        del context
        reached = await asyncio.to_thread(self._explains.path, CALLER.get(), request.realm, request.model)
        return reached_message(reached)
