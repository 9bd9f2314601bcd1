"""DrillService."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta

from grpc.aio import ServicerContext

from broker.domain.policy import Role
from broker.edge.grpc.drilling import Begun, Drilling
from broker.edge.grpc.outermost import CALLER
from broker.edge.grpc.translate import duration, limit, request_key, seconds, timestamp
from broker.errors import Failure
from broker.service.drill import Drilled, DrillResult
from broker.service.ports import RequestKey
from broker.token.identifiers import identifier
from broker.token.jws import b64url
from broker.v1 import drills_pb2 as pb
from broker.v1 import drills_pb2_grpc


class DrillService(drills_pb2_grpc.DrillServiceServicer):
    """Drills now, sets how often, and tells of past drills."""

    def __init__(self, drilling: Drilling) -> None:
        self._drilling = drilling
        self._book = drilling.book

    async def Drill(self, request: pb.DrillRequest, context: ServicerContext) -> AsyncIterator[pb.DrillResponse]:
        """Drill each realm at the same time; what went wrong in one comes after what was found in the others."""
        del context
        caller = CALLER.get()
        caller.must_be(Role.ADMIN, Role.OPERATOR)
        key = request_key(caller, request)
        wanted = identifier("realm", request.realm) if request.realm else None
        realms = await self._drilling.realms(wanted)
        events: asyncio.Queue[pb.DrillResponse | Failure | None] = asyncio.Queue()
        tasks = [asyncio.create_task(self._drill(realm, _in(realm, key), events)) for realm in realms]
        failures: list[Failure] = []
        try:
            under_way = len(tasks)
            while under_way:
                match await events.get():
                    case None:
                        under_way -= 1
                    case Failure() as failure:
                        failures.append(failure)
                    case pb.DrillResponse() as event:
                        yield event
        finally:
            # The drills themselves go on, and are recorded.
            for task in tasks:
                task.cancel()
        if failures:
            raise failures[0]

    async def _drill(
        self, realm: str, key: RequestKey, events: "asyncio.Queue[pb.DrillResponse | Failure | None]"
    ) -> None:
        try:
            async for event in self._drilling.drill(realm, key.principal, key):
                events.put_nowait(_response(event))
        except Failure as failure:
            events.put_nowait(failure)
        finally:
            events.put_nowait(None)

    async def ScheduleDrills(
        self, request: pb.ScheduleDrillsRequest, context: ServicerContext
    ) -> pb.ScheduleDrillsResponse:
        """Set how often, or end it."""
        del context
        caller = CALLER.get()
        caller.must_be(Role.ADMIN, Role.OPERATOR)
        index = await asyncio.to_thread(
            self._book.schedule,
            caller,
            identifier("realm", request.realm),
            seconds("every", request.every),
            request_key(caller, request),
        )
        return pb.ScheduleDrillsResponse(index=index)

    async def ListDrills(self, request: pb.ListDrillsRequest, context: ServicerContext) -> pb.ListDrillsResponse:
        """Tell of past drills."""
        del context
        CALLER.get().must_be(Role.ADMIN, Role.OPERATOR, Role.AUDITOR)
        realm = identifier("realm", request.realm) if request.realm else None
        past = await asyncio.to_thread(self._book.past, realm, limit(request.limit))
        schedules = await asyncio.to_thread(self._book.schedules)
        return pb.ListDrillsResponse(
            drills=[_result(one) for one in past],
            schedules=[
                pb.DrillSchedule(realm=name, every=duration(timedelta(seconds=every_s)))
                for name, every_s in schedules
                if realm in (None, name)
            ],
        )


def _in(realm: str, key: RequestKey) -> RequestKey:
    """Return the request as it is for one realm: each has a canary of its own, minted once."""
    name = b64url(hashlib.sha256(f"{key.request_id} {realm}".encode()).digest())
    return replace(key, request_id=name)


def _response(event: Begun | DrillResult) -> pb.DrillResponse:
    match event:
        case Begun():
            begun = pb.DrillBegun(realm=event.realm, canary=event.canary, verifiers=event.verifiers)
            return pb.DrillResponse(begun=begun)
        case DrillResult():
            return pb.DrillResponse(result=_result(event))


def _result(found: DrillResult) -> pb.DrillResult:
    return pb.DrillResult(
        index=found.index,
        realm=found.realm,
        canary=found.canary,
        at=timestamp(found.at),
        by=found.by,
        passed=found.passed,
        bound=duration(timedelta(milliseconds=found.bound_ms)),
        verifiers=[_drilled(one) for one in found.verifiers],
        revocation=found.revocation,
    )


def _drilled(one: Drilled) -> pb.DrilledVerifier:
    span = None if one.time_to_deny_us is None else duration(timedelta(microseconds=one.time_to_deny_us))
    return pb.DrilledVerifier(verifier=one.verifier, outcome=one.outcome.value, time_to_deny=span, verdict=one.verdict)
