"""Put the use cases of one broker behind its gRPC doors."""

import asyncio
import hashlib
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from broker.adapters.clock import SystemClock
from broker.adapters.entry_archive import EntryArchive
from broker.adapters.identity_tokens import Outside
from broker.adapters.key_rotation import KeyRotation, Lifetimes, MakeKey
from broker.adapters.metrics import PrometheusMeter
from broker.adapters.sql import SqlLedger
from broker.domain.policy import Policy
from broker.edge.grpc.approvals import ApprovalService
from broker.edge.grpc.audit import AuditService
from broker.edge.grpc.completions import Completions
from broker.edge.grpc.cuts import CutsTold
from broker.edge.grpc.denying import Denying
from broker.edge.grpc.drill_answers import DrillAnswers
from broker.edge.grpc.drill_schedules import DrillSchedules
from broker.edge.grpc.drilling import Drilling
from broker.edge.grpc.drills import DrillService
from broker.edge.grpc.feed import FeedService
from broker.edge.grpc.hub import FeedHub
from broker.edge.grpc.other_brokers import Alone, OnOneStore, OtherBrokers
from broker.edge.grpc.outermost import Outermost
from broker.edge.grpc.policy import Explains, PolicyService
from broker.edge.grpc.receiving import Receiving
from broker.edge.grpc.reports import ReportService
from broker.edge.grpc.revocations import RevocationService
from broker.edge.grpc.run_proofs import RunProofs
from broker.edge.grpc.runs import RunService
from broker.edge.grpc.server import Services
from broker.edge.grpc.status import Condition, StatusService
from broker.edge.grpc.tokens import TokenService
from broker.edge.grpc.watching import Watching
from broker.publishing import Log, LogParts
from broker.service.apply_policy import ApplyPolicy
from broker.service.approving import Approving
from broker.service.asking import Questions
from broker.service.calling import Caller, identify
from broker.service.canary import Canaries
from broker.service.drill import DrillBook
from broker.service.exchange import Exchange
from broker.service.explain import Explain
from broker.service.explain_path import ExplainPath
from broker.service.explain_token import ExplainToken
from broker.service.hits import FindHits
from broker.service.indexing import Indexer
from broker.service.mint import Mint
from broker.service.plan_policy import PlanPolicy
from broker.service.policies import Policies
from broker.service.policy_versions import PolicyVersions
from broker.service.ports import Root
from broker.service.question_ports import EventIndex
from broker.service.reporting import AccessReports
from broker.service.revoke import Reinstate, Revocations, Revoke, RevokeTokens
from broker.service.roster import RosterKeeper
from broker.service.runs import Runs
from broker.service.spending import HoldApprovals
from broker.service.subjects import Subjects
from broker.service.verifiers import ForgetVerifier, ListVerifiers
from broker.service.voting import Voting
from broker.token.claims import MAX_LIFETIME_S
from broker.token.identifiers import random_id


def new_token_id() -> str:
    """Return the id of a token, a run or an approval."""
    return random_id(secrets.token_bytes)


@dataclass(frozen=True, slots=True)
class Parts:
    """What differs between deployments."""

    store_url: str
    headroom_bytes: int
    is_sole: bool
    root: Root
    make_token_key: MakeKey
    signs_in_memory: bool
    lifetimes: Lifetimes
    admins: frozenset[str]
    max_ttl: timedelta
    max_run: timedelta
    clock: SystemClock
    meter: PrometheusMeter
    log: LogParts
    outside: Outside = field(default_factory=Outside)
    # Where the index of the ledger is kept; it can be deleted at any time.
    events_file: Path | None = None
    # Where bodies of old entries were moved to, if they were.
    archive: EntryArchive | None = None
    # Why the home of the keys cannot be asked now, or nothing.
    key_home_problem: Callable[[], str] = str


@dataclass(frozen=True, slots=True)
class Drills:
    """Drills by hand, by schedule, and the part in those of other brokers, if there can be any."""

    others: OtherBrokers
    drilling: Drilling
    schedules: DrillSchedules
    answers: DrillAnswers | None

    async def run(self) -> None:
        """Begin and answer drills for as long as the task lives."""
        await asyncio.gather(self.schedules.run(), *([self.answers.run()] if self.answers is not None else []))


