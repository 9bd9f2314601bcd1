"""RevocationService."""

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from grpc.aio import ServicerContext

from broker.domain.policy import Role
from broker.edge.grpc import telling
from broker.edge.grpc.completions import Completions, Waiting
from broker.edge.grpc.hub import FeedHub
from broker.edge.grpc.other_brokers import Alone, OtherBrokers
from broker.edge.grpc.outermost import CALLER
from broker.edge.grpc.translate import limit, request_key, selector, selector_message, timestamp
from broker.errors import NotFound
from broker.service.calling import Caller
from broker.service.complete import Completion, revocation_at
from broker.service.hits import FindHits
from broker.service.policies import Policies
from broker.service.ports import Clock, Ledger
from broker.service.proof_ports import Proofs
from broker.service.revoke import Prepared, Reinstate, Revoke, Revoked, RevokeTokens
from broker.token.revocation import Dimension, Selector
from broker.v1 import revocations_pb2 as pb
from broker.v1 import revocations_pb2_grpc

# What a store can count to; the wire's numbers go beyond it.
MAX_INDEX = 2**63 - 2
# Verifiers answer a survey at once, or are not waited for.
SURVEY_S = 1.0
# A dry run counts for so long.
COUNT_S = 5.0

# Revocations have threads of their own: everybody else's stand in line where a store is slow or a flood is on.
REVOKING_THREADS = 4

Done = TypeVar("Done")

_SEES_REVOCATIONS = (Role.ADMIN, Role.SECURITY, Role.PARTNER_ADMIN, Role.AUDITOR)


