"""The demo of `broker dev`: its principals and policy, and the tour that shows what a broker is for."""

import json
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import grpc

from broker.adapters.throwaway_ca import Issued, ThrowawayCa
from broker.errors import Failure, Malformed, Rejected, Revoked, Untrusted
from broker.sdk import Identity, Verifier
from broker.sdk.failures import failure_of
from broker.token.completion import check_completions
from broker.token.keys import parse_trust
from broker.v1 import (
    revocations_pb2,
    revocations_pb2_grpc,
    selector_pb2,
    tokens_pb2,
    tokens_pb2_grpc,
)

REALMS = ("evaluation", "research", "production")
ADMIN = "spiffe://lab.example/ops"
PRINCIPALS: Mapping[str, str] = {
    "admin": ADMIN,
    "auditor": "spiffe://lab.example/audit",
    "acme": "spiffe://acme.example/ci",
    "globex": "spiffe://globex.example/cluster",
    **{f"verifier-{realm}": f"spiffe://lab.example/gateway-{realm}" for realm in REALMS},
}
MODEL = "mythos"

POLICY = """\
# The demo policy of `broker dev`: two partners, two models, three realms.
version: 1
realms:
  evaluation: {issuer: "https://broker.dev.example/evaluation", audience: models.evaluation, max_ttl: 1h,
    receipts: each}
  research: {issuer: "https://broker.dev.example/research", audience: models.research, max_ttl: 8h}
  production: {issuer: "https://broker.dev.example/production", audience: models.production, max_ttl: 15m}
models: [mythos, oracle]
partners:
  acme:
    labels: {jurisdiction: us}
    users: [alice]
    workloads: [nightly]
    environments: {acme-ci: {certificate: "spiffe://acme.example/ci"}}
  globex:
    labels: {jurisdiction: eu}
    users: [bob]
    environments: {globex-cluster: {certificate: "spiffe://globex.example/cluster"}}
grants:
  - {id: acme-evaluation, partner: acme, realm: evaluation, models: [mythos, oracle], environments: [acme-ci],
     users: [alice], workloads: [nightly], ttl: {default: 10m, max: 1h}}
  - {id: acme-research, partner: acme, realm: research, models: [oracle], environments: [acme-ci],
     users: [alice], ttl: {default: 1h, max: 8h}}
  - {id: globex-evaluation, partner: globex, realm: evaluation, models: [mythos], environments: [globex-cluster],
     users: [bob], ttl: {default: 10m, max: 30m}}
principals:
  - {id: "spiffe://lab.example/ops", role: admin}
  - {id: "spiffe://lab.example/audit", role: auditor}
  - {id: "spiffe://acme.example/ci", role: harness, partner: acme, workload: nightly}
  - {id: "spiffe://globex.example/cluster", role: harness, partner: globex}
  - {id: "spiffe://lab.example/gateway-evaluation", role: verifier, realm: evaluation}
  - {id: "spiffe://lab.example/gateway-research", role: verifier, realm: research}
  - {id: "spiffe://lab.example/gateway-production", role: verifier, realm: production}
"""


@dataclass(frozen=True, slots=True)
class Papers:
    """The files that the demo's processes show and pin."""

    ca: Path
    server: Issued
    clients: Mapping[str, Issued]
    trust: Path

    def identity(self, name: str) -> Identity:
        """Return who `name` is to the SDK."""
        issued = self.clients[name]
        return Identity(certificate=issued.cert, key=issued.key, ca=self.ca)


def issue_papers(folder: Path) -> Papers:
    """Make a new throw-away CA and everybody's certificates."""
    ca = ThrowawayCa(folder / "tls")
    clients = {name: ca.client(name, uri) for name, uri in PRINCIPALS.items()}
    return Papers(ca.cert, ca.server("server"), clients, folder / "trust.json")


class TourFailed(Failure):
    """A step of the tour did not do what it should."""


