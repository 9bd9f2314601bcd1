"""TokenService."""

import asyncio
from collections.abc import Sequence

from grpc.aio import ServicerContext

from broker.domain.asking import Ask
from broker.domain.policy import Role
from broker.edge.grpc.outermost import CALLER
from broker.edge.grpc.translate import ask, minted_message, request_key
from broker.errors import Invalid
from broker.service.calling import Caller
from broker.service.mint import MAX_BATCH, Mint, Minted
from broker.service.ports import RequestKey
from broker.service.runs import RunModels
from broker.v1 import tokens_pb2, tokens_pb2_grpc

# Signing so many takes longer than a turn of the event loop should.
SIGN_IN_LOOP = 4


class TokenService(tokens_pb2_grpc.TokenServiceServicer):
    """Mints one token or many."""

    def __init__(self, mint: Mint, run_models: RunModels, *, signs_in_memory: bool) -> None:
        self._mint = mint
        self._run_models = run_models
        self._sign_in_loop = SIGN_IN_LOOP if signs_in_memory else 0

    async def Mint(self, request: tokens_pb2.MintRequest, context: ServicerContext) -> tokens_pb2.MintResponse:
        """Mint one."""
        del context
        caller = CALLER.get()
        [minted] = await self._minted(caller, [request.spec], request_key(caller, request))
        return tokens_pb2.MintResponse(token=minted_message(minted))

    async def MintBatch(
        self, request: tokens_pb2.MintBatchRequest, context: ServicerContext
    ) -> tokens_pb2.MintBatchResponse:
        """Mint many."""
        del context
        if not 1 <= len(request.specs) <= MAX_BATCH:
            raise Invalid("specs", f"{len(request.specs)} given", hint=f"ask for 1 to {MAX_BATCH} tokens")
        caller = CALLER.get()
        minted = await self._minted(caller, request.specs, request_key(caller, request))
        return tokens_pb2.MintBatchResponse(tokens=[minted_message(one) for one in minted])

    async def _minted(self, caller: Caller, specs: Sequence[tokens_pb2.TokenSpec], request: RequestKey) -> list[Minted]:
        # Who may not mint learns nothing about what an ask must look like.
        caller.must_be(Role.HARNESS)
        asks = [_ask(specs, position, caller) for position in range(len(specs))]
        if any(one.run is not None for one in asks):
            await asyncio.to_thread(self._run_models.check, caller, asks)
        reserved = await asyncio.wrap_future(self._mint.reserve(caller, asks, request))
        if len(asks) <= self._sign_in_loop:
            return self._mint.finish(reserved)
        return await asyncio.to_thread(self._mint.finish, reserved)


def _ask(specs: Sequence[tokens_pb2.TokenSpec], position: int, caller: Caller) -> Ask:
    try:
        return ask(specs[position], caller.environment, caller)
    except Invalid as bad:
        if len(specs) == 1:
            raise
        raise Invalid(f"specs[{position}].{bad.field}", bad.problem, hint=bad.hint) from bad
