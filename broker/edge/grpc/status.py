"""StatusService."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from grpc.aio import ServicerContext

from broker import __version__
from broker.domain.policy import Role
from broker.edge.grpc.feed import FeedHub
from broker.edge.grpc.outermost import CALLER
from broker.edge.grpc.translate import duration, nanoseconds
from broker.errors import Failure, NotFound, SignerUnavailable
from broker.service.policies import Policies
from broker.service.ports import Clock, Ledger, Signer
from broker.token.keys import Purpose, render_trust
from broker.v1 import status_pb2 as pb
from broker.v1 import status_pb2_grpc


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
    ) -> None:
        self._ledger = ledger
        self._policies = policies
        self._signer = signer
        self._hub = hub
        self._clock = clock
        self._condition = condition

    async def GetStatus(self, request: pb.GetStatusRequest, context: ServicerContext) -> pb.GetStatusResponse:
        """Return the state."""
        del request, context
        CALLER.get().must_be(Role.ADMIN, Role.AUDITOR)
        condition = await asyncio.to_thread(self._condition)
        problems = (*condition.stops_minting, *condition.passing)
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
        """Return who listens."""
        del context
        CALLER.get().must_be(Role.ADMIN, Role.AUDITOR)
        now_ns = self._clock.boottime_ns()
        head = self._hub.publisher.head
        size = head.size if head is not None else 0
        return pb.ListVerifiersResponse(
            verifiers=[
                pb.VerifierStatus(
                    verifier=listener.verifier,
                    realm=listener.realm,
                    version=listener.version,
                    address=listener.address,
                    head=listener.head,
                    behind=max(0, size - listener.head),
                    silent_for=nanoseconds(now_ns - (listener.acknowledged_ns or listener.joined_ns)),
                    state=listener.state(now_ns),
                    last_nack=listener.last_nack,
                )
                for listener in self._hub.listeners.present(now_ns, request.realm or None)
            ]
        )

    async def GetTrust(self, request: pb.GetTrustRequest, context: ServicerContext) -> pb.GetTrustResponse:
        """Return what verifiers pin. A verifier learns of its own realm only (P8)."""
        del context
        caller = CALLER.get()
        realms = sorted(self._policies.current().policy.realms)
        wanted = request.realm or (caller.realm if caller.role is Role.VERIFIER else None)
        if wanted is not None:
            if wanted not in realms or caller.realm not in (None, wanted):
                raise NotFound("there is no such realm for you", hint="name one that the policy gives to you, or none")
            realms = [wanted]
        return pb.GetTrustResponse(document=render_trust(self._signer.roots(realm) for realm in realms))

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
