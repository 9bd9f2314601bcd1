"""RunService."""

import asyncio

from grpc.aio import ServicerContext

from broker.edge.grpc.outermost import CALLER
from broker.edge.grpc.translate import limit, request_key, run_message, seconds
from broker.errors import Invalid
from broker.service.ports import Clock
from broker.service.runs import Runs
from broker.token.claims import MAX_MODELS
from broker.token.identifiers import identifier, model_name, opaque_id
from broker.v1 import runs_pb2, runs_pb2_grpc


class RunService(runs_pb2_grpc.RunServiceServicer):
    """Opens, keeps, closes and lists runs."""

    def __init__(self, runs: Runs, clock: Clock) -> None:
        self._runs = runs
        self._clock = clock

    async def OpenRun(self, request: runs_pb2.OpenRunRequest, context: ServicerContext) -> runs_pb2.OpenRunResponse:
        """Open one."""
        del context
        caller = CALLER.get()
        models = tuple(model_name("models", model) for model in request.models)
        if not 1 <= len(models) <= MAX_MODELS or len(set(models)) != len(models):
            raise Invalid("models", f"{len(models)} given", hint=f"name 1 to {MAX_MODELS} different models")
        run = await asyncio.to_thread(
            self._runs.open,
            caller,
            realm=identifier("realm", request.realm),
            partner=identifier("partner", request.partner),
            models=models,
            lease_s=seconds("lease", request.lease) if request.HasField("lease") else None,
            request=request_key(caller, request),
        )
        return runs_pb2.OpenRunResponse(run=run_message(run, self._clock.now()))

    async def KeepRun(self, request: runs_pb2.KeepRunRequest, context: ServicerContext) -> runs_pb2.KeepRunResponse:
        """Extend its lease."""
        del context
        caller = CALLER.get()
        key = request_key(caller, request)
        run = await asyncio.to_thread(self._runs.keep, caller, opaque_id("run", request.run), key)
        return runs_pb2.KeepRunResponse(run=run_message(run, self._clock.now()))

    async def CloseRun(self, request: runs_pb2.CloseRunRequest, context: ServicerContext) -> runs_pb2.CloseRunResponse:
        """End it."""
        del context
        caller = CALLER.get()
        key = request_key(caller, request)
        run = await asyncio.to_thread(self._runs.close, caller, opaque_id("run", request.run), key)
        return runs_pb2.CloseRunResponse(run=run_message(run, self._clock.now()))

    async def ListRuns(self, request: runs_pb2.ListRunsRequest, context: ServicerContext) -> runs_pb2.ListRunsResponse:
        """List them."""
        del context
        partner = identifier("partner", request.partner) if request.partner else None
        runs = await asyncio.to_thread(self._runs.listed, CALLER.get(), partner, limit(request.limit))
        now = self._clock.now()
        return runs_pb2.ListRunsResponse(runs=[run_message(run, now) for run in runs])