class RevocationService(revocations_pb2_grpc.RevocationServiceServicer):
    """Revokes, reinstates, tells how far a revocation is, and lists."""

    def __init__(
        self,
        revoke: Revoke,
        revoke_tokens: RevokeTokens,
        reinstate: Reinstate,
        find_hits: FindHits,
        completions: Completions,
        ledger: Ledger,
        proofs: Proofs,
        policies: Policies,
        hub: FeedHub,
        clock: Clock,
        others: OtherBrokers | None = None,
    ) -> None:
        self._others = others or Alone()
        self._revoke = revoke
        self._revoke_tokens = revoke_tokens
        self._reinstate = reinstate
        self._find_hits = find_hits
        self._completions = completions
        self._ledger = ledger
        self._proofs = proofs
        self._policies = policies
        self._hub = hub
        self._clock = clock
        self._one_batch = asyncio.Lock()
        self._threads = ThreadPoolExecutor(REVOKING_THREADS, thread_name_prefix="revoking")

    async def Revoke(self, request: pb.RevokeRequest, context: ServicerContext) -> AsyncIterator[pb.RevokeResponse]:
        """Commit, then say how far it is until it is complete."""
        del context
        caller = CALLER.get()
        what = selector(request.selector)
        asked_ns = self._clock.boottime_ns()
        # A dry run is the same in everything, up to the append.
        prepared = await self._urgently(
            self._revoke.prepare,
            caller,
            what,
            reason=request.reason,
            whole_realm=request.whole_realm,
            request=request_key(caller, request),
            is_waited_for=request.wait,
        )
        if request.dry_run:
            yield self._for(caller, await self._preview(prepared))
            return
        revoked = await self._urgently(self._revoke.commit, prepared)
        async for event in self._after(caller, revoked, asked_ns, is_waited_for=request.wait):
            yield event

    async def RevokeTokens(
        self, request: pb.RevokeTokensRequest, context: ServicerContext
    ) -> AsyncIterator[pb.RevokeTokensResponse]:
        """Commit all of them at once, then say how far it is until it is complete."""
        del context
        caller = CALLER.get()
        # One at a time: thousands of entries are spelled here, and whoever revokes a partner must not wait for it.
        async with self._one_batch:
            asked_ns = self._clock.boottime_ns()
            revoked = await self._urgently(
                self._revoke_tokens,
                caller,
                request.realm,
                tuple(request.tokens),
                reason=request.reason,
                request=request_key(caller, request),
                is_waited_for=request.wait,
            )
        async for event in self._after(caller, revoked, asked_ns, is_waited_for=request.wait):
            yield pb.RevokeTokensResponse(event=event)

    async def GetRevocation(
        self, request: pb.GetRevocationRequest, context: ServicerContext
    ) -> AsyncIterator[pb.GetRevocationResponse]:
        """Tell of a revocation by its index, to whoever asks, on whatever broker."""
        del context
        caller = CALLER.get()
        caller.must_be(*_SEES_REVOCATIONS)
        index = min(request.index, MAX_INDEX)
        record = await asyncio.to_thread(self._proofs.completion, index)
        revoked = await asyncio.to_thread(revocation_at, self._ledger, index, record)
        if revoked is None or not _may_see(caller, revoked.selector):
            raise NotFound(f"there is no revocation at index {request.index}", hint="see: broker revocations")
        if record is None:
            revoked = replace(revoked, bound_ms=self._revoke.concerned(revoked.selector)[1])
        yield pb.GetRevocationResponse(event=telling.committed(revoked))
        if record is None and not request.wait:
            return
        async for event in self._told(caller, revoked):
            yield pb.GetRevocationResponse(event=event)
            if not request.wait:
                return

    async def _urgently(self, call: Callable[..., Done], *args: Any, **named: Any) -> Done:
        return await asyncio.get_running_loop().run_in_executor(self._threads, partial(call, *args, **named))

    async def _after(
        self, caller: Caller, revoked: Revoked, asked_ns: int, *, is_waited_for: bool
    ) -> AsyncIterator[pb.RevokeResponse]:
        # Read after the commit: a frame that lacks the revocation has an `as_of` before this (P5, P6).
        self._completions.begin(revoked, asked_ns=asked_ns, committed_ns=self._clock.boottime_ns())
        yield telling.committed(revoked)
        if is_waited_for:
            async for event in self._told(caller, revoked):
                yield event

    async def _told(self, caller: Caller, revoked: Revoked) -> AsyncIterator[pb.RevokeResponse]:
        async for step in self._completions.follow(revoked.index):
            match step:
                case Waiting():
                    yield self._for(caller, telling.progress(step.progress, step.waits_for))
                case Completion():
                    yield self._for(caller, telling.complete(step))

    def _for(self, caller: Caller, event: pb.RevokeResponse) -> pb.RevokeResponse:
        """Leave out what is not a partner's to know: who verifies, and realms in which it has no grant."""
        if caller.role is not Role.PARTNER_ADMIN:
            return event
        return telling.for_partner(event, self._policies.current().policy.realms_of(caller.partner or ""))

    async def _preview(self, prepared: Prepared) -> pb.RevokeResponse:
        now_ns = self._clock.boottime_ns()
        deadline_ns = now_ns + int(COUNT_S * 1e9)
        hits, survey, elsewhere = await asyncio.gather(
            asyncio.to_thread(
                self._find_hits,
                prepared.selector,
                at=self._clock.now(),
                has_time=lambda: self._clock.boottime_ns() < deadline_ns,
            ),
            self._hub.survey(prepared.selector, SURVEY_S),
            self._listening(prepared.selector),
        )
        waited_for = {
            one.verifier
            for one in self._hub.listeners.present(now_ns)
            if prepared.selector.concerns(one.realm) and one.holds_until_ns(now_ns) > now_ns
        }
        # Only those that listen here are asked how many uses match.
        silent = {*survey.silent, *(elsewhere - {*survey.asked})}
        return telling.preview(prepared, hits, survey.uses, sorted(waited_for | elsewhere), sorted(silent))

    async def _listening(self, what: Selector) -> frozenset[str]:
        realms = [realm for realm in self._policies.current().policy.realms if what.concerns(realm)]
        return frozenset[str]().union(*[await self._others.listening(realm) for realm in realms])

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
        caller = CALLER.get()
        caller.must_be(*_SEES_REVOCATIONS)
        most = limit(request.limit)
        after, partner = min(request.after, MAX_INDEX), caller.partner
        records = await asyncio.to_thread(self._ledger.revocations, after, most + 1, partner=partner)
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
                if _may_see(caller, blocked)
            ],
            more=len(records) > most,
        )


def _may_see(caller: Caller, what: Selector) -> bool:
    """Tell whether a revocation or a block is the caller's to know of: a partner's admin knows its partner's."""
    return caller.role is not Role.PARTNER_ADMIN or what.get(Dimension.PARTNER) == caller.partner
