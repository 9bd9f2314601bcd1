"""A real broker process, `broker serve`, on a throw-away CA, with stubs for each principal."""

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc

from broker.errors import ReceiptsUnkept, Stale, Untrusted
from broker.sdk import Identity, Verifier
from broker.v1 import (
    approvals_pb2_grpc,
    audit_pb2_grpc,
    drills_pb2_grpc,
    ledger_pb2_grpc,
    policy_pb2,
    policy_pb2_grpc,
    reports_pb2_grpc,
    revocations_pb2,
    revocations_pb2_grpc,
    runs_pb2_grpc,
    selector_pb2,
    status_pb2,
    status_pb2_grpc,
    tokens_pb2,
    tokens_pb2_grpc,
)
from tests.authority import Authority
from tests.ports import free_port

BROKER = Path(sys.executable).with_name("broker")
ADMIN = "spiffe://lab.example/ops"
PRINCIPALS = {
    "admin": ADMIN,
    "auditor": "spiffe://lab.example/audit",
    "acme": "spiffe://acme.example/ci",
    "globex": "spiffe://globex.example/cluster",
    "gateway": "spiffe://lab.example/gateway",
    "gateway-research": "spiffe://lab.example/gateway-research",
    "gateway-shared": "spiffe://lab.example/gateway-shared",
    "security": "spiffe://lab.example/security",
    "operator": "spiffe://lab.example/operator",
    "approver": "spiffe://lab.example/approver",
    "acme-admin": "spiffe://acme.example/admin",
    "globex-admin": "spiffe://globex.example/admin",
    "stranger": "spiffe://stranger.example/ci",
}
POLICY = """\
version: 1
realms:
  evaluation: {issuer: "https://broker.example/evaluation", audience: models.evaluation, max_ttl: 1h, lease: 3s, heartbeat: 1s}
  research: {issuer: "https://broker.example/research", audience: models.research, max_ttl: 1h, lease: 3s, heartbeat: 1s}
models: [mythos, oracle]
partners:
  acme:
    labels: {jurisdiction: us}
    users: [alice]
    workloads: [nightly]
    environments: {acme-ci: {certificate: "spiffe://acme.example/ci"}}
  globex:
    users: [bob]
    environments: {globex-cluster: {certificate: "spiffe://globex.example/cluster"}}
grants:
  - {id: acme-evaluation, partner: acme, realm: evaluation, models: [mythos, oracle], environments: [acme-ci], users: [alice], workloads: [nightly], ttl: {default: 10m, max: 1h}}
  - {id: acme-research, partner: acme, realm: research, models: [oracle], environments: [acme-ci], users: [alice], ttl: {default: 10m, max: 1h}}
  - {id: globex-evaluation, partner: globex, realm: evaluation, models: [mythos], environments: [globex-cluster], users: [bob], ttl: {default: 10m, max: 30m}}
principals:
  - {id: "spiffe://lab.example/ops", role: admin}
  - {id: "spiffe://lab.example/audit", role: auditor}
  - {id: "spiffe://acme.example/ci", role: harness, partner: acme, workload: nightly}
  - {id: "spiffe://globex.example/cluster", role: harness, partner: globex}
  - {id: "spiffe://lab.example/gateway", role: verifier, realm: evaluation}
  - {id: "spiffe://lab.example/gateway-research", role: verifier, realm: research}
  - {id: "spiffe://lab.example/security", role: security}
  - {id: "spiffe://lab.example/operator", role: operator}
  - {id: "spiffe://lab.example/approver", role: approver, person: carol}
  - {id: "spiffe://acme.example/admin", role: partner-admin, partner: acme}
  - {id: "spiffe://globex.example/admin", role: partner-admin, partner: globex}
"""


def request_id() -> str:
    return secrets.token_urlsafe(16)


def wait_until(condition: Callable[[], Any], timeout_s: float = 15.0) -> Any:
    """Return what `condition` returns once it is true. Fails when the time is over."""
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s} s: {condition}")
        time.sleep(0.01)
    return found