@dataclass(frozen=True, slots=True)
class Composer:
    """What the use cases of a process share, and how each is made of it."""

    parts: Parts
    ledger: SqlLedger
    policies: Policies
    signer: KeyRotation
    parse: Callable[[str], Policy]
    run_proofs: RunProofs
    denying: Denying
    log: Log
    index: EventIndex
    indexer: Indexer

    def apply_policy(self) -> ApplyPolicy:
        """Return what replaces the policy."""
        return ApplyPolicy(
            self.ledger,
            self.policies,
            self.parts.clock,
            self.parse,
            digest=_sha256,
            max_ttl_s=int(self.parts.max_ttl.total_seconds()),
        )

    def _policy_service(self) -> PolicyService:
        apply = self.apply_policy()
        ledger, policies = self.ledger, self.policies
        return PolicyService(
            apply,
            PlanPolicy(ledger, ledger.proofs, policies, apply, self.parts.clock, digest=_sha256),
            self._policy_versions(apply),
            Explains(
                Explain(policies),
                self.denying.book,
                ExplainToken(ledger, ledger.proofs, ledger.history, ledger.explaining, policies, self.parts.clock),
                ExplainPath(policies, self.parts.admins),
            ),
        )

    def revocations(self) -> Revocations:
        """Return what makes the writes of revocations."""
        # Not `max_ttl`: it may have been longer when a token that is still alive was minted (P4).
        return Revocations(self.parts.clock, timedelta(seconds=MAX_LIFETIME_S))

    def cuts_told(self, hub: FeedHub) -> CutsTold | None:
        """Return what tells other brokers of uses that were cut, if there can be any."""
        parts = self.parts
        return None if parts.is_sole else CutsTold(self.ledger.cuts, hub.listeners, parts.clock, name=new_token_id())

    def drills(self, hub: FeedHub) -> Drills:
        """Return what drills the verifiers of this process, and with the other ones' help those of theirs."""
        parts, ledger, clock = self.parts, self.ledger, self.parts.clock
        canaries = Canaries(
            ledger, self.policies, self.signer, self.revocations(), clock, new_id=new_token_id, meter=parts.meter
        )
        book = DrillBook(ledger, ledger.proofs, self.policies, clock)
        others: OtherBrokers = (
            Alone()
            if parts.is_sole
            else OnOneStore(ledger.drill_calls, ledger.roster, self.policies, clock, name=new_token_id())
        )
        drilling = Drilling(hub, canaries, book, self.policies, clock, parts.meter, others)
        return Drills(
            others,
            drilling,
            DrillSchedules(drilling, self.policies, clock, others),
            DrillAnswers(drilling.shown, others, clock) if not parts.is_sole else None,
        )

    def services(
        self,
        hub: FeedHub,
        completions: Completions,
        find_hits: FindHits,
        drills: Drills,
        keeper: RosterKeeper,
        outermost: Outermost,
        receiving: Receiving,
        condition: Callable[[], Condition],
    ) -> Services:
        """Return each use case behind its door."""
        parts, clock, meter = self.parts, self.parts.clock, self.parts.meter
        revocations = self.revocations()
        list_verifiers = ListVerifiers(keeper, hub.listeners, self.policies, clock, is_sole=parts.is_sole)
        revoke = Revoke(self.ledger, self.policies, revocations, meter)
        approving = Approving(self.ledger, self.ledger.approvals, self.policies, clock, new_id=new_token_id)
        mint = Mint(self.ledger, self.policies, self.signer, clock, new_id=new_token_id, meter=meter)
        return Services(
            tokens=TokenService(
                mint,
                Exchange(
                    Subjects(self.ledger, self.signer, clock),
                    mint,
                    self.policies,
                    clock,
                    new_id=new_token_id,
                    meter=meter,
                ),
                self.run_proofs,
                HoldApprovals(self.ledger.approvals),
                signs_in_memory=parts.signs_in_memory,
            ),
            runs=self._run_service(revocations),
            revocations=RevocationService(
                revoke,
                RevokeTokens(self.ledger, revocations, revoke, meter),
                Reinstate(self.ledger, self.policies, clock),
                find_hits,
                completions,
                self.ledger,
                self.ledger.proofs,
                self.policies,
                hub,
                clock,
                drills.others,
            ),
            feed=FeedService(hub, self.policies, clock, outermost.caller, receiving=receiving),
            policy=self._policy_service(),
            status=StatusService(
                self.ledger,
                self.policies,
                self.signer,
                hub,
                clock,
                condition,
                list_verifiers,
                ForgetVerifier(self.ledger, keeper, list_verifiers, clock),
                self.ledger.roster,
                drills.drilling,
                self.log.trust,
            ),
            drills=DrillService(drills.drilling),
            ledger=self.log.service,
            approvals=ApprovalService(
                approving, Voting(self.ledger, approving, self.policies, clock), Watching(approving, self._again)
            ),
            audit=AuditService(Questions(self.ledger, self.ledger.proofs, self.index, self.indexer)),
            reports=ReportService(self._access_reports(), list_verifiers, self.ledger.roster),
        )

    def _access_reports(self) -> AccessReports:
        return AccessReports(
            self.ledger,
            self.policies,
            self._policy_versions(self.apply_policy()),
            self.parse,
            self.index,
            self.indexer,
            self.log.publish,
            self.parts.clock,
            self.parts.admins,
        )

    def _policy_versions(self, apply: ApplyPolicy) -> PolicyVersions:
        return PolicyVersions(self.ledger, self.ledger.history, self.policies, apply, digest=_sha256)

    def _run_service(self, revocations: Revocations) -> RunService:
        parts = self.parts
        runs = Runs(
            self.ledger,
            self.policies,
            parts.clock,
            revocations,
            new_id=new_token_id,
            meter=parts.meter,
            hold=HoldApprovals(self.ledger.approvals),
            max_life=parts.max_run,
        )
        return RunService(runs, self.run_proofs, parts.clock)

    def _again(self, caller: Caller) -> Caller:
        """Judge somebody anew by the policy as it is now. Raises Unauthenticated."""
        return identify(caller.proof, self.policies.current(), self.parts.admins)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
