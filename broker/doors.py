"""The doors of a broker process: where it listens, and with which certificates."""

import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import grpc
import uvicorn

from broker.edge.feed.door import NO_HANDLES
from broker.edge.http.patience import PatientProtocol
from broker.errors import ConfigInvalid

Bound = TypeVar("Bound")

# A little less than asyncio waits before it tries again.
QUIET_S = 0.9


@dataclass(frozen=True, slots=True)
class Doors:
    """Where to listen, and with which certificates. `http`, `login`, `feed` None: no such door."""

    listen: str
    http: str | None
    cert: Path
    key: Path
    client_ca: Path
    login: str | None = None
    feed: str | None = None


def bound_server(doors: Doors, make: Callable[[grpc.ServerCredentials, str], Bound]) -> Bound:
    """Return what `make` makes of the papers and the address. Raises ConfigInvalid with the field that is wrong."""
    _must_be_papers(doors)
    try:
        credentials = grpc.ssl_server_credentials(
            [(doors.key.read_bytes(), doors.cert.read_bytes())],
            root_certificates=doors.client_ca.read_bytes(),
            require_client_auth=True,
        )
    except OSError as problem:
        raise ConfigInvalid("tls", (f"{problem.filename}: {problem.strerror}",)) from problem
    try:
        return make(credentials, doors.listen)
    except RuntimeError as taken:
        raise ConfigInvalid(
            "server.listen", (f"{doors.listen} cannot be bound: is another broker or program using the port?",)
        ) from taken


def bound_login_server(doors: Doors, make: Callable[[grpc.ServerCredentials, str], Bound]) -> Bound | None:
    """Return what `make` makes for the login door, where no certificate is asked for, or None: there is no such door.

    Raises:
        ConfigInvalid: With the field that is wrong.
    """
    if doors.login is None:
        return None
    credentials = grpc.ssl_server_credentials([(doors.key.read_bytes(), doors.cert.read_bytes())])
    try:
        return make(credentials, doors.login)
    except RuntimeError as taken:
        raise ConfigInvalid(
            "server.login_listen", (f"{doors.login} cannot be bound: is another broker or program using the port?",)
        ) from taken


def http_server(doors: Doors, app: Any) -> uvicorn.Server:
    """Return the HTTP server of an ASGI application; it handles no signals, which are for all doors at once."""
    config = uvicorn.Config(
        app,
        http=PatientProtocol,
        ssl_certfile=str(doors.cert),
        ssl_keyfile=str(doors.key),
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="off",
    )
    server = uvicorn.Server(config)
    server.capture_signals = _no_signals  # type: ignore[method-assign]
    return server


def http_socket_of(doors: Doors, *, field: str = "server.http_listen") -> socket.socket | None:
    """Return the bound socket of the HTTP door, or None: there is no such door. Raises ConfigInvalid."""
    return None if doors.http is None else _bound(doors.http, field)


def feed_door_of(doors: Doors) -> tuple[ssl.SSLContext, socket.socket] | None:
    """Return the papers and the bound socket of the feed's own door, or None: there is no such door.

    Raises:
        ConfigInvalid: With the field that is wrong.
    """
    if doors.feed is None:
        return None
    _must_be_papers(doors)
    papers = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    papers.minimum_version = ssl.TLSVersion.TLSv1_3
    papers.verify_mode = ssl.CERT_REQUIRED
    # Nobody resumes: each connection proves itself, and a ticket for each would be work for nothing.
    papers.num_tickets = 0
    papers.set_alpn_protocols(["h2"])
    try:
        papers.load_cert_chain(doors.cert, doors.key)
        papers.load_verify_locations(doors.client_ca)
    except OSError as problem:
        raise ConfigInvalid("tls", (f"{problem.filename}: {problem.strerror}",)) from problem
    return papers, _bound(doors.feed, "server.feed_listen")


class _Patient(socket.socket):
    """A listening socket that says once, and not two thousand times, that there are no handles left.

    asyncio goes on to accept after such a failure, as often as the backlog is long, and plans a retry for each: at
    30 connections that cost 10 s of CPU in 12 s, and verifiers their lease.
    """

    _quiet_until_s = 0.0

    def accept(self) -> tuple[socket.socket, Any]:
        if time.monotonic() < self._quiet_until_s:
            raise BlockingIOError
        try:
            return super().accept()
        except OSError as failed:
            if failed.errno in NO_HANDLES:
                self._quiet_until_s = time.monotonic() + QUIET_S
            raise


def _bound(address: str, field: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    bound = _Patient(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, int(port)))
    except (OSError, OverflowError, ValueError) as bad:
        bound.close()
        why = bad.strerror if isinstance(bad, OSError) else "it is no HOST:PORT"
        raise ConfigInvalid(field, (f"{address} cannot be bound: {why}; choose another port",)) from bad
    return bound


def _must_be_papers(doors: Doors) -> None:
    """Refuse bad papers, of which gRPC would say that the port cannot be bound."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # Without a password given, an encrypted key would be asked for at the terminal.
        context.load_cert_chain(doors.cert, doors.key, password="")
    except ssl.SSLError as problem:
        raise ConfigInvalid("tls.cert", (f"{doors.cert} and {doors.key} are no certificate and its key",)) from problem
    except OSError:
        return
    try:
        context.load_verify_locations(doors.client_ca)
    except ssl.SSLError as problem:
        raise ConfigInvalid("tls.client_ca", (f"{doors.client_ca} holds no certificate in PEM",)) from problem
    except OSError:
        return


@contextmanager
def _no_signals() -> Iterator[None]:
    yield
