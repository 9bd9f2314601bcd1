"""ReportService."""

import asyncio

from grpc.aio import ServicerContext

from broker.domain.access import Scope
from broker.domain.policy import Role
from broker.edge.grpc.outermost import CALLER
from broker.service.proof_ports import Roster
from broker.service.reporting import AccessReports
from broker.service.verifiers import ListVerifiers
from broker.v1 import reports_pb2 as pb
from broker.v1 import reports_pb2_grpc

DEFAULT_SOON_DAYS = 30


class ReportService(reports_pb2_grpc.ReportServiceServicer):
    """Makes reports."""

    def __init__(self, access: AccessReports, list_verifiers: ListVerifiers, roster: Roster) -> None:
        self._access = access
        self._list_verifiers = list_verifiers
        self._roster = roster

    async def Access(self, request: pb.AccessRequest, context: ServicerContext) -> pb.AccessResponse:
        """Report who can reach what."""
        del context
        caller = CALLER.get()
        caller.must_be(Role.ADMIN, Role.AUDITOR)
        scope = Scope(request.realm or None, request.partner or None, request.model or None)
        soon_days = request.soon_days if request.HasField("soon_days") else DEFAULT_SOON_DAYS
        known = await asyncio.to_thread(self._roster.known, scope.realm)
        listed = self._list_verifiers(known, scope.realm)
        report = await asyncio.to_thread(self._access, caller, scope, soon_days, listed)
        return pb.AccessResponse(document=report.document, note=report.note)
