"""RevocationService."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

from grpc.aio import ServicerContext

from broker.domain.policy import Role
from broker.edge.grpc.feed import FeedHub
from broker.edge.grpc.outermost import CALLER
from broker.edge.grpc.translate import (
    duration,
    limit,
    nanoseconds,
    request_key,
    selector,
    selector_message,
    timestamp,
)
from broker.service.listening import Progress
from broker.service.policies import Policies
from broker.service.ports import Clock, Ledger
from broker.service.revoke import Reinstate, Revoke
from broker.v1 import revocations_pb2 as pb
from broker.v1 import revocations_pb2_grpc

# What a store can count to; the wire's numbers go beyond it.
MAX_INDEX = 2**63 - 1


class RevocationService(revocations_pb2_grpc.RevocationServiceServicer):
    """Revokes, reinstates and lists."""

    def __init__(
        self, revoke: Revoke, reinstate: Reinstate, ledger: Ledger, policies: Policies, hub: FeedHub, clock: Clock
    ) -> None:
        self._revoke = revoke
        self._reinstate = reinstate
        self._ledger = ledger
        self._policies = policies
        self._hub = hub
        self._clock = clock

    async def Revoke(self, request: pb.RevokeRequest, context: ServicerContext) -> AsyncIterator[pb.RevokeResponse]:
        """Commit, then say how far it is until it is complete."""
        del context
        caller = CALLER.get()
        what = selector(request.selector)
        revoked = await asyncio.to_thread(
            self._revoke,
            caller,
            what,
            reason=request.reason,
            whole_realm=request.whole_realm,
            request=request_key(caller, request),
        )
        # Read after the commit: a frame that lacks the revocation has an `as_of` before this (P5, P6).
        committed_ns = self._clock.boottime_ns()
        yield pb.RevokeResponse(
            committed=pb.RevocationCommitted(
                index=revoked.index,
                committed_at=timestamp(revoked.at),
                blocks=revoked.blocks,
                bound=duration(timedelta(milliseconds=revoked.bound_ms)),
            )
        )
        if not request.wait:
            return
        async for progress in self._hub.until_complete(revoked.index, what, committed_ns, revoked.bound_ms):
            if progress.is_complete:
                yield _complete(progress, self._clock.boottime_ns() - committed_ns)
            else:
                yield _progress(progress)

    async def Reinstate(self, request: pb.ReinstateRequest, context: ServicerContext) -> pb.ReinstateResponse:
        """Lift a block."""
        del context
        caller = CALLER.get()
        index = await asyncio.to_thread(
            self._reinstate,
            caller,
            selector(request.selector),
            reason=request.reason,
            request=request_key(caller, request),
        )
        return pb.ReinstateResponse(index=index or 0, lifted=index is not None)

    async def ListRevocations(
        self, request: pb.ListRevocationsRequest, context: ServicerContext
    ) -> pb.ListRevocationsResponse:
        """List what is in force."""
        del context
        CALLER.get().must_be(Role.ADMIN, Role.AUDITOR)
        most = limit(request.limit)
        records = await asyncio.to_thread(self._ledger.revocations, min(request.after, MAX_INDEX), most + 1)
        in_force = await asyncio.to_thread(self._policies.refresh)
        return pb.ListRevocationsResponse(
            revocations=[
                pb.Revocation(
                    index=record.index,
                    selector=selector_message(record.selector),
                    reason=record.reason,
                    by=record.by,
                    committed_at=timestamp(record.at),
                )
                for record in records[:most]
            ],
            blocks=[
                pb.Block(selector=selector_message(blocked), index=index)
                for blocked, index in sorted(in_force.blocks.items(), key=lambda item: item[1])
            ],
            more=len(records) > most,
        )


def _progress(progress: Progress) -> pb.RevokeResponse:
    acknowledged = sum(outcome.is_acknowledged for outcome in progress.outcomes)
    return pb.RevokeResponse(
        progress=pb.RevocationProgress(
            listening=progress.listening,
            acknowledged=acknowledged,
            lapsed=len(progress.outcomes) - acknowledged,
        )
    )


def _complete(progress: Progress, took_ns: int) -> pb.RevokeResponse:
    return pb.RevokeResponse(
        complete=pb.RevocationComplete(
            took=nanoseconds(took_ns),
            verifiers=[
                pb.VerifierOutcome(
                    verifier=outcome.verifier,
                    realm=outcome.realm,
                    acknowledged=outcome.is_acknowledged,
                    after=nanoseconds(outcome.after_ns),
                )
                for outcome in progress.outcomes
            ],
        )
    )
