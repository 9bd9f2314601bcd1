"""Proofs of runs' keys at the gRPC doors: read from the metadata, judged against the request as it was understood."""

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any

from google.protobuf.message import Message
from grpc.aio import ServicerContext

from broker.edge.grpc.callers import peer_address
from broker.errors import RunProofRefused, Unauthenticated
from broker.service.calling import Caller, RunProof
from broker.service.known_runs import KnownRuns
from broker.service.ports import RunRecord
from broker.service.run_keys import RunKeys
from broker.token.keys import Jwk
from broker.token.run_proof import RUN_PROOF_KEY, parse_run_proof

# What may be called by who proves nothing but a run's key: what is done in that run.
IN_A_RUN = frozenset(
    {
        "TokenService/Mint",
        "TokenService/MintBatch",
        "TokenService/Exchange",
        "RunService/KeepRun",
        "RunService/CloseRun",
    }
)


class RunProofs:
    """Judges the proofs of calls. One event loop owns it; what was read before is judged without leaving it."""

    def __init__(self, keys: RunKeys) -> None:
        self._keys = keys

    @property
    def runs(self) -> KnownRuns:
        """The runs that are known."""
        return self._keys.runs

    async def caller(self, context: ServicerContext, method: str, request: Any) -> RunProof | None:
        """Return who calls by the proof of a run's key alone, or None: there is no such proof.

        Raises:
            RunProofRefused, Unauthenticated, Overloaded: There is one, and it is refused.
        """
        text = proof_of(context)
        if text is None:
            return None
        run_id = self._keys.run_of(text)
        if run_id is None or method not in IN_A_RUN or not isinstance(request, Message):
            raise Unauthenticated(
                "a run's key says who calls in that run, and for nothing else",
                hint="send an identity token with this call",
            )
        run = self.runs.cached(run_id) or await asyncio.to_thread(self.runs.get, run_id)
        data = request.SerializeToString(deterministic=True)
        network = peer_address(context.peer())
        return self._keys.caller(text, run, method=method, request=data, network=network)

    async def of_runs(
        self, caller: Caller, run_ids: Iterable[str], context: ServicerContext, method: str, request: Message
    ) -> Sequence[RunRecord]:
        """Return the runs of a call, which are the caller's own and whose keys, where they have one, are proven.

        Raises:
            NotFound: One is not the caller's.
            RunProofRefused, Overloaded: The key is not proven.
        """
        runs = []
        for run_id in run_ids:
            if self.runs.cached(run_id) is None:
                await asyncio.to_thread(self.runs.get, run_id)
            runs.append(self.runs.own(caller, run_id))
        with_key = [run for run in runs if run.key is not None]
        # Who calls by the proof has had it judged already, at the door.
        if not with_key or isinstance(caller.proof, RunProof):
            return runs
        if len(runs) > 1:
            raise RunProofRefused(
                "a call proves one run's key, and this one is in several runs", hint="make one call for each run"
            )
        [run] = with_key
        self._must_prove(context, run.key or {}, method, run.id, request)
        return runs

    def id_of(self, context: ServicerContext) -> str:
        """Return the id of the proof that a call came with, which was judged before."""
        text = proof_of(context)
        return "" if text is None else parse_run_proof(text).claims.jti

    def of_new(self, key: Jwk, context: ServicerContext, method: str, request: Message) -> None:
        """Refuse to open a run with a key that the caller does not prove to have. Raises RunProofRefused."""
        self._must_prove(context, key, method, None, request)

    def _must_prove(self, context: ServicerContext, key: Jwk, method: str, run: str | None, request: Message) -> None:
        data = request.SerializeToString(deterministic=True)
        self._keys.must_prove(proof_of(context), key=key, method=method, run=run, request=data)


def proof_of(context: ServicerContext) -> str | None:
    """Return the one proof that was sent, or None. Raises RunProofRefused for several (B18)."""
    values = [value for name, value in context.invocation_metadata() or () if name == RUN_PROOF_KEY]
    if not values:
        return None
    if len(values) > 1 or not isinstance(values[0], str):
        raise RunProofRefused("more than one run proof was sent", hint="send exactly one metadata entry run-proof")
    return values[0]
