"""The use cases on a real store, with a clock that can be moved on."""

import hashlib
import secrets
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from broker.adapters.policy_file import load_policy
from broker.adapters.sql import SqlLedger, open_store
from broker.domain.policy import Role
from broker.service.apply_policy import ApplyPolicy
from broker.service.calling import Caller, CertificateProof, identify
from broker.service.explain import Explain
from broker.service.known_runs import KnownRuns
from broker.service.lapses import Lapses
from broker.service.metering import Unmetered
from broker.service.plan_policy import PlanPolicy
from broker.service.policies import Policies
from broker.service.policy_versions import PolicyVersions
from broker.service.ports import RequestKey
from broker.service.revoke import Reinstate, Revocations, Revoke
from broker.service.runs import Runs, Wanted
from broker.service.spending import HoldApprovals
from tests.moved_clock import MovedClock
from tests.served import ADMIN

MAX_TTL_S = 86_400
OPS = Caller(ADMIN, Role.ADMIN)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def request(contents: str = "", *, principal: str = ADMIN, request_id: str = "") -> RequestKey:
    return RequestKey(principal, request_id or secrets.token_urlsafe(16), hashlib.sha256(contents.encode()).digest())


@dataclass
class World:
    ledger: SqlLedger
    clock: MovedClock
    policies: Policies
    revocations: Revocations
    apply_policy: ApplyPolicy
    versions: PolicyVersions
    plan: PlanPolicy
    revoke: Revoke
    reinstate: Reinstate
    runs: Runs
    known_runs: KnownRuns
    lapses: Lapses
    explain: Explain

    def caller(self, uri: str) -> Caller:
        return identify(CertificateProof(uri), self.policies.current(), frozenset({ADMIN}))

    @property
    def acme(self) -> Caller:
        return self.caller("spiffe://acme.example/ci")

    @property
    def globex(self) -> Caller:
        return self.caller("spiffe://globex.example/cluster")

    @property
    def size(self) -> int:
        return self.ledger.head().size

    def apply(self, document: str, *, expected_version: int | None = None, reason: str = "") -> tuple[int, int]:
        return self.apply_policy(
            OPS, document, expected_version=expected_version, request=request(document), reason=reason
        )

    def open_run(self, caller: Caller, *models: str, **wanted: object):
        fields = {"realm": "evaluation", "partner": caller.partner, "models": models or ("mythos",), "lease_s": 60}
        return self.runs.open(caller, Wanted(**{**fields, **wanted}), request(principal=caller.principal))


def make_world(folder: Path) -> World:
    clock = MovedClock()
    ledger = open_store(f"sqlite:///{folder / 'ledger.db'}", clock, headroom_bytes=1 << 20)
    policies = Policies(ledger, load_policy, clock, max_ttl_s=MAX_TTL_S)
    revocations = Revocations(clock, timedelta(seconds=MAX_TTL_S))
    apply = ApplyPolicy(ledger, policies, clock, load_policy, digest=digest, max_ttl_s=MAX_TTL_S)
    return World(
        ledger,
        clock,
        policies,
        revocations,
        apply,
        PolicyVersions(ledger, ledger.history, policies, apply, digest=digest),
        PlanPolicy(ledger, ledger.proofs, policies, apply, clock, digest=digest),
        Revoke(ledger, policies, revocations, Unmetered()),
        Reinstate(ledger, policies, clock),
        Runs(
            ledger,
            policies,
            clock,
            revocations,
            new_id=lambda: secrets.token_urlsafe(16),
            meter=Unmetered(),
            hold=HoldApprovals(ledger.approvals),
        ),
        KnownRuns(ledger),
        Lapses(ledger, revocations, clock),
        Explain(policies),
    )