def settled_head(status: Any) -> int:
    """Return the ledger's size once nothing is written by itself any more: keys that are certified, completions."""
    before, since = -1, time.monotonic()
    deadline = time.monotonic() + 30
    while time.monotonic() - since < 0.5:
        head: int = status.GetStatus(status_pb2.GetStatusRequest(), timeout=10).head
        if head != before:
            before, since = head, time.monotonic()
        assert time.monotonic() < deadline, "the ledger never settles"
        time.sleep(0.05)
    return before


class Served:
    """One broker process and everybody's papers. Use as a context manager; `kill` and `start` as often as needed."""

    # What stands before the command, as when it shall run somewhere else.
    prefix: Sequence[str] = ()

    def __init__(
        self,
        folder: Path,
        *,
        policy: str | None = POLICY,
        store: str = "",
        keys: str = "",
        identity: str | None = None,
        with_feed_door: bool = False,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self.authority = Authority(folder / "ca")
        self.server = self.authority.server()
        self.papers = {name: self.authority.client(uri, name=name) for name, uri in PRINCIPALS.items()}
        self.log = folder / "broker.log"
        self.port = free_port()
        self.http_port = free_port()
        self.login_port = free_port()
        self.feed_port = free_port() if with_feed_door else 0
        self._policy = policy
        self._environment = dict(environment or {})
        self._channels: list[grpc.Channel] = []
        self.process: subprocess.Popen[str] | None = None
        (folder / "passphrase").write_text("not a secret in a test")
        keys = keys or f'[keys]\nmode = "local"\npassphrase_file = "{folder / "passphrase"}"\n'
        self._config = f"""
[server]
listen = "127.0.0.1:PORT"
http_listen = "127.0.0.1:HTTP"
{'login_listen = "127.0.0.1:LOGIN"' if identity is not None else ""}
{'feed_listen = "127.0.0.1:FEED"' if with_feed_door else ""}
data_dir = "{folder / "data"}"
admins = ["{ADMIN}"]
[tls]
cert = "{self.server.certificate}"
key = "{self.server.key}"
client_ca = "{self.authority.ca}"
[store]
{store}
{keys}
{f"[identity]{chr(10)}{identity}" if identity else ""}
[log]
level = "debug"
"""

    def __enter__(self) -> "Served":
        self.start()
        if self._policy is not None:
            self.apply(self._policy)
        return self

    def __exit__(self, *_: object) -> None:
        for channel in self._channels:
            channel.close()
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(10)

    def start(self) -> None:
        """Start the process, on the ports it had before, and wait until it is ready."""
        config = self.folder / "broker.toml"
        ports = {"PORT": self.port, "HTTP": self.http_port, "LOGIN": self.login_port, "FEED": self.feed_port}
        text = self._config
        for name, port in ports.items():
            text = text.replace(f":{name}", f":{port}")
        config.write_text(text)
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [*self.prefix, BROKER, "serve", "--config", config],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={"PATH": os.environ["PATH"], "HOME": str(self.folder), **self._environment},
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert "broker is ready" in line, self.log.read_text()[-3000:]
        # Nothing more is read from it; an open pipe would outlive the process.
        self.process.stdout.close()
        words = line.split()
        self.port, self.http_port = int(words[5]), int(words[8])
        self.login_port = int(words[words.index("(login)") - 1]) if "(login)" in words else 0
        assert self.feed_port == (int(words[words.index("(feed)") - 1]) if "(feed)" in words else 0)

    def store(self, store: str) -> None:
        """Serve from another store, from the next start on."""
        before, _, rest = self._config.partition("[store]\n")
        self._config = f"{before}[store]\n{store}\n{rest.partition(chr(10))[2]}"
        (self.folder / "broker.toml").write_text(self._config)

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def feed_endpoint(self) -> str:
        """Where the feed's own door is."""
        assert self.feed_port, "this broker has none"
        return f"127.0.0.1:{self.feed_port}"

    @property
    def listen_endpoint(self) -> str:
        """Where verifiers listen: at the feed's own door, if there is one."""
        return self.feed_endpoint if self.feed_port else self.endpoint

    def identity(self, name: str) -> Identity:
        papers = self.papers[name]
        return Identity(certificate=papers.certificate, key=papers.key, ca=papers.ca)

    def login_channel(self, token: str = "") -> grpc.Channel:
        """Connect to the login door, without a certificate; with `token`, each call carries it."""
        credentials = grpc.ssl_channel_credentials(self.authority.ca.read_bytes())
        if token:
            credentials = grpc.composite_channel_credentials(credentials, grpc.access_token_call_credentials(token))
        channel = grpc.secure_channel(f"127.0.0.1:{self.login_port}", credentials)
        self._channels.append(channel)
        return channel

    def channel(self, name: str) -> grpc.Channel:
        channel = grpc.secure_channel(self.endpoint, self.identity(name).credentials())
        self._channels.append(channel)
        return channel

    def tokens(self, name: str = "acme") -> Any:
        return tokens_pb2_grpc.TokenServiceStub(self.channel(name))

    def runs(self, name: str = "acme") -> Any:
        return runs_pb2_grpc.RunServiceStub(self.channel(name))

    def revocations(self, name: str = "admin") -> Any:
        return revocations_pb2_grpc.RevocationServiceStub(self.channel(name))

    def policies(self, name: str = "admin") -> Any:
        return policy_pb2_grpc.PolicyServiceStub(self.channel(name))

    def status(self, name: str = "admin") -> Any:
        return status_pb2_grpc.StatusServiceStub(self.channel(name))

    def drills(self, name: str = "admin") -> Any:
        return drills_pb2_grpc.DrillServiceStub(self.channel(name))

    def ledger(self, name: str = "auditor") -> Any:
        return ledger_pb2_grpc.LedgerServiceStub(self.channel(name))

    def audit(self, name: str = "auditor") -> Any:
        return audit_pb2_grpc.AuditServiceStub(self.channel(name))

    def reports(self, name: str = "auditor") -> Any:
        return reports_pb2_grpc.ReportServiceStub(self.channel(name))

    def approvals(self, name: str = "acme") -> Any:
        return approvals_pb2_grpc.ApprovalServiceStub(self.channel(name))

    def apply(self, document: str) -> Any:
        answer = self.policies().ApplyPolicy(
            policy_pb2.ApplyPolicyRequest(request_id=request_id(), document=document), timeout=10
        )
        wait_until(lambda: self.status().GetStatus(status_pb2.GetStatusRequest(), timeout=10).minting)
        return answer

    def spec(self, **changes: Any) -> tokens_pb2.TokenSpec:
        return tokens_pb2.TokenSpec(
            **{"realm": "evaluation", "partner": "acme", "user": "alice", "models": ["mythos"], **changes}
        )

    def mint(self, name: str = "acme", **changes: Any) -> tokens_pb2.MintedToken:
        request = tokens_pb2.MintRequest(request_id=request_id(), spec=self.spec(**changes))
        return self.tokens(name).Mint(request, timeout=10).token

    def revoke(self, *, wait: bool = False, whole_realm: bool = False, **selector: str) -> list[Any]:
        request = revocations_pb2.RevokeRequest(
            request_id=request_id(),
            selector=selector_pb2.Selector(**selector),
            reason="a test",
            wait=wait,
            whole_realm=whole_realm,
        )
        return list(self.revocations().Revoke(request, timeout=30))

    def reinstate(self, **selector: str) -> Any:
        request = revocations_pb2.ReinstateRequest(
            request_id=request_id(), selector=selector_pb2.Selector(**selector), reason="a test"
        )
        return self.revocations().Reinstate(request, timeout=10)

    def until_accepted(self, verifier: Verifier, token: str, model: str = "mythos") -> None:
        """A first token can be faster than the certificate of its key, or than the place for receipts."""

        def is_accepted() -> bool:
            try:
                verifier.verify(token, model=model)
            except (Untrusted, Stale, ReceiptsUnkept):
                return False
            return True

        wait_until(is_accepted)

    def trust(self, realm: str = "evaluation") -> Path:
        document = self.status().GetTrust(status_pb2.GetTrustRequest(realm=realm), timeout=10).document
        path = self.folder / f"trust-{realm}.json"
        path.write_text(document)
        return path

    def verifier(self, realm: str = "evaluation", name: str = "gateway", **options: Any) -> Verifier:
        verifier = Verifier.connect(
            self.listen_endpoint, realm=realm, trust=self.trust(realm), identity=self.identity(name), **options
        )
        verifier.wait_fresh(10)
        return verifier
