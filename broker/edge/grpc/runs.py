"""RunService."""

import asyncio

from grpc.aio import ServicerContext

from broker.domain.policy import Role
from broker.edge.grpc.outermost import CALLER
from broker.edge.grpc.run_proofs import RunProofs
from broker.edge.grpc.translate import limit, request_key, run_message, seconds
from broker.errors import Invalid, Malformed, RunProofRefused
from broker.service.calling import Caller
from broker.service.ports import Clock, RequestKey
from broker.service.run_keys import checked_key
from broker.service.runs import Runs, Wanted
from broker.token.claims import MAX_MODELS
from broker.token.identifiers import identifier, model_name, opaque_id
from broker.token.jws import strict_json
from broker.token.keys import Jwk
from broker.v1 import runs_pb2, runs_pb2_grpc


class RunService(runs_pb2_grpc.RunServiceServicer):
    """Opens, keeps, closes and lists runs."""

    def __init__(self, runs: Runs, run_proofs: RunProofs, clock: Clock) -> None:
        self._runs = runs
        self._run_proofs = run_proofs
        self._clock = clock

    async def OpenRun(self, request: runs_pb2.OpenRunRequest, context: ServicerContext) -> runs_pb2.OpenRunResponse:
        """Open one."""
        caller = CALLER.get()
        # Who may not open one learns nothing about what a request must look like.
        caller.must_be(Role.HARNESS)
        models = tuple(model_name("models", model) for model in request.models)
        if not 1 <= len(models) <= MAX_MODELS or len(set(models)) != len(models):
            raise Invalid("models", f"{len(models)} given", hint=f"name 1 to {MAX_MODELS} different models")
        wanted = Wanted(
            realm=identifier("realm", request.realm),
            partner=identifier("partner", request.partner),
            models=models,
            lease_s=seconds("lease", request.lease) if request.HasField("lease") else None,
            user=identifier("user", request.user) if request.user else None,
            workload=identifier("workload", request.workload) if request.workload else None,
            key=_key(request.run_key),
            approval=opaque_id("approval", request.approval) if request.approval else None,
        )
        if wanted.key is not None:
            self._run_proofs.of_new(wanted.key, context, "RunService/OpenRun", request)
        run = await asyncio.to_thread(self._runs.open, caller, wanted, request_key(caller, request))
        return runs_pb2.OpenRunResponse(run=run_message(run, self._clock.now()))

    async def KeepRun(self, request: runs_pb2.KeepRunRequest, context: ServicerContext) -> runs_pb2.KeepRunResponse:
        """Extend its lease."""
        caller, run_id, key = await self._of(request, context, "RunService/KeepRun")
        run = await asyncio.to_thread(self._runs.keep, caller, run_id, key)
        return runs_pb2.KeepRunResponse(run=run_message(run, self._clock.now()))

    async def CloseRun(self, request: runs_pb2.CloseRunRequest, context: ServicerContext) -> runs_pb2.CloseRunResponse:
        """End it."""
        caller, run_id, key = await self._of(request, context, "RunService/CloseRun")
        run = await asyncio.to_thread(self._runs.close, caller, run_id, key)
        return runs_pb2.CloseRunResponse(run=run_message(run, self._clock.now()))

    async def ShowRun(self, request: runs_pb2.ShowRunRequest, context: ServicerContext) -> runs_pb2.ShowRunResponse:
        """Show one."""
        del context
        caller = CALLER.get()
        # Who may see none learns nothing about what an id must look like.
        caller.must_be(Role.HARNESS, Role.PARTNER_ADMIN, Role.ADMIN, Role.AUDITOR)
        run = await asyncio.to_thread(self._runs.shown, caller, opaque_id("run", request.run))
        return runs_pb2.ShowRunResponse(run=run_message(run, self._clock.now()))

    async def ListRuns(self, request: runs_pb2.ListRunsRequest, context: ServicerContext) -> runs_pb2.ListRunsResponse:
        """List them."""
        del context
        partner = identifier("partner", request.partner) if request.partner else None
        runs = await asyncio.to_thread(self._runs.listed, CALLER.get(), partner, limit(request.limit))
        now = self._clock.now()
        return runs_pb2.ListRunsResponse(runs=[run_message(run, now) for run in runs])

    async def _of(
        self, request: runs_pb2.KeepRunRequest | runs_pb2.CloseRunRequest, context: ServicerContext, method: str
    ) -> tuple[Caller, str, RequestKey]:
        """Return the caller and the run, whose key, if it has one, is proven; and what makes the write happen once."""
        caller = CALLER.get()
        caller.must_be(Role.HARNESS)
        key, run_id = request_key(caller, request), opaque_id("run", request.run)
        await self._run_proofs.of_runs(caller, (run_id,), context, method, request)
        return caller, run_id, key


def _key(text: str) -> Jwk | None:
    if not text:
        return None
    try:
        return checked_key(strict_json(text.encode("utf-8")))
    except Malformed as bad:
        raise RunProofRefused(f"run_key: {bad.message}", hint="send a public JWK of a P-256 key") from bad