class Tour:
    """Mints, verifies, revokes with proof and is denied, as harness, service and admin of the demo."""

    def __init__(self, endpoint: str, papers: Papers, verifier: Verifier, say: Callable[[str], None]) -> None:
        self._endpoint = endpoint
        self._papers = papers
        self._verifier = verifier
        self._say = say

    def run(self) -> None:
        """Go through the steps. Raises TourFailed at the first that is not as it should be."""
        self._verifier.wait_fresh(10)
        harness, admin = self._channel("acme"), self._channel("admin")
        try:
            token = self._mint(harness)
            self._verify(token)
            self._revoke(admin)
            self._is_dead(token)
            self._is_blocked(harness)
            self._reinstate(admin)
            fresh = self._mint(harness)
            self._verify(fresh)
            self._is_dead(token)
        finally:
            harness.close()
            admin.close()

    def _channel(self, name: str) -> grpc.Channel:
        return grpc.secure_channel(self._endpoint, self._papers.identity(name).credentials())

    def _step(self, started: float, text: str) -> None:
        self._say(f"  {(time.perf_counter() - started) * 1000:8.2f} ms  {text}")

    def _mint(self, channel: grpc.Channel) -> str:
        started = time.perf_counter()
        request = tokens_pb2.MintRequest(
            request_id=secrets.token_urlsafe(16),
            spec=tokens_pb2.TokenSpec(realm="evaluation", partner="acme", user="alice", models=[MODEL]),
        )
        try:
            minted = tokens_pb2_grpc.TokenServiceStub(channel).Mint(request, timeout=10).token
        except grpc.RpcError as error:
            failure = failure_of(error)
            hint = 'broker reinstate --partner acme --reason "..."' if failure.reason == "BLOCKED" else ""
            raise TourFailed(f"minting failed: {failure.message}", hint=hint) from error
        self._step(started, f"minted token {minted.id} for alice of acme, ledger index {minted.index}")
        return str(minted.token)

    def _verify(self, token: str) -> None:
        # The certificate of the key travels on the feed; a first token can be a moment faster.
        deadline = time.monotonic() + 5
        while True:
            started = time.perf_counter()
            try:
                proof = self._verifier.verify(token, model=MODEL)
            except Rejected as refused:
                if time.monotonic() > deadline:
                    raise TourFailed(f"a good token was refused: {refused}") from refused
                time.sleep(0.01)
                continue
            self._step(started, f"verified offline: {proof.claims.sub} may use {MODEL}")
            return

    def _revoke(self, channel: grpc.Channel) -> None:
        started = time.perf_counter()
        request = revocations_pb2.RevokeRequest(
            request_id=secrets.token_urlsafe(16),
            selector=selector_pb2.Selector(partner="acme"),
            reason="the tour revokes a partner",
            wait=True,
        )
        complete = None
        try:
            for event in revocations_pb2_grpc.RevocationServiceStub(channel).Revoke(request, timeout=60):
                match event.WhichOneof("event"):
                    case "committed":
                        self._step(started, f"revoked partner acme: committed at index {event.committed.index}")
                    case "complete":
                        complete = event.complete
        except grpc.RpcError as error:
            raise TourFailed(f"revoking failed: {failure_of(error)}") from error
        if complete is None or not complete.verifiers:
            raise TourFailed("the revocation was not confirmed by the verifier")
        for outcome in complete.verifiers:
            how = "acknowledged" if outcome.acknowledged else "its lease ran out"
            after_ms = outcome.after.ToMicroseconds() / 1000
            self._say(f"  {after_ms:8.0f} ms    {outcome.verifier}: {how}")
        self._step(started, "complete: no verifier accepts acme's tokens any more")
        self._check(complete)

    def _check(self, complete: revocations_pb2.RevocationComplete) -> None:
        """Check the proof as a stranger would: with nothing but the trust file."""
        started = time.perf_counter()
        document = "".join(f"{statement}\n" for statement in complete.statements)
        try:
            statements = check_completions(document, parse_trust(self._papers.trust.read_text("utf-8")))
        except (Malformed, Untrusted) as bad:
            raise TourFailed(f"the completion does not hold: {bad.message}") from bad
        proof = self._papers.trust.with_name("completion.jws")
        proof.write_text(document, "ascii")
        realms = ", ".join(statement.realm for statement in statements)
        self._step(started, f"proof checked offline, signed for {realms}: {proof}")

    def _is_dead(self, token: str) -> None:
        started = time.perf_counter()
        try:
            self._verifier.verify(token, model=MODEL)
        except Revoked as revoked:
            self._step(started, f"denied: {revoked.message}")
            return
        except Rejected as refused:
            raise TourFailed(f"the revoked token was refused for another reason: {refused}") from refused
        raise TourFailed("the revoked token was still accepted")

    def _is_blocked(self, channel: grpc.Channel) -> None:
        started = time.perf_counter()
        request = tokens_pb2.MintRequest(
            request_id=secrets.token_urlsafe(16),
            spec=tokens_pb2.TokenSpec(realm="evaluation", partner="acme", user="alice", models=[MODEL]),
        )
        try:
            tokens_pb2_grpc.TokenServiceStub(channel).Mint(request, timeout=10)
        except grpc.RpcError as error:
            failure = failure_of(error)
            if failure.reason != "BLOCKED":
                raise TourFailed(f"the mint was refused for another reason: {failure}") from error
            self._step(started, f"no new token: {failure.message}")
            return
        raise TourFailed("a blocked partner was given a token")

    def _reinstate(self, channel: grpc.Channel) -> None:
        started = time.perf_counter()
        request = revocations_pb2.ReinstateRequest(
            request_id=secrets.token_urlsafe(16),
            selector=selector_pb2.Selector(partner="acme"),
            reason="the tour goes on",
        )
        try:
            answer = revocations_pb2_grpc.RevocationServiceStub(channel).Reinstate(request, timeout=10)
        except grpc.RpcError as error:
            raise TourFailed(f"reinstating failed: {failure_of(error)}") from error
        if not answer.lifted:
            raise TourFailed("there was no block to lift")
        self._step(started, "reinstated acme: new tokens can be minted, dead ones stay dead")


def write_trust(path: Path, document: str) -> None:
    """Write the trust file that verifiers pin."""
    json.loads(document)
    path.write_text(document, encoding="utf-8")
