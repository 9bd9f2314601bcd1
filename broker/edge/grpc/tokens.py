"""TokenService."""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

from grpc.aio import ServicerContext

from broker.domain.asking import UNRECOGNISED, Ask
from broker.domain.policy import Role
from broker.edge.grpc.exchanging import shown_for, wish_of
from broker.edge.grpc.outermost import CALLER
from broker.edge.grpc.run_proofs import RunProofs
from broker.edge.grpc.translate import ask, minted_message, request_key
from broker.errors import Invalid
from broker.service.calling import Caller
from broker.service.exchange import Exchange
from broker.service.mint import MAX_BATCH, Mint, Minted
from broker.service.ports import RunRecord
from broker.service.spending import NOTHING_HELD, Held, HoldApprovals
from broker.v1 import tokens_pb2, tokens_pb2_grpc

# Signing so many takes longer than a turn of the event loop should.
SIGN_IN_LOOP = 4


class TokenService(tokens_pb2_grpc.TokenServiceServicer):
    """Mints one token or many."""

    def __init__(
        self, mint: Mint, exchange: Exchange, run_proofs: RunProofs, hold: HoldApprovals, *, signs_in_memory: bool
    ) -> None:
        self._mint = mint
        self._exchange = exchange
        self._run_proofs = run_proofs
        self._hold = hold
        self._sign_in_loop = SIGN_IN_LOOP if signs_in_memory else 0

    async def Mint(self, request: tokens_pb2.MintRequest, context: ServicerContext) -> tokens_pb2.MintResponse:
        """Mint one."""
        [minted] = await self._minted("TokenService/Mint", request, [request.spec], context)
        return tokens_pb2.MintResponse(token=minted_message(minted))

    async def MintBatch(
        self, request: tokens_pb2.MintBatchRequest, context: ServicerContext
    ) -> tokens_pb2.MintBatchResponse:
        """Mint many."""
        if not 1 <= len(request.specs) <= MAX_BATCH:
            raise Invalid("specs", f"{len(request.specs)} given", hint=f"ask for 1 to {MAX_BATCH} tokens")
        minted = await self._minted("TokenService/MintBatch", request, request.specs, context)
        return tokens_pb2.MintBatchResponse(tokens=[minted_message(one) for one in minted])

    async def Exchange(
        self, request: tokens_pb2.ExchangeRequest, context: ServicerContext
    ) -> tokens_pb2.ExchangeResponse:
        """Mint a child."""
        caller = CALLER.get()
        caller.must_be(Role.HARNESS)
        key = request_key(caller, request)
        if not request.subject_token:
            raise Invalid("subject_token", "is empty", hint="send the token to derive from")
        wish = wish_of(request, caller)
        subject = await asyncio.to_thread(self._exchange.subject, caller, request.subject_token)
        claims = subject.claims
        if claims.run is not None:
            [run] = await self._run_proofs.of_runs(caller, [claims.run], context, "TokenService/Exchange", request)
            if run.key is not None:
                key = replace(key, proof=self._run_proofs.id_of(context))
        shown = shown_for(context, caller, claims)
        minted = await asyncio.to_thread(
            self._exchange, caller, request.subject_token, subject, wish, shown=shown, request=key
        )
        return tokens_pb2.ExchangeResponse(token=minted_message(minted))

    async def _minted(
        self,
        method: str,
        request: tokens_pb2.MintRequest | tokens_pb2.MintBatchRequest,
        specs: Sequence[tokens_pb2.TokenSpec],
        context: ServicerContext,
    ) -> list[Minted]:
        caller = CALLER.get()
        # Who may not mint learns nothing about what an ask must look like.
        caller.must_be(Role.HARNESS)
        key = request_key(caller, request)
        asks = _asks(specs, caller)
        named = dict.fromkeys(one.run for one in asks if one.run is not None)
        runs = await self._run_proofs.of_runs(caller, named, context, method, request)
        if any(run.key is not None for run in runs):
            key = replace(key, proof=self._run_proofs.id_of(context))
        caller = replace(caller, runs=frozenset(run.id for run in runs if run.key is not None and run.user is not None))
        asks = _in_runs(asks, specs, caller, runs)
        self._run_proofs.runs.check(caller, asks)
        held = await self._held(asks, {run.id: run.approval for run in runs})
        reserved = await asyncio.wrap_future(self._mint.reserve(caller, asks, key, held))
        if len(asks) <= self._sign_in_loop:
            return self._mint.finish(reserved)
        return await asyncio.to_thread(self._mint.finish, reserved)

    async def _held(self, asks: Sequence[Ask], runs: Mapping[str, str | None]) -> Held:
        """Return the approvals that the asks may use, and those that their runs were opened with."""
        named = [one.approval for one in asks if one.approval is not None]
        if not named and not any(runs.values()):
            return NOTHING_HELD
        return await asyncio.to_thread(self._hold, named, runs)


@contextmanager
def _at(position: int | None) -> Iterator[None]:
    """Name the place of what is wrong, where there are several."""
    try:
        yield
    except Invalid as bad:
        if position is None:
            raise
        raise Invalid(f"specs[{position}].{bad.field}", bad.problem, hint=bad.hint) from bad


def _asks(specs: Sequence[tokens_pb2.TokenSpec], caller: Caller) -> list[Ask]:
    """Return what is asked for. In a run, who names nobody means whom the run is for, which is not known yet."""
    asks = []
    for position, spec in enumerate(specs):
        is_for_nobody = spec.run and _names_nobody(spec) and caller.user is None and caller.workload is None
        with _at(position if len(specs) > 1 else None):
            as_whom = replace(caller, workload=UNRECOGNISED) if is_for_nobody and caller.beside is None else caller
            asks.append(ask(spec, caller.environment, as_whom))
    return asks


def _in_runs(
    asks: Sequence[Ask], specs: Sequence[tokens_pb2.TokenSpec], caller: Caller, runs: Sequence[RunRecord]
) -> list[Ask]:
    """Return the asks, those that name nobody for whom their run is."""
    known = {run.id: run for run in runs}
    found = []
    for position, (asked, spec) in enumerate(zip(asks, specs, strict=True)):
        run = known.get(spec.run)
        if run is None or not _names_nobody(spec):
            found.append(asked)
        elif run.user is not None or run.workload is not None:
            found.append(replace(asked, user=run.user, workload=run.workload))
        else:
            with _at(position if len(specs) > 1 else None):
                # For nobody in particular: refused, if the caller is nobody either.
                found.append(ask(spec, caller.environment, caller))
    return found


def _names_nobody(spec: tokens_pb2.TokenSpec) -> bool:
    return not spec.HasField("user") and not spec.HasField("workload")
