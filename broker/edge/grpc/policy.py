"""PolicyService."""

import asyncio

from grpc.aio import ServicerContext

from broker.domain.policy import Role
from broker.edge.grpc.outermost import CALLER
from broker.edge.grpc.translate import ask, request_key, timestamp
from broker.service.apply_policy import ApplyPolicy
from broker.service.explain import Explain
from broker.v1 import policy_pb2, policy_pb2_grpc


class PolicyService(policy_pb2_grpc.PolicyServiceServicer):
    """Shows, applies and explains."""

    def __init__(self, apply: ApplyPolicy, explain: Explain) -> None:
        self._apply = apply
        self._explain = explain

    async def ShowPolicy(
        self, request: policy_pb2.ShowPolicyRequest, context: ServicerContext
    ) -> policy_pb2.ShowPolicyResponse:
        """Show what is in force."""
        del request, context
        in_force = await asyncio.to_thread(self._apply.show, CALLER.get())
        return policy_pb2.ShowPolicyResponse(
            version=max(in_force.version, 0),
            document=in_force.document,
            by=in_force.by,
            applied_at=timestamp(in_force.applied_at) if in_force.applied_at else None,
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
        )
