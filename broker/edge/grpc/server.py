"""The gRPC server: its services, limits and keepalive."""

from dataclasses import dataclass

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection

from broker.edge.grpc.approvals import ApprovalService
from broker.edge.grpc.audit import AuditService
from broker.edge.grpc.drills import DrillService
from broker.edge.grpc.feed import FeedService
from broker.edge.grpc.ledger import LedgerService
from broker.edge.grpc.outermost import Outermost
from broker.edge.grpc.policy import PolicyService
from broker.edge.grpc.reports import ReportService
from broker.edge.grpc.revocations import RevocationService
from broker.edge.grpc.runs import RunService
from broker.edge.grpc.status import StatusService
from broker.edge.grpc.tokens import TokenService
from broker.v1 import (
    approvals_pb2,
    approvals_pb2_grpc,
    audit_pb2,
    audit_pb2_grpc,
    drills_pb2,
    drills_pb2_grpc,
    feed_pb2,
    ledger_pb2,
    ledger_pb2_grpc,
    policy_pb2,
    policy_pb2_grpc,
    reports_pb2,
    reports_pb2_grpc,
    revocations_pb2,
    revocations_pb2_grpc,
    runs_pb2,
    runs_pb2_grpc,
    status_pb2,
    status_pb2_grpc,
    tokens_pb2,
    tokens_pb2_grpc,
)

MAX_REQUEST_BYTES = 2 << 20
HEALTH_SERVICES = ("", "mint", "revoke", "watch")

OPTIONS = (
    ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
    ("grpc.so_reuseport", 0),
    # With the defaults a server stalls silently when some 2,000 streams open at once, as after a restart.
    ("grpc.server.max_pending_requests", 50_000),
    ("grpc.server.max_pending_requests_hard_limit", 100_000),
    ("grpc.server_max_unrequested_time_in_server", 120),
    ("grpc.max_concurrent_streams", 10_000),
    # Whoever connects and says nothing holds a handle; gRPC lets them for two minutes. Ten thousand that come back at
    # once need about as long as this.
    ("grpc.server_handshake_timeout_ms", 20_000),
    # Verifiers ping every 5 s, with no data under way; more often is refused.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    # Without it, gRPC takes a minute to notice a verifier whose process stands still, which keeps its name meanwhile.
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 4_000),
    ("grpc.http2.max_ping_strikes", 0),
)

# An identity token of 16 KiB must fit, and what is refused must be refused each time: between the two limits, gRPC
# decides by chance.
LOGIN_OPTIONS = (
    *OPTIONS,
    ("grpc.max_metadata_size", 32 << 10),
    ("grpc.absolute_max_metadata_size", 32 << 10),
    # Anybody gets through this door's handshake. A client that is sent away comes back when it has something to ask.
    ("grpc.max_connection_idle_ms", 20_000),
)


@dataclass(frozen=True, slots=True)
class Services:
    """What the server serves."""

    tokens: TokenService
    runs: RunService
    revocations: RevocationService
    feed: FeedService
    policy: PolicyService
    status: StatusService
    drills: DrillService
    ledger: LedgerService
    approvals: ApprovalService
    audit: AuditService
    reports: ReportService


def make_server(
    services: Services, outermost: Outermost, credentials: grpc.ServerCredentials, address: str
) -> tuple[grpc.aio.Server, int, HealthServicer]:
    """Return a server bound to `address`, not started, with its port and its health. Raises RuntimeError if taken."""
    server = grpc.aio.server(interceptors=(outermost,), options=OPTIONS)
    _add(services, server)
    server.add_generic_rpc_handlers((services.feed.handler(),))
    healths = HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(healths, server)
    names = [
        module.DESCRIPTOR.services_by_name[service].full_name
        for module, service in (
            (tokens_pb2, "TokenService"),
            (runs_pb2, "RunService"),
            (revocations_pb2, "RevocationService"),
            (feed_pb2, "FeedService"),
            (policy_pb2, "PolicyService"),
            (status_pb2, "StatusService"),
            (drills_pb2, "DrillService"),
            (ledger_pb2, "LedgerService"),
            (approvals_pb2, "ApprovalService"),
            (audit_pb2, "AuditService"),
            (reports_pb2, "ReportService"),
        )
    ]
    reflection.enable_server_reflection([*names, health.SERVICE_NAME, reflection.SERVICE_NAME], server)
    port = server.add_secure_port(address, credentials)
    return server, port, healths


def make_login_server(
    services: Services, outermost: Outermost, credentials: grpc.ServerCredentials, address: str, healths: HealthServicer
) -> tuple[grpc.aio.Server, int]:
    """Return a server for callers without a certificate, bound to `address` and not started, with its port.

    It has no feed, because verifiers have certificates, and no reflection, because anybody can reach it.
    Raises RuntimeError if the port is taken.
    """
    server = grpc.aio.server(interceptors=(outermost,), options=LOGIN_OPTIONS)
    _add(services, server)
    health_pb2_grpc.add_HealthServicer_to_server(healths, server)
    return server, server.add_secure_port(address, credentials)


def _add(services: Services, server: grpc.aio.Server) -> None:
    tokens_pb2_grpc.add_TokenServiceServicer_to_server(services.tokens, server)
    runs_pb2_grpc.add_RunServiceServicer_to_server(services.runs, server)
    revocations_pb2_grpc.add_RevocationServiceServicer_to_server(services.revocations, server)
    policy_pb2_grpc.add_PolicyServiceServicer_to_server(services.policy, server)
    status_pb2_grpc.add_StatusServiceServicer_to_server(services.status, server)
    drills_pb2_grpc.add_DrillServiceServicer_to_server(services.drills, server)
    ledger_pb2_grpc.add_LedgerServiceServicer_to_server(services.ledger, server)
    approvals_pb2_grpc.add_ApprovalServiceServicer_to_server(services.approvals, server)
    audit_pb2_grpc.add_AuditServiceServicer_to_server(services.audit, server)
    reports_pb2_grpc.add_ReportServiceServicer_to_server(services.reports, server)


async def set_health(healths: HealthServicer, *, minting: bool, storing: bool) -> None:
    """Say what works: without a signing key only `mint` is out."""
    serving, out = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
    works = {"": storing, "mint": minting and storing, "revoke": storing, "watch": storing}
    for name in HEALTH_SERVICES:
        await healths.set(name, serving if works[name] else out)
