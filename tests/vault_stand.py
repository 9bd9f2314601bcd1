"""A `broker serve` whose keys are in a real OpenBao, with everything between them that a test needs to break it."""

import http.client
import json
import re
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from broker.errors import Failure
from broker.sdk.failures import failure_of
from broker.v1 import status_pb2
from tests.altering_proxy import AlteringProxy, unaltered
from tests.openbao import OpenBao
from tests.served import Served
from tests.tcp_proxy import Behaviour, TcpProxy
from tests.waiting import eventually

# What threats.md and our own timeouts allow, and room for a machine that does much else: without those timeouts it
# would be for ever, or a library's 30 s and more.
REFUSED_WITHIN_S = 2.0
BACK_WITHIN_S = 5.0
SLACK_S = 8.0
# A token of OpenBao: its kind, a dot, and text.
VAULT_TOKEN = re.compile(r"\b[shb](?:v[sbr])?\.[A-Za-z0-9_-]{20,}")


@dataclass(frozen=True, slots=True)
class Refusal:
    """How a mint was refused, and after which time."""

    failure: Failure
    code: grpc.StatusCode
    took_s: float


class Stand:
    """Broker, proxies and OpenBao: broker, a TCP proxy, then OpenBao or (with `altered`) a TLS proxy before it."""

    def __init__(self, folder: Path, vault: OpenBao, login: Path, mode: str, *, read_timeout_s: float = 2.0) -> None:
        assert vault.tls is not None
        self.vault = vault
        self.login = login
        self._leaving = ExitStack()
        self.wire = TcpProxy(vault.port)
        self.altering = AlteringProxy(vault.port, vault.tls)
        self.served = Served(
            folder,
            keys=f"""
[keys]
mode = "{mode}"
[vault]
address = "https://127.0.0.1:{self.wire.port}"
ca_file = "{vault.tls.ca}"
auth = "approle"
role_id_file = "{login / "role_id"}"
secret_id_file = "{login / "secret_id"}"
connect_timeout_s = 1
read_timeout_s = {read_timeout_s}
""",
        )

    def __enter__(self) -> "Stand":
        try:
            self.served.__enter__()
            self.connect()
            # One for all tests: those that have left are waited for, too, until their leases are over.
            self.verifier = self.served.verifier()
            self._leaving.callback(self.verifier.close)
            # The keys of all realms and purposes are certified one after the other: with the last of them this is
            # complete. A fault before that would leave a completion without its key.
            self.served.revoke(token="nobody-has-this-token", wait=True)
        except BaseException:
            self.__exit__()
            raise
        return self

    def connect(self) -> None:
        self.tokens, self.statuses = self.served.tokens(), self.served.status()

    def __exit__(self, *_: object) -> None:
        self._leaving.close()
        self.served.__exit__()
        self.wire.close()
        self.altering.__exit__(None, None, None)

    def alter(self, alter: Callable[..., Any]) -> None:
        """Send the broker's calls through the proxy that alters answers."""
        self.altering.alter = alter
        self.wire.upstream_port = self.altering.port
        self.wire.cut()

    def heal(self) -> None:
        """Undo what was done to the way to Vault."""
        self.altering.alter = unaltered
        self.wire.upstream_port = self.vault.port
        self.wire.behave(Behaviour.FORWARD)
        self.wire.cut()

    def mint(self, **changes: Any) -> Any:
        return self.served.mint(**changes)

    def refusal(self) -> Refusal:
        began = time.monotonic()
        try:
            self.mint()
        except grpc.RpcError as refused:
            return Refusal(failure_of(refused), refused.code(), time.monotonic() - began)
        raise AssertionError("minted")

    def refusals_at_once(self, count: int) -> list[Refusal]:
        found: list[Refusal] = []
        threads = [threading.Thread(target=lambda: found.append(self.refusal())) for _ in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=30)
        assert len(found) == count
        return found

    def mints_again(self, within_s: float = BACK_WITHIN_S) -> Any:
        """Mint as soon as it is possible."""
        minted: list[Any] = []
        reasons: set[str] = set()

        def tried() -> bool:
            try:
                minted.append(self.mint())
            except grpc.RpcError as refused:
                reasons.add(failure_of(refused).reason)
            return bool(minted)

        eventually(tried, "minting again", within_s=within_s + SLACK_S)
        assert reasons <= {"SIGNER_UNAVAILABLE"}
        return minted[0]

    def status(self) -> status_pb2.GetStatusResponse:
        return self.statuses.GetStatus(status_pb2.GetStatusRequest(), timeout=10)

    def serves(self, service: str) -> bool:
        stub = health_pb2_grpc.HealthStub(self.served.channel("admin"))
        answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=5)
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    def metrics(self) -> str:
        context = ssl.create_default_context(cafile=str(self.served.authority.ca))
        connection = http.client.HTTPSConnection("127.0.0.1", self.served.http_port, timeout=10, context=context)
        try:
            connection.request("GET", "/metrics")
            return connection.getresponse().read().decode()
        finally:
            connection.close()

    def metric(self, name: str) -> float:
        """Return the value of the line that begins with `name`."""
        [value] = [line.rpartition(" ")[2] for line in self.metrics().splitlines() if line.startswith(name + " ")]
        return float(value)

    def threads(self) -> int:
        assert self.served.process is not None
        status = Path(f"/proc/{self.served.process.pid}/status").read_text()
        return int(status.partition("Threads:")[2].split()[0])

    def secrets_told(self) -> set[str]:
        """Return secrets of Vault that stand where none may: log, status, metrics."""
        told = self.served.log.read_text() + self.metrics() + str(self.status())
        secret_id = (self.login / "secret_id").read_text().strip()
        return {*VAULT_TOKEN.findall(told), *([secret_id] if secret_id in told else [])}

    def problems_logged(self) -> list[str]:
        lines = [json.loads(line) for line in self.served.log.read_text().splitlines() if line.startswith("{")]
        return [str(line["problem"]) for line in lines if line["message"] == "a problem began"]
