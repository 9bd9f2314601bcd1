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
from datetime import datetime, timedelta
from functools import lru_cache

import grpc
import uvicorn
from grpc_health.v1._async import HealthServicer

from broker.adapters.clock import ASTRAY
from broker.adapters.event_index import SqliteEventIndex
from broker.adapters.identity_tokens import IdentityTokens
from broker.adapters.key_rotation import KeyRotation
from broker.adapters.policy_file import load_policy
from broker.adapters.sql import SqlLedger, open_store
from broker.adapters.sql.copying import RESTORING
from broker.composing import Composer, Parts
from broker.domain.policy import Role
from broker.doors import Doors, bound_login_server, bound_server, feed_door_of, http_server, http_socket_of
from broker.edge.feed.door import Door
from broker.edge.grpc.completions import Completions
from broker.edge.grpc.denying import Denying
from broker.edge.grpc.hub import FeedHub
from broker.edge.grpc.indexing import Indexing
from broker.edge.grpc.lapsing import Lapsing
from broker.edge.grpc.login import LoginDoor
from broker.edge.grpc.noting import Noting
from broker.edge.grpc.outermost import Outermost
from broker.edge.grpc.receiving import Receiving
from broker.edge.grpc.run_proofs import RunProofs
from broker.edge.grpc.server import Services, make_login_server, make_server, set_health
from broker.edge.grpc.status import Condition
from broker.edge.http.app import make_app
from broker.errors import ConfigInvalid, Failure, SignerUnavailable, StoreCorrupt
from broker.ledger.entry import Entry, Kind, decode_entry, encode_entry
from broker.publishing import Log
from broker.service.calling import Caller
from broker.service.complete import Complete
from broker.service.denials import DenialBook
from broker.service.hits import FindHits
from broker.service.indexing import Indexer
from broker.service.keep_receipts import KeepReceipts
from broker.service.known_runs import KnownRuns
from broker.service.lapses import Lapses
from broker.service.listening import Listeners
from broker.service.policies import Policies
from broker.service.ports import CertificateAdded, RequestKey, Write
from broker.service.publish import Publisher
from broker.service.roster import RosterKeeper
from broker.service.run_keys import RunKeys
from broker.token.keys import Purpose, plain_certificate

log = logging.getLogger("broker")

