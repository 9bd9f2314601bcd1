"""StatusService."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta

from grpc.aio import ServicerContext

from broker import __version__
from broker.domain.policy import Role
from broker.edge.grpc.drilling import Drilling
from broker.edge.grpc.hub import FeedHub
from broker.edge.grpc.outermost import CALLER
from broker.edge.grpc.translate import duration, nanoseconds, request_key, timestamp
from broker.errors import Failure, NotFound, SignerUnavailable, StoreUnavailable
from broker.service.drill import Drilled, DrillResult
from broker.service.policies import Policies
from broker.service.ports import Clock, Ledger, Signer
from broker.service.proof_ports import Roster, Sighting
from broker.service.verifiers import ForgetVerifier, Listed, ListVerifiers
from broker.token.identifiers import identifier
from broker.token.keys import LogTrust, Purpose, render_trust
from broker.v1 import status_pb2 as pb
from broker.v1 import status_pb2_grpc

# Whoever revokes must see whether verifiers listen.
_SEES_STATUS = (Role.ADMIN, Role.OPERATOR, Role.SECURITY, Role.AUDITOR)


@dataclass(frozen=True, slots=True)
class Condition:
    """What is wrong now, for people: what stops minting, and what does not (yet)."""

    stops_minting: tuple[str, ...]
    passing: tuple[str, ...]


class StatusService(status_pb2_grpc.StatusServiceServicer):
    """Says how the broker is."""

    def __init__(
        self,
        ledger: Ledger,
        policies: Policies,
        signer: Signer,
        hub: FeedHub,
        clock: Clock,
        condition: Callable[[], Condition],
        list_verifiers: ListVerifiers,
        forget_verifier: ForgetVerifier,
        roster: Roster,
        drilling: Drilling,
        log_trust: Callable[[], LogTrust | None],
    ) -> None:
        self._log_trust = log_trust
        self._ledger = ledger
        self._policies = policies
        self._signer = signer
        self._hub = hub
        self._clock = clock
        self._condition = condition
        self._list_verifiers = list_verifiers
        self._forget_verifier = forget_verifier
        self._roster = roster
        self._drilling = drilling

    async def GetStatus(self, request: pb.GetStatusRequest, context: ServicerContext) -> pb.GetStatusResponse:
        """Return the state."""
        del request, context
        CALLER.get().must_be(*_SEES_STATUS)
        condition = await asyncio.to_thread(self._condition)
        problems = (*condition.stops_minting, *condition.passing, *self._drilling.problems)
        try:
            head = await asyncio.to_thread(self._ledger.head)
        except Failure as failure:
            return pb.GetStatusResponse(version=__version__, problems=[*problems, failure.message])
        realms = [self._realm(name) for name in sorted(self._policies.current().policy.realms)]
        return pb.GetStatusResponse(
            version=__version__,
            incarnation=head.incarnation,
            head=head.size,
            policy_version=head.policy_version,
            minting=bool(realms) and all(realm.key for realm in realms) and not condition.stops_minting,
            problems=problems,
            realms=realms,
        )

    async def ListVerifiers(
        self, request: pb.ListVerifiersRequest, context: ServicerContext
    ) -> pb.ListVerifiersResponse:
        """Return who listens, and who ever did."""
        del context
        CALLER.get().must_be(*_SEES_STATUS)
        realm = identifier("realm", request.realm) if request.realm else None
        known: Sequence[Sighting] = ()
        parts: Mapping[str, Mapping[str, tuple[DrillResult, Drilled]]] = {}
        # Who listens now is known without the store; who ever did, and what drills found, is not.
        with suppress(StoreUnavailable):
            known = await asyncio.to_thread(self._roster.known, realm)
        lines = self._list_verifiers(known, realm)
        with suppress(StoreUnavailable):
            parts = await asyncio.to_thread(self._last_parts, sorted({line.realm for line in lines}))
        head = self._hub.publisher.head
        size = head.size if head is not None else 0
        return pb.ListVerifiersResponse(
            verifiers=[_status(line, size, parts.get(line.realm, {}).get(line.verifier)) for line in lines]
        )

    async def ForgetVerifier(
        self, request: pb.ForgetVerifierRequest, context: ServicerContext
    ) -> pb.ForgetVerifierResponse:
        """Take a verifier that is gone off the list."""
        del context
        caller = CALLER.get()
        caller.must_be(Role.ADMIN, Role.OPERATOR)
        index = await self._forget_verifier(
            caller,
            request.verifier,
            request.realm,
            self._roster,
            reason=request.reason,
            request=request_key(caller, request),
        )
        return pb.ForgetVerifierResponse(index=index)

    async def GetTrust(self, request: pb.GetTrustRequest, context: ServicerContext) -> pb.GetTrustResponse:
        """Return what verifiers pin. A verifier learns of its own realm only, a partner of those it may use (P8)."""
        del context
        caller = CALLER.get()
        policy = self._policies.current().policy
        realms = sorted(policy.realms if caller.partner is None else policy.realms_of(caller.partner))
        wanted = request.realm or (caller.realm if caller.role is Role.VERIFIER else None)
        if wanted is not None:
            if wanted not in realms or caller.realm not in (None, wanted):
                raise NotFound("there is no such realm for you", hint="name one that the policy gives to you, or none")
            realms = [wanted]
        # The log is of all realms: a verifier needs nothing of it.
        log = await asyncio.to_thread(self._log_trust) if wanted is None else None
        return pb.GetTrustResponse(document=render_trust((self._signer.roots(realm) for realm in realms), log))

    def _last_parts(self, realms: Sequence[str]) -> Mapping[str, Mapping[str, tuple[DrillResult, Drilled]]]:
        return {realm: self._drilling.book.last_parts(realm) for realm in realms}

    def _realm(self, name: str) -> pb.RealmStatus:
        listening = self._hub.listeners.present(self._clock.boottime_ns(), name)
        kid, signs_for = "", timedelta()
        try:
            key = self._signer.current(name, Purpose.TOKEN)
            kid, signs_for = key.kid, key.signs_until - self._clock.now()
        except SignerUnavailable:
            pass
        return pb.RealmStatus(
            realm=name,
            key=kid,
            key_signs_for=duration(signs_for),
            verifiers=sum(listener.left_ns is None for listener in listening),
            revocations=self._hub.publisher.in_force(name),
        )


def _status(line: Listed, size: int, part: tuple[DrillResult, Drilled] | None) -> pb.VerifierStatus:
    return pb.VerifierStatus(
        verifier=line.verifier,
        realm=line.realm,
        version=line.version,
        address=line.address,
        head=line.head,
        behind=max(0, size - line.head),
        silent_for=nanoseconds(line.silent_ns),
        state=line.state,
        last_nack=line.last_nack,
        fresh_for=nanoseconds(line.fresh_for_ns),
        uses=line.uses,
        last_drill=_last_drill(*part) if part is not None else None,
        seen_at=timestamp(line.seen_at),
    )


def _last_drill(result: DrillResult, one: Drilled) -> pb.LastDrill:
    span = None if one.time_to_deny_us is None else duration(timedelta(microseconds=one.time_to_deny_us))
    return pb.LastDrill(at=timestamp(result.at), outcome=one.outcome.value, time_to_deny=span)
