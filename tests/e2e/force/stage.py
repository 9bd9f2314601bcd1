"""A real broker with its partners, verifying programs, and revocations whose every event has its instant."""

import os
import signal
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc

from broker.v1 import revocations_pb2, selector_pb2
from tests.e2e.force.verifying import MS, Verifying, now_ns, stop
from tests.served import ADMIN, PRINCIPALS, Served, request_id
from tests.waiting import eventually

# The shortest that a policy may ask for.
LEASE_MS = 3000
LEASE_NS = LEASE_MS * MS
USERS = tuple(f"user-{number:03d}" for number in range(128))
GATEWAYS = ("alpha", "beta", "gamma", "delta")
# A verifier that finds its broker gone looks again soon, as the tests have no minutes to wait.
PACE = {"backoff_first_s": 0.05, "backoff_most_s": 0.5}


def uri(gateway: str) -> str:
    return f"spiffe://lab.example/{gateway}"


POLICY = f"""\
version: 1
realms:
  evaluation: {{issuer: "https://broker.example/evaluation", audience: models.evaluation, max_ttl: 1h, lease: 3s, heartbeat: 1s}}
models: [mythos]
partners:
  acme: {{users: [{", ".join(USERS)}], environments: {{acme-ci: {{certificate: "{PRINCIPALS["acme"]}"}}}}}}
  globex: {{users: [bob], environments: {{globex-cluster: {{certificate: "{PRINCIPALS["globex"]}"}}}}}}
grants:
  - {{id: acme-evaluation, partner: acme, realm: evaluation, models: [mythos], environments: [acme-ci], users: [{", ".join(USERS)}], ttl: {{default: 30m, max: 1h}}}}
  - {{id: globex-evaluation, partner: globex, realm: evaluation, models: [mythos], environments: [globex-cluster], users: [bob], ttl: {{default: 30m, max: 1h}}}}
principals:
  - {{id: "{ADMIN}", role: admin}}
  - {{id: "{PRINCIPALS["acme"]}", role: harness, partner: acme}}
  - {{id: "{PRINCIPALS["globex"]}", role: harness, partner: globex}}
""" + "".join(f'  - {{id: "{uri(name)}", role: verifier, realm: evaluation}}\n' for name in GATEWAYS)


class Revoking:
    """A call of Revoke in a thread of its own; each event with the instant at which it was here."""

    def __init__(self, stub: Any, request: revocations_pb2.RevokeRequest) -> None:
        self.request = request
        self.events: list[tuple[int, revocations_pb2.RevokeResponse]] = []
        self.failure: grpc.RpcError | None = None
        self._stub = stub
        self._thread = threading.Thread(target=self._call, daemon=True)
        self._thread.start()

    @property
    def committed(self) -> revocations_pb2.RevocationCommitted | None:
        return next((event.committed for _, event in list(self.events) if event.HasField("committed")), None)

    @property
    def committed_ns(self) -> int:
        """Not before the commit: when its caller knew of it."""
        return next(at_ns for at_ns, event in list(self.events) if event.HasField("committed"))

    @property
    def complete(self) -> revocations_pb2.RevocationComplete | None:
        return next((event.complete for _, event in list(self.events) if event.HasField("complete")), None)

    @property
    def complete_ns(self) -> int:
        return next(at_ns for at_ns, event in list(self.events) if event.HasField("complete"))

    def until_committed(self, within_s: float = 20.0) -> int:
        eventually(lambda: self.events or self.failure, "the revocation is committed", within_s=within_s)
        assert self.failure is None, self.failure
        assert self.committed is not None
        return self.committed.index

    def until_complete(self, within_s: float = 40.0) -> "Mapping[str, revocations_pb2.VerifierOutcome]":
        """Return what became of each verifier, by the name of its gateway: of its streams, the slowest."""
        eventually(lambda: self.complete or self.failure, "the revocation is complete", within_s=within_s)
        assert self.failure is None, self.failure
        assert self.complete is not None
        return {outcome.verifier.rpartition("/")[2]: outcome for outcome in reversed(self.complete.verifiers)}

    def until_over(self, within_s: float = 20.0) -> None:
        self._thread.join(within_s)
        assert not self._thread.is_alive()

    def _call(self) -> None:
        try:
            for event in self._stub.Revoke(self.request, timeout=120):
                self.events.append((now_ns(), event))
        except grpc.RpcError as failure:
            self.failure = failure


class Stage(Served):
    """As Served, with `POLICY` and a gateway's papers for each verifier."""

    def __init__(self, folder: Path, *, policy: str | None = POLICY, **options: Any) -> None:
        super().__init__(folder, policy=policy, **options)
        self.papers |= {name: self.authority.client(uri(name), name=name) for name in GATEWAYS}

    def __exit__(self, *anything: object) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
        super().__exit__(*anything)

    def token(self, user: str = "", **changes: Any) -> str:
        """Mint for a user of acme, or for the one of globex."""
        if user:
            return str(self.mint(user=user, **changes).token)
        return str(self.mint("globex", partner="globex", user="bob", **changes).token)

    def trust(self, realm: str = "evaluation") -> Path:
        """Return the trust file. It is asked for once, so that a broker that stands still is no hindrance."""
        known = self.folder / f"trust-{realm}.json"
        return known if known.exists() else super().trust(realm)

    def verifying(
        self,
        gateway: str,
        *,
        endpoint: str = "",
        prefix: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        keeps: bool = True,
        **how: Any,
    ) -> Verifying:
        papers = self.papers[gateway]
        words = {
            "endpoint": endpoint or self.listen_endpoint,
            "realm": "evaluation",
            "trust": str(self.trust()),
            "certificate": str(papers.certificate),
            "key": str(papers.key),
            "ca": str(papers.ca),
            "state_dir": str(self.folder / f"state-{gateway}") if keeps else None,
            "pace": PACE,
            **how,
        }
        return Verifying(words, self.folder / f"{gateway}.log", prefix=prefix, environment=environment)

    def ready_to_revoke(self) -> Any:
        """Return a stub that is connected already, so that what comes next takes as long as it takes."""
        stub = self.revocations()
        stub.ListRevocations(revocations_pb2.ListRevocationsRequest(limit=1), timeout=10)
        return stub

    def revoking(self, *, wait: bool = True, again: str = "", by: Any = None, **selector: str) -> Revoking:
        """Begin to revoke, with the stub `by` if it is given."""
        request = revocations_pb2.RevokeRequest(
            request_id=again or request_id(), selector=selector_pb2.Selector(**selector), reason="by force", wait=wait
        )
        return Revoking(by or self.revocations(), request)

    def stop(self) -> int:
        """SIGSTOP the broker; return an instant at which it certainly stood still."""
        assert self.process is not None
        return stop(self.process)

    def go_on(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def kill_now(self) -> None:
        """Send SIGKILL, and do not wait."""
        os.kill(self.pid, signal.SIGKILL)


def must_have_stopped(verifier: Verifying, name: str, revoking: Revoking) -> None:
    """P5 and P6: not accepted later than a lease after `committed` was answered, nor after `complete` was."""
    last_ns = verifier.last_accepted_ns(name)
    late_ms = (last_ns - revoking.committed_ns) / MS
    assert late_ms <= LEASE_MS, f"P5: {verifier.name} accepted {name} {late_ms:.1f} ms after the commit"
    if revoking.complete is not None:
        assert last_ns <= revoking.complete_ns, f"P6: {verifier.name} accepted {name} after the completion"