PRUNE_EVERY_S = 60.0
HEALTH_EVERY_S = 1.0
SWITCH_S = 0.001
EXIT_FATAL = 70
# Where no other broker asks who listens; a completion looks back further than this.
SOLE_REFRESH = timedelta(seconds=5)


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
        self.feed_port = 0
        meter, clock = parts.meter, parts.clock
        self.ledger: SqlLedger = open_store(
            parts.store_url,
            clock,
            headroom_bytes=parts.headroom_bytes,
            is_sole=parts.is_sole,
            archive=parts.archive,
            on_commit=self._wake,
            on_group=meter.appended,
            on_fatal=self._fail,
        )
        _must_be_finished(self.ledger)
        self.log = Log(self.ledger, parts.log, clock, self._fail)
        self._is_new = self.ledger.head().size == 1
        self._events = SqliteEventIndex(parts.events_file, self.ledger.head())
        self._indexer = Indexer(self.ledger, self._events, clock)
        self._compare_clocks()
        # Planned, applied and then read: the same letters are parsed once.
        parse = lru_cache(maxsize=2)(load_policy)
        self.policies = Policies(self.ledger, parse, parts.clock, max_ttl_s=int(parts.max_ttl.total_seconds()))
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
        self._composer = Composer(
            parts,
            self.ledger,
            self.policies,
            self.signer,
            parse,
            self._run_proofs,
            self._denying,
            self.log,
            self._events,
            self._indexer,
        )
        self.identities = IdentityTokens(parts.outside, clock)
        self._login: grpc.aio.Server | None = None
        self._healths: HealthServicer

    async def serve(self, on_ready: Callable[[], None]) -> None:
        """Serve until `stop` is called or the store fails. Raises the failure of the store."""
        parts, clock, meter = self._parts, self._parts.clock, self._parts.meter
        # A mass revocation keeps two threads busy; the loop, which carries the urgent one, gets its turn sooner.
        sys.setswitchinterval(SWITCH_S)
        await asyncio.to_thread(self.signer.start)
        self.policies.watch(lambda in_force: self.signer.forget(in_force.revoked_keys))
        self.policies.watch(lambda in_force: self.identities.configure(in_force.policy.providers.values()))
        self.identities.configure(self.policies.current().policy.providers.values())
        publisher = Publisher(
            self.ledger,
            self.policies,
            self.signer,
            clock,
            boot=secrets.token_hex(8),
            restorations=self.ledger.restorations(),
        )
        hub = self._hub = FeedHub(
            publisher,
            self.policies,
            Listeners(started_ns=None if self._is_new else clock.boottime_ns(), is_sole=parts.is_sole),
            clock,
            meter,
        )
        self.ledger.listen(hub.wake)
        find_hits, cuts = FindHits(self.ledger.proofs, self.policies), self._composer.cuts_told(hub)
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
            cuts,
            is_sole=parts.is_sole,
        )
        keeper = RosterKeeper(
            self.ledger.roster, hub.listeners, clock, refresh=SOLE_REFRESH if parts.is_sole else timedelta()
        )
        noting, drills, denying = Noting(keeper, hub), self._composer.drills(hub), self._denying
        outermost = Outermost(self.policies, clock, meter, parts.admins, LoginDoor(self.identities, self._run_proofs))
        outermost.on_refused = denying.refused
        keep = self._keep = KeepReceipts(self.ledger, self.ledger.receipts, clock, meter)
        receiving = Receiving(
            keep, self.signer, clock, lambda: publisher.head, lambda realm: meter.receipts_refused(realm, "OVERLOADED")
        )
        services = self._composer.services(
            hub, completions, find_hits, drills, keeper, outermost, receiving, self.condition
        )
        server = self._bind(services, outermost)
        await server.start()
        if self._login is not None:
            await self._login.start()
        feed = self._open_feed(services, outermost)
        http, http_socket = self._http(publisher), http_socket_of(self._doors)
        if http_socket is not None:
            self.http_port = http_socket.getsockname()[1]
        tasks = [
            asyncio.create_task(hub.run()),
            asyncio.create_task(completions.run()),
            *([asyncio.create_task(cuts.run())] if cuts is not None else []),
            asyncio.create_task(noting.run()),
            asyncio.create_task(denying.run()),
            asyncio.create_task(drills.run()),
            asyncio.create_task(receiving.run()),
            asyncio.create_task(Lapsing(Lapses(self.ledger, self._composer.revocations(), clock)).run()),
            asyncio.create_task(self.log.run()),
            asyncio.create_task(Indexing(self._indexer).run()),
            asyncio.create_task(self._look_after(self._healths)),
            *([asyncio.create_task(http.serve([http_socket]))] if http is not None and http_socket is not None else []),
        ]
        self._heed_signals()
        try:
            while publisher.head is None or (http is not None and not http.started):
                await asyncio.sleep(0.01)
                self._raise_ended(tasks)
            on_ready()
            await self._stopping.wait()
        finally:
            if http is not None:
                http.should_exit = True
            if feed is not None:
                await feed.stop()
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

    def _heed_signals(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            with suppress(NotImplementedError, RuntimeError, ValueError):
                asyncio.get_running_loop().add_signal_handler(number, self.stop)

    def stop(self) -> None:
        """End `serve`. Call from its loop."""
        self._stopping.set()

    def close(self) -> None:
        """Release the store and forget the keys."""
        self.identities.close()
        self.signer.close()
        self._events.close()
        self.ledger.close()

    def apply_first_policy(self, document: str, admin: str) -> None:
        """Apply `document` unless a policy was applied before. Raises ConfigInvalid."""
        if self.policies.current().document:
            return
        self._composer.apply_policy()(
            Caller(admin, Role.ADMIN),
            document,
            expected_version=None,
            request=RequestKey(
                admin, f"first-policy-{secrets.token_hex(8)}", hashlib.sha256(document.encode()).digest()
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

    def _bind(self, services: Services, outermost: Outermost) -> grpc.aio.Server:
        self.policies.watch(lambda _in_force: self.signer.wake())
        server, self.port, self._healths = bound_server(
            self._doors, lambda papers, listen: make_server(services, outermost, papers, listen)
        )
        self._bind_login(services, self._healths)
        return server

    def _bind_login(self, services: Services, healths: HealthServicer) -> None:
        parts, door = self._parts, LoginDoor(self.identities, self._run_proofs)
        outermost = Outermost(self.policies, parts.clock, parts.meter, parts.admins, door, by_token=True)
        outermost.on_refused = self._denying.refused
        bound = bound_login_server(
            self._doors, lambda papers, listen: make_login_server(services, outermost, papers, listen, healths)
        )
        if bound is not None:
            self._login, self.login_port = bound

    def _open_feed(self, services: Services, outermost: Outermost) -> Door | None:
        papers = feed_door_of(self._doors)
        if papers is None:
            return None
        self.feed_port = papers[1].getsockname()[1]
        door = Door(services.feed.desk, outermost, *papers)
        door.start()
        return door

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


def _must_be_finished(ledger: SqlLedger) -> None:
    if ledger.head().incarnation == RESTORING:
        raise StoreCorrupt("the store is being restored, and that was not finished", hint="run again: broker restore")


def _told(text: str, in_texts: Iterable[str]) -> bool:
    return any(text in other for other in in_texts)


def _logged(problems: frozenset[str], known: frozenset[str]) -> frozenset[str]:
    """Log what came and what went, once."""
    for problem in sorted(problems - known):
        log.warning("a problem began", extra={"fields": {"problem": problem}})
    for problem in sorted(known - problems):
        log.info("a problem is over", extra={"fields": {"problem": problem}})
    return problems
