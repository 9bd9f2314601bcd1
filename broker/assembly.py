"""Put a broker together: adapters into ports, use cases into doors."""

import asyncio
import hashlib
import logging
import os
import secrets
import signal
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import lru_cache

import grpc
import uvicorn
from grpc_health.v1._async import HealthServicer

from broker.adapters.clock import ASTRAY, SystemClock
from broker.adapters.identity_tokens import IdentityTokens, Outside
from broker.adapters.key_rotation import KeyRotation, Lifetimes, MakeKey
from broker.adapters.metrics import PrometheusMeter
from broker.adapters.policy_file import load_policy
from broker.adapters.sql import SqlLedger, open_store
from broker.domain.policy import Role
from broker.doors import Doors, bound_login_server, bound_server, http_server, http_socket_of
from broker.edge.grpc.approvals import ApprovalService
from broker.edge.grpc.completions import Completions
from broker.edge.grpc.denying import Denying
from broker.edge.grpc.drilling import Drilling
from broker.edge.grpc.drills import DrillService
from broker.edge.grpc.feed import FeedHub, FeedService
from broker.edge.grpc.lapsing import Lapsing
from broker.edge.grpc.login import LoginDoor
from broker.edge.grpc.noting import Noting
from broker.edge.grpc.outermost import Outermost
from broker.edge.grpc.policy import Explains, PolicyService
from broker.edge.grpc.receiving import Receiving
from broker.edge.grpc.revocations import RevocationService
from broker.edge.grpc.run_proofs import RunProofs
from broker.edge.grpc.runs import RunService
from broker.edge.grpc.server import Services, make_login_server, make_server, set_health
from broker.edge.grpc.status import Condition, StatusService
from broker.edge.grpc.tokens import TokenService
from broker.edge.grpc.watching import Watching
from broker.edge.http.app import make_app
from broker.errors import ConfigInvalid, Failure, SignerUnavailable
from broker.ledger.entry import Entry, Kind, decode_entry, encode_entry
from broker.publishing import Log, LogParts
from broker.service.apply_policy import ApplyPolicy
from broker.service.approving import Approving
from broker.service.calling import Caller, identify
from broker.service.canary import Canaries
from broker.service.complete import Complete
from broker.service.denials import DenialBook
from broker.service.drill import DrillBook
from broker.service.exchange import Exchange
from broker.service.explain import Explain
from broker.service.explain_path import ExplainPath
from broker.service.explain_token import ExplainToken
from broker.service.hits import FindHits
from broker.service.keep_receipts import KeepReceipts
from broker.service.known_runs import KnownRuns
from broker.service.lapses import Lapses
from broker.service.listening import Listeners
from broker.service.mint import Mint
from broker.service.plan_policy import PlanPolicy
from broker.service.policies import Policies
from broker.service.policy_versions import PolicyVersions
from broker.service.ports import CertificateAdded, RequestKey, Root, Write
from broker.service.publish import Publisher
from broker.service.revoke import Reinstate, Revocations, Revoke, RevokeTokens
from broker.service.roster import RosterKeeper
from broker.service.run_keys import RunKeys
from broker.service.runs import Runs
from broker.service.spending import HoldApprovals
from broker.service.subjects import Subjects
from broker.service.verifiers import ForgetVerifier, ListVerifiers
from broker.service.voting import Voting
from broker.token.claims import MAX_LIFETIME_S
from broker.token.jws import b64url
from broker.token.keys import Purpose, plain_certificate

log = logging.getLogger("broker")

PRUNE_EVERY_S = 60.0
HEALTH_EVERY_S = 1.0
SWITCH_S = 0.001
EXIT_FATAL = 70


def new_token_id() -> str:
    """Return 128 random bits, base64url."""
    return b64url(secrets.token_bytes(16))


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
    # Why the home of the keys cannot be asked now, or nothing.
    key_home_problem: Callable[[], str] = str


