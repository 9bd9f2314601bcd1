"""A small gRPC server with real mutual TLS: it answers what a test says, and keeps what it was asked and by whom."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from cryptography import x509

from broker.edge.grpc.failures import DETAILS_KEY, code_of, details_of
from broker.errors import Failure
from broker.v1 import (
    approvals_pb2_grpc,
    drills_pb2_grpc,
    feed_pb2_grpc,
    ledger_pb2_grpc,
    policy_pb2_grpc,
    revocations_pb2_grpc,
    runs_pb2_grpc,
    status_pb2_grpc,
    tokens_pb2_grpc,
)
from tests.authority import Issued
from tests.edge.cli.feeding import FeedServicer, Realm

SERVICERS = (
    (tokens_pb2_grpc.TokenServiceServicer, tokens_pb2_grpc.add_TokenServiceServicer_to_server),
    (runs_pb2_grpc.RunServiceServicer, runs_pb2_grpc.add_RunServiceServicer_to_server),
    (revocations_pb2_grpc.RevocationServiceServicer, revocations_pb2_grpc.add_RevocationServiceServicer_to_server),
    (policy_pb2_grpc.PolicyServiceServicer, policy_pb2_grpc.add_PolicyServiceServicer_to_server),
    (status_pb2_grpc.StatusServiceServicer, status_pb2_grpc.add_StatusServiceServicer_to_server),
    (approvals_pb2_grpc.ApprovalServiceServicer, approvals_pb2_grpc.add_ApprovalServiceServicer_to_server),
    (drills_pb2_grpc.DrillServiceServicer, drills_pb2_grpc.add_DrillServiceServicer_to_server),
    (ledger_pb2_grpc.LedgerServiceServicer, ledger_pb2_grpc.add_LedgerServiceServicer_to_server),
)
STREAMING = {"Revoke", "RevokeTokens", "GetRevocation", "Drill", "WatchApproval"}


@dataclass(frozen=True)
class Call:
    method: str
    request: Any
    principal: str
    metadata: tuple[tuple[str, str | bytes], ...] = ()


class Hang:
    """An answer that does not come until the server stops."""


class InTurn:
    """One answer after the other, the last one for ever."""

    def __init__(self, *answers: Any) -> None:
        self._answers = list(answers)

    def next(self) -> Any:
        return self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]


class Served:
    """Answers by method name: a message, a Failure, a Hang; for a stream, a list of these; any of it by a function
    of the request, or in turn.
    """

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {}
        self.calls: list[Call] = []
        self.stopping = threading.Event()
        self.hanging = threading.Event()
        self.port = 0

    @property
    def endpoint(self) -> str:
        return f"localhost:{self.port}"

    @property
    def last(self) -> Call:
        return self.calls[-1]

    def unary(self, method: str, request: Any, context: grpc.ServicerContext) -> Any:
        self._note(method, request, context)
        return self._one(self._answer(method, request), context)

    def stream(self, method: str, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        self._note(method, request, context)
        for answer in self._answer(method, request):
            yield self._one(answer, context)

    def _answer(self, method: str, request: Any) -> Any:
        answer = self.answers[method]
        if isinstance(answer, InTurn):
            answer = answer.next()
        return answer(request) if callable(answer) else answer

    def _note(self, method: str, request: Any, context: grpc.ServicerContext) -> None:
        certificate = x509.load_pem_x509_certificate(context.auth_context()["x509_pem_cert"][0])
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        [uri] = names.get_values_for_type(x509.UniformResourceIdentifier)
        sent = tuple((key, value) for key, value in context.invocation_metadata())
        self.calls.append(Call(method, request, uri, sent))

    def _one(self, answer: Any, context: grpc.ServicerContext) -> Any:
        if isinstance(answer, Hang):
            self.hanging.set()
            self.stopping.wait(30)
            context.abort(grpc.StatusCode.UNAVAILABLE, "stopping")
        if isinstance(answer, grpc.StatusCode):
            context.abort(answer, "said by no broker")
        if isinstance(answer, Failure):
            context.set_trailing_metadata(((DETAILS_KEY, details_of(answer)),))
            context.abort(code_of(answer), str(answer))
        return answer


def _servicer(base: type, served: Served) -> Any:
    def method(name: str) -> Any:
        if name in STREAMING:
            return lambda _self, request, context: served.stream(name, request, context)
        return lambda _self, request, context: served.unary(name, request, context)

    names = [name for name in vars(base) if name[0].isupper()]
    return type("Servicer", (base,), {name: method(name) for name in names})()


@contextmanager
def serving(certificate: Issued, realm: Realm) -> Iterator[Served]:
    served = Served()
    server = grpc.server(ThreadPoolExecutor(8))
    feed_pb2_grpc.add_FeedServiceServicer_to_server(FeedServicer(realm), server)
    for base, add in SERVICERS:
        add(_servicer(base, served), server)
    credentials = grpc.ssl_server_credentials(
        [(certificate.key.read_bytes(), certificate.certificate.read_bytes())],
        root_certificates=certificate.ca.read_bytes(),
        require_client_auth=True,
    )
    served.port = server.add_secure_port("localhost:0", credentials)
    server.start()
    try:
        yield served
    finally:
        served.stopping.set()
        server.stop(0).wait()