class Broker:
    """One broker process: opened, served, closed."""

    def __init__(self, parts: Parts, doors: Doors) -> None:
        """Open the store and certify the first keys. Raises Failure with what to do."""
        self._parts = parts
        self._doors = doors
        self._hub: FeedHub | None = None
        self._keep: KeepReceipts | None = None
        self._fatal: Failure | None = None
        self._stopping = asyncio.Event()
        self.port = 0
        self.http_port = 0
        self.login_port = 0
        meter, clock = parts.meter, parts.clock
        self.ledger: SqlLedger = open_store(
            parts.store_url,
            clock,
            headroom_bytes=parts.headroom_bytes,
            is_sole=parts.is_sole,
            on_commit=self._wake,
            on_group=meter.appended,
            on_fatal=self._fail,
        )
        self.log = Log(self.ledger, parts.log, clock, self._fail)
        self._is_new = self.ledger.head().size == 1
        self._compare_clocks()
        # Planned, applied and then read: the same letters are parsed once.
        self._parse = lru_cache(maxsize=2)(load_policy)
        self.policies = Policies(self.ledger, self._parse, parts.clock, max_ttl_s=int(parts.max_ttl.total_seconds()))
        self._run_proofs = RunProofs(RunKeys(KnownRuns(self.ledger), clock))
        self._denying = Denying(DenialBook(self.ledger.explaining, self.policies, clock))
        self.signer = KeyRotation(
            parts.root,
            clock,
            realms=self.policies.realm_keys,
            publish=self._publish_certificate,
            make=parts.make_token_key,
            meter=meter,
            lifetimes=parts.lifetimes,
            away=str if parts.signs_in_memory else parts.key_home_problem,
        )
        self.identities = IdentityTokens(parts.outside, clock)
        self._login: grpc.aio.Server | None = None

    async def serve(self, on_ready: Callable[[], None]) -> None:
        """Serve until `stop` is called or the store fails. Raises the failure of the store."""
        parts, clock, meter = self._parts, self._parts.clock, self._parts.meter
        # A mass revocation keeps two threads busy; the loop, which carries the urgent one, gets its turn sooner.
        sys.setswitchinterval(SWITCH_S)
        loop = asyncio.get_running_loop()
        await asyncio.to_thread(self.signer.start)
        self.policies.watch(lambda in_force: self.signer.forget(in_force.revoked_keys))
        self.policies.watch(lambda in_force: self.identities.configure(in_force.policy.providers.values()))
        self.identities.configure(self.policies.current().policy.providers.values())
        publisher = Publisher(self.ledger, self.policies, self.signer, clock, boot=secrets.token_hex(8))
        hub = self._hub = FeedHub(
            publisher,
            self.policies,
            Listeners(started_ns=None if self._is_new else clock.boottime_ns(), is_sole=parts.is_sole),
            clock,
            meter,
        )
        self.ledger.listen(hub.wake)
        find_hits = FindHits(self.ledger.proofs, self.policies)
        completions = Completions(
            hub,
            Complete(self.ledger, self.ledger.proofs, self.policies, self.signer, clock),
            find_hits,
            self.ledger,
            self.ledger.proofs,
            self.ledger.roster,
            self.policies,
            clock,
            meter,
            is_sole=parts.is_sole,
        )
        keeper = RosterKeeper(self.ledger.roster, hub.listeners, clock)
        noting, drilling, denying = Noting(keeper, hub), self._drilling(hub), self._denying
        outermost = Outermost(self.policies, clock, meter, parts.admins, LoginDoor(self.identities, self._run_proofs))
        outermost.on_refused = denying.refused
        keep = self._keep = KeepReceipts(self.ledger, self.ledger.receipts, clock, meter)
        receiving = Receiving(
            keep, self.signer, clock, lambda: publisher.head, lambda realm: meter.receipts_refused(realm, "OVERLOADED")
        )
        server, self.port, healths = self._server(hub, completions, find_hits, drilling, keeper, outermost, receiving)
        await server.start()
        if self._login is not None:
            await self._login.start()
        http, http_socket = self._http(publisher), http_socket_of(self._doors)
        if http_socket is not None:
            self.http_port = http_socket.getsockname()[1]
        tasks = [
            asyncio.create_task(hub.run()),
            asyncio.create_task(completions.run()),
            asyncio.create_task(noting.run()),
            asyncio.create_task(denying.run()),
            asyncio.create_task(drilling.run()),
            asyncio.create_task(receiving.run()),
            asyncio.create_task(Lapsing(Lapses(self.ledger, self._revocations(), clock)).run()),
            asyncio.create_task(self.log.run()),
            asyncio.create_task(self._look_after(healths)),
            *([asyncio.create_task(http.serve([http_socket]))] if http is not None and http_socket is not None else []),
        ]
        for number in (signal.SIGTERM, signal.SIGINT):
            with suppress(NotImplementedError, RuntimeError, ValueError):
                loop.add_signal_handler(number, self.stop)
        try:
            while publisher.head is None or (http is not None and not http.started):
                await asyncio.sleep(0.01)
                self._raise_ended(tasks)
            on_ready()
            await self._stopping.wait()
        finally:
            if http is not None:
                http.should_exit = True
            await asyncio.gather(*(one.stop(grace=0.5) for one in (server, self._login) if one is not None))
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await noting.close()
            await self.log.close()
            await denying.close()
            await asyncio.to_thread(self.close)
        if self._fatal is not None:
            raise self._fatal

    def stop(self) -> None:
        """End `serve`. Call from its loop."""
        self._stopping.set()

    def close(self) -> None:
        """Release the store and forget the keys."""
        self.identities.close()
        self.signer.close()
        self.ledger.close()

    def apply_first_policy(self, document: str, admin: str) -> None:
        """Apply `document` unless a policy was applied before. Raises ConfigInvalid."""
        if self.policies.current().document:
            return
        self._apply()(
            Caller(admin, Role.ADMIN),
            document,
            expected_version=None,
            request=RequestKey(
                admin, f"first-policy-{secrets.token_hex(8)}", hashlib.sha256(document.encode()).digest()
            ),
        )

    def _apply(self) -> ApplyPolicy:
        return ApplyPolicy(
            self.ledger,
            self.policies,
            self._parts.clock,
            self._parse,
            digest=_sha256,
            max_ttl_s=int(self._parts.max_ttl.total_seconds()),
        )

    def _policy_service(self) -> PolicyService:
        apply = self._apply()
        ledger, policies = self.ledger, self.policies
        return PolicyService(
            apply,
            PlanPolicy(ledger, ledger.proofs, policies, apply, self._parts.clock, digest=_sha256),
            PolicyVersions(ledger, ledger.history, policies, apply, digest=_sha256),
            Explains(
                Explain(policies),
                self._denying.book,
                ExplainToken(ledger, ledger.proofs, ledger.history, ledger.explaining, policies, self._parts.clock),
                ExplainPath(policies, self._parts.admins),
            ),
        )

    def condition(self) -> Condition:
        """Return what is wrong now, for people, and what of it stops minting."""
        in_force = self.policies.current()
        stopping = [in_force.problem, self._parts.clock.is_astray() or ""]
        if not in_force.policy.realms and not in_force.problem:
            stopping.append("no policy is applied: nothing is allowed; see: broker policy apply")
        for realm in in_force.policy.realms:
            try:
                self.signer.current(realm, Purpose.TOKEN)
            except SignerUnavailable as failure:
                stopping.append(failure.message)
        # Minting goes on while the keys last; people should know before they end.
        passing = [self._parts.key_home_problem(), self.signer.problem, *self.identities.problems(), *self.log.problems]
        if self._keep is not None:
            passing += self._keep.problems
        stops = tuple(text for text in stopping if text)
        return Condition(stops, tuple(dict.fromkeys(text for text in passing if text and not _told(text, stops))))

    def _revocations(self) -> Revocations:
        # Not `max_ttl`: it may have been longer when a token that is still alive was minted (P4).
        return Revocations(self._parts.clock, timedelta(seconds=MAX_LIFETIME_S))

    def _drilling(self, hub: FeedHub) -> Drilling:
        clock, meter = self._parts.clock, self._parts.meter
        canaries = Canaries(
            self.ledger, self.policies, self.signer, self._revocations(), clock, new_id=new_token_id, meter=meter
        )
        book = DrillBook(self.ledger, self.ledger.proofs, self.policies, clock)
        return Drilling(hub, canaries, book, self.policies, clock, meter)

    def _server(
        self,
        hub: FeedHub,
        completions: Completions,
        find_hits: FindHits,
        drilling: Drilling,
        keeper: RosterKeeper,
        outermost: Outermost,
        receiving: Receiving,
    ) -> tuple[grpc.aio.Server, int, HealthServicer]:
        parts, clock, meter = self._parts, self._parts.clock, self._parts.meter
        revocations = self._revocations()
        list_verifiers = ListVerifiers(keeper, hub.listeners, self.policies, clock, is_sole=parts.is_sole)
        revoke = Revoke(self.ledger, self.policies, revocations, meter)
        approving = Approving(self.ledger, self.ledger.approvals, self.policies, clock, new_id=new_token_id)
        mint = Mint(self.ledger, self.policies, self.signer, clock, new_id=new_token_id, meter=meter)
        services = Services(
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
                self._run_proofs,
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
            ),
            feed=FeedService(hub, self.policies, clock, outermost.caller, receiving=receiving),
            policy=self._policy_service(),
            status=StatusService(
                self.ledger,
                self.policies,
                self.signer,
                hub,
                clock,
                self.condition,
                list_verifiers,
                ForgetVerifier(self.ledger, keeper, list_verifiers, clock),
                self.ledger.roster,
                drilling,
                self.log.trust,
            ),
            drills=DrillService(drilling),
            ledger=self.log.service,
            approvals=ApprovalService(
                approving, Voting(self.ledger, approving, self.policies, clock), Watching(approving, self._again)
            ),
        )
        self.policies.watch(lambda _in_force: self.signer.wake())
        bound = bound_server(self._doors, lambda papers, listen: make_server(services, outermost, papers, listen))
        self._bind_login(services, bound[2])
        return bound

    def _run_service(self, revocations: Revocations) -> RunService:
        parts = self._parts
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
        return RunService(runs, self._run_proofs, parts.clock)

    def _again(self, caller: Caller) -> Caller:
        """Judge somebody anew by the policy as it is now. Raises Unauthenticated."""
        return identify(caller.proof, self.policies.current(), self._parts.admins)

    def _bind_login(self, services: Services, healths: HealthServicer) -> None:
        parts, door = self._parts, LoginDoor(self.identities, self._run_proofs)
        outermost = Outermost(self.policies, parts.clock, parts.meter, parts.admins, door, by_token=True)
        outermost.on_refused = self._denying.refused
        bound = bound_login_server(
            self._doors, lambda papers, listen: make_login_server(services, outermost, papers, listen, healths)
        )
        if bound is not None:
            self._login, self.login_port = bound

    def _http(self, publisher: Publisher) -> uvicorn.Server | None:
        if self._doors.http is None:
            return None
        app = make_app(
            self.policies,
            publisher.certificates,
            self._parts.meter.render,
            lambda: publisher.head is not None and self._fatal is None,
            self.log.pages.routes(),
        )
        return http_server(self._doors, app)

    def _raise_ended(self, tasks: "list[asyncio.Task[None]]") -> None:
        for task in tasks:
            if task.done():
                failure = task.exception()
                raise ConfigInvalid(
                    "server", (f"a part of the broker ended at the start: {type(failure).__name__}",)
                ) from failure

    async def _look_after(self, healths: HealthServicer) -> None:
        pruned_ns = 0
        known: frozenset[str] = frozenset()
        while True:
            condition = await asyncio.to_thread(self._measured)
            known = _logged(frozenset((*condition.stops_minting, *condition.passing)), known)
            await set_health(healths, minting=not condition.stops_minting, storing=self._fatal is None)
            now_ns = self._parts.clock.boottime_ns()
            if now_ns - pruned_ns > PRUNE_EVERY_S * 1e9:
                pruned_ns = now_ns
                with suppress(Failure):
                    await asyncio.to_thread(self.ledger.prune, self._parts.clock.now())
            await asyncio.sleep(HEALTH_EVERY_S)

    def _measured(self) -> Condition:
        with suppress(Failure):
            theirs = self.ledger.wall_clock()
            if theirs is not None:
                self._parts.clock.compare("the store's clock", theirs)
        return self.condition()

    def _compare_clocks(self) -> None:
        """Doubt our clock before anything is signed by it: the ledger's end was written before now."""
        clock, size = self._parts.clock, self.ledger.head().size
        [newest] = self.ledger.entries(size - 1, size)
        last = decode_entry(newest).at
        theirs = self.ledger.wall_clock()
        if theirs is not None:
            clock.compare("the store's clock", theirs)
            if abs(theirs - clock.now()) > ASTRAY:
                clock.correct("the store's clock at the start", theirs)
        if last - clock.now() > ASTRAY:
            # One broker whose clock is ahead must not set the clocks of all others.
            if theirs is None:
                clock.correct("the last ledger entry", last)
            else:
                clock.compare("the last ledger entry", last)

    def _publish_certificate(
        self, realm: str, purpose: Purpose, kid: str, certificate: str, expires_at: datetime
    ) -> None:
        at = self._parts.clock.now()
        body = {"realm": realm, "purpose": purpose.value, "kid": kid, "certificate": plain_certificate(certificate)}
        self.ledger.append(
            Write(
                [lambda index: encode_entry(Entry(index, Kind.KEY_CERTIFIED, at, "broker", body))],
                effects=(CertificateAdded(realm, purpose, kid, certificate, expires_at),),
                urgent=True,
            )
        ).result()

    def _wake(self) -> None:
        if self._hub is not None:
            self._hub.wake()

    def _fail(self, failure: Failure) -> None:
        """The store is broken: stop at once. After a failed fsync only a new start knows what is on the disk."""
        log.critical("the store failed", extra={"fields": {"reason": failure.reason, "detail": failure.message}})
        self._fatal = failure
        os._exit(EXIT_FATAL)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _told(text: str, in_texts: Iterable[str]) -> bool:
    return any(text in other for other in in_texts)


def _logged(problems: frozenset[str], known: frozenset[str]) -> frozenset[str]:
    """Log what came and what went, once."""
    for problem in sorted(problems - known):
        log.warning("a problem began", extra={"fields": {"problem": problem}})
    for problem in sorted(known - problems):
        log.info("a problem is over", extra={"fields": {"problem": problem}})
    return problems
