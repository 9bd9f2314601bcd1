"""One run from one seed: who is there, what they do, and what goes wrong."""

import gc
import hashlib
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from random import Random
from typing import Any

from broker.domain.asking import Ask
from broker.edge.grpc.translate import selector_message
from broker.errors import Failure
from broker.ledger.entry import Entry, Kind, encode_entry
from broker.sdk.following import Step
from broker.service.ports import CertificateAdded, Draft, PolicyReplaced, RequestKey, Write
from broker.token.claims import TOKEN_TYP, decode_claims
from broker.token.jws import parse_jws
from broker.token.keys import Purpose
from broker.token.revocation import Selector
from broker.v1 import feed_pb2, revocations_pb2
from tests.fakes import Disk
from tests.simulation.history import History
from tests.simulation.loop import SimLoop
from tests.simulation.network import DOWN, UP, Connection, Host, Network
from tests.simulation.nodes import NS_PER_S, Machine
from tests.simulation.outside import (
    ADMIN,
    EPOCH,
    MOST_VERIFIERS,
    PARTNERS,
    REALMS,
    Database,
    SimRemembered,
    StateFolder,
    harness,
    keys_of,
    policy_document,
)
from tests.simulation.processes import BrokerProcess, VerifierProcess
from tests.simulation.validators import Lineage, Token, Validators

MS = 1_000_000
# Once nothing goes wrong any more, all must be well within this time.
LIVENESS_NS = 45 * NS_PER_S
LEASES = ((3, 1), (4, 1), (5, 1), (5, 2))
MODELS = ("mythos", "oracle")
USERS = ("alice", "bob")


@dataclass(slots=True, eq=False)
class Broker:
    """A place where a broker runs, again and again."""

    endpoint: str
    machine: Machine
    host: Host
    process: BrokerProcess | None = None
    starts: int = 0


@dataclass(slots=True, eq=False)
class Place:
    """A place where a verifier runs, again and again."""

    name: str
    realm: str
    machine: Machine
    folder: StateFolder | None
    lineage: Lineage
    process: VerifierProcess | None = None
    starts: int = 0
    is_awaited: bool = False

    @property
    def principal(self) -> str:
        return f"spiffe://lab.example/{self.name}"


@dataclass(slots=True)
class Result:
    """What came of a run."""

    seed: int
    violations: list[str]
    digest: str
    history: History
    counts: dict[str, int]


@dataclass(slots=True)
class _Asked:
    """A revocation that an admin wants, until somebody answers."""

    request: revocations_pb2.RevokeRequest | revocations_pb2.RevokeTokensRequest
    attempts: int = 0
    index: int | None = None
    is_complete: bool = False


class Scenario:
    """A run. Everything random comes from the seed; nothing else differs between two runs."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.random = random = Random(f"scenario {seed}")
        self.loop = loop = SimLoop(Random(f"loop {seed}"))
        self.history = History(loop)
        self.network = Network(loop, Random(f"network {seed}"))
        self.network.taps = self
        realms = REALMS if random.random() < 0.25 else REALMS[:1]
        self.leases = {realm: random.choice(LEASES) for realm in realms}
        count = 2 if random.random() < 0.35 else 1
        leases_ns = {realm: lease_s * NS_PER_S for realm, (lease_s, _) in self.leases.items()}
        self.check = Validators(loop, leases_ns, is_sole=count == 1)
        self.counts: dict[str, int] = {}
        self.tokens: list[Token] = []
        self.asked: list[_Asked] = []
        self.blocks: list[Selector] = []
        self.is_quiet = False
        self.has_restored = False
        self._requests = 0
        self.ends_ns = random.choice((9, 14, 22)) * NS_PER_S
        verifiers: list[tuple[str, str]] = []
        for number in range(random.choice((1, 1, 2, 2, 3, 3, 4, MOST_VERIFIERS))):
            realm = random.choice(realms)
            verifiers.append((f"{realm}-{number}", realm))
        document = policy_document(tuple((realm, *lease) for realm, lease in self.leases.items()))
        self.database = Database(loop, Random(f"database {seed}"), Disk.new(f"ledger-{seed}-1", EPOCH), self._committed)
        self.check.begin_timeline(self.database.disk, self.database.disk.incarnation)
        self._first_entries(document, realms)
        self.brokers = [
            Broker(f"broker-{name}:7443", self._machine(most_wall_s=2), Host()) for name in ("a", "b")[:count]
        ]
        for broker in self.brokers:
            self.network.hosts[broker.endpoint] = broker.host
        self.places = [
            Place(
                name,
                realm,
                self._machine(most_wall_s=100_000),
                StateFolder(self.database) if random.random() < 0.75 else None,
                Lineage(name, realm, f"spiffe://lab.example/{name}"),
            )
            for name, realm in verifiers
        ]

    def run(self) -> Result:
        """Run all of it."""
        try:
            for broker in self.brokers:
                self.start_broker(broker)
            for place in self.places:
                self.at(int(self.random.random() * 2 * NS_PER_S), lambda place=place: self.start_verifier(place))
            self._repeat(0.9, self.mint)
            self._repeat(1.8, self.revoke)
            self._repeat(0.3, self.decide)
            self._repeat(1.3, self.fault)
            self.loop.run_until(self.ends_ns)
            self.is_quiet = True
            self.history.add("world", "quiet")
            self._heal_all()
            must_be_well_ns = self.loop.now_ns + LIVENESS_NS
            while self.loop.now_ns < must_be_well_ns and not self._is_well():
                self.loop.run_until(self.loop.now_ns + NS_PER_S // 4)
            self._judge_end()
        finally:
            self.loop.end()
        for problem in self.loop.problems:
            self.check.violated("defect", problem)
        return Result(self.seed, self.check.violations, self.history.digest(), self.history, self.counts)

    # Setting up.

    def _machine(self, *, most_wall_s: int) -> Machine:
        random = self.random
        ppm = random.choice((-500, 500, 0, random.randint(-500, 500)))
        return Machine(
            self.loop,
            uptime_ns=random.randint(1, 10**6) * NS_PER_S // 7,
            ppm=ppm,
            wall_ns=random.randint(-most_wall_s * 1000, most_wall_s * 1000) * MS,
        )

    def _first_entries(self, document: str, realms: tuple[str, ...]) -> None:
        effects: list[Any] = [PolicyReplaced(document, ADMIN, EPOCH)]
        for realm in realms:
            for key in keys_of(realm, Purpose.TOKEN):
                effects.append(
                    CertificateAdded(realm, Purpose.TOKEN, key.kid, key.certificate, EPOCH + timedelta(days=2))
                )
        for effect in effects:
            kind = Kind.POLICY_APPLIED if isinstance(effect, PolicyReplaced) else Kind.KEY_CERTIFIED
            write = Write([_draft(kind)], effects=(effect,))
            self._committed(write, self.database.disk.append(write, EPOCH), self.database.disk)

    def start_broker(self, broker: Broker) -> None:
        """Start a process, unless one is there."""
        if broker.process is not None and not broker.process.node.is_dead:
            return
        broker.starts += 1
        self.check.started_ns = self.loop.now_ns
        broker.host.has_power = True
        boot = f"{self.seed}-{broker.endpoint[7]}-{broker.starts}"
        try:
            process = BrokerProcess(
                self.loop,
                f"{broker.endpoint[:8]}.{broker.starts}",
                broker.machine,
                self.database,
                boot=boot,
                is_new=broker.starts == 1 and len(self.brokers) == 1,
                is_sole=len(self.brokers) == 1,
            )
        except Failure:
            # The store did not answer; it is tried again.
            self.at(NS_PER_S, lambda: self.start_broker(broker))
            return
        self.history.add(process.node.name, "starts")
        broker.process = process
        broker.host.node = process.node
        broker.host.listen = process.listen

    def start_verifier(self, place: Place) -> None:
        """Start a process, unless one is there."""
        if place.is_awaited or (place.process is not None and not place.process.node.is_dead):
            return
        place.starts += 1
        if place.folder is None or place.folder.data is None:
            place.lineage.acked.clear()
        place.process = process = VerifierProcess(
            self.loop,
            f"{place.name}.{place.starts}",
            place.machine,
            self.network,
            place.folder,
            realm=place.realm,
            principal=place.principal,
            endpoints=tuple(broker.endpoint for broker in self.brokers),
            random=Random(f"{self.seed} {place.name} {place.starts}"),
            note=lambda _what, process, step: self._stepped(place, process, step),
        )
        self.check.processes.append((process, place.lineage))
        self.history.add(process.node.name, "starts")

    # What is heard.

    def _committed(self, write: Write, appended: Any, disk: Disk) -> None:
        self.check.committed(write, appended, disk)
        told = [(type(effect).__name__, str(getattr(effect, "selector", ""))) for effect in write.effects]
        self.history.add("ledger", "committed", appended.indices.start, appended.indices.stop, *told)

    def _stepped(self, place: Place, process: VerifierProcess, step: Step) -> None:
        state = process.verifier._follower.state
        self.history.add(
            process.node.name, "took", state.head, state.accept_until_ns, int(step.in_force), int(step.has_contents)
        )
        self.check.stepped(process, place.lineage, step)

    def sent_up(self, connection: Connection, request: feed_pb2.ListenRequest) -> None:
        """As Taps."""
        kind = request.WhichOneof("message")
        self.history.add(connection.client.name, "sent", kind)
        self._count(f"up {kind}")
        if kind == "ack":
            place = next(place for place in self.places if place.name == connection.client.name.partition(".")[0])
            kept = None
            if place.folder is not None:
                mark = SimRemembered(place.folder, connection.client, place.realm).load()
                kept = mark.head if mark is not None else 0
            self.check.acknowledged(place.lineage, request.ack.incarnation, request.ack.head, kept)

    def sent_down(self, connection: Connection, message: bytes) -> None:
        """As Taps."""
        self._count("down")
        self.check.carried(connection, message)

    def _count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1

    # What people do.

    def at(self, after_ns: int, call: Callable[[], object]) -> None:
        """Do something in the world, later."""
        self.loop.schedule(self.loop.world, self.loop.now_ns + after_ns, call)

    def _repeat(self, mean_s: float, call: Callable[[], object]) -> None:
        def again() -> None:
            if not self.is_quiet:
                call()
                self.at(int(self.random.expovariate(1 / mean_s) * NS_PER_S) + MS, again)

        self.at(int(self.random.random() * 2 * NS_PER_S), again)

    def ask(
        self,
        make: Callable[[BrokerProcess], Any],
        done: Callable[[Any], None],
        failed: Callable[[Failure | None], None],
    ) -> None:
        """Call some broker; without an answer in 12 s the call has failed with None."""
        process = self.random.choice(self.brokers).process
        delay_ns = int(self.random.random() * 20 * MS)
        is_open = [True]

        def answer(call: Callable[..., None], *what: Any) -> None:
            if is_open[0]:
                is_open[0] = False
                call(*what)

        async def serve(process: BrokerProcess) -> None:
            try:
                result = await make(process)
            except Failure as failure:
                self.at(delay_ns, lambda failure=failure: answer(failed, failure))
            else:
                self.at(delay_ns, lambda: answer(done, result))

        if process is not None and process.is_serving:
            self.at(
                delay_ns, lambda: process.node.is_dead or process.node.call(lambda: process.node.spawn(serve(process)))
            )
        self.at(12 * NS_PER_S, lambda: answer(failed, None))

    def _request_key(self, principal: str) -> RequestKey:
        self._requests += 1
        name = f"request-{self._requests:012}"
        return RequestKey(principal, name, hashlib.sha256(name.encode()).digest())

    def mint(self) -> None:
        """A harness asks for a token."""
        random, asked_ns = self.random, self.loop.now_ns
        partner = random.choice(tuple(PARTNERS))
        ask = Ask(
            random.choice(tuple(self.leases)), partner, random.choice(USERS), None, (random.choice(MODELS),), "ci"
        )
        key = self._request_key(harness(partner))
        before = self.database.disk.incarnation

        def done(minted: Any) -> None:
            for one in minted:
                jws, disk = parse_jws(one.token, typ=TOKEN_TYP), self.database.disk
                is_here = one.id.encode() in b"".join(disk.entries[one.index : one.index + 1])
                incarnation = disk.incarnation if is_here else before
                token = Token(one.token, decode_claims(jws.payload), jws.kid, incarnation)
                self.history.add("harness", "minted", one.index)
                self._count("minted")
                self.tokens.append(token)
                self.check.minted(token, asked_ns)

        def failed(failure: Failure | None) -> None:
            self.history.add("harness", "denied", failure.reason if failure is not None else "")
            self._count(f"denied {failure.reason if failure is not None else ''}")

        self.ask(lambda process: process.minted(ask, key), done, failed)

    def decide(self) -> None:
        """A request reaches a verifier."""
        random = self.random
        place = random.choice(self.places)
        process = place.process
        mine = [token for token in self.tokens if token.claims.realm == place.realm]
        if process is None or process.node.is_dead or not mine:
            return
        token = random.choice(mine[-8:] if random.random() < 0.7 else mine)
        holds = random.random() < 0.1
        process.node.call(lambda: self._decide(place, process, token, holds=holds))

    def _decide(self, place: Place, process: VerifierProcess, token: Token, *, holds: bool) -> None:
        model = token.claims.models[0]
        if holds:
            verdict = "accepted" if process.hold(token.text, model) is not None else "refused"
        else:
            verdict = process.decide(token.text, model)
        self.history.add(process.node.name, "decided", token.claims.idx, verdict)
        self._count(f"verdict {verdict}")
        if verdict == "accepted":
            self.check.accepted(process, place.lineage, token)
        elif verdict == "Revoked":
            self.check.refused_as_revoked(process, place.lineage, token)

    def _selector(self) -> Selector:
        random = self.random
        partner, realm = random.choice(tuple(PARTNERS)), random.choice(tuple(self.leases))
        kind = random.random()
        if kind < 0.35 and self.tokens:
            return Selector.of(token=random.choice(self.tokens[-6:]).claims.jti)
        if kind < 0.45:
            return Selector.of(partner=partner)
        if kind < 0.55:
            return Selector.of(partner=partner, user=random.choice(USERS))
        if kind < 0.65:
            return Selector.of(realm=realm, partner=partner)
        if kind < 0.72:
            return Selector.of(realm=realm, model=random.choice(MODELS))
        if kind < 0.79:
            return Selector.of(user=random.choice(USERS), model=random.choice(MODELS))
        if kind < 0.85:
            return Selector.of(label=f"jurisdiction={random.choice(('us', 'eu'))}")
        if kind < 0.90:
            return Selector.of(realm=realm)
        if kind < 0.92:
            return Selector.of(key=keys_of(realm, random.choice((Purpose.TOKEN, Purpose.FEED)))[0].kid)
        return Selector.of(partner=partner, model=random.choice(MODELS))

    def revoke(self, selector: Selector | None = None, *, is_waited_for: bool | None = None) -> None:
        """An admin revokes."""
        wanted = selector or self._selector()
        self._requests += 1
        asked = _Asked(
            revocations_pb2.RevokeRequest(
                request_id=f"request-{self._requests:012}",
                selector=selector_message(wanted),
                reason="a simulation",
                wait=self.random.random() < 0.8 if is_waited_for is None else is_waited_for,
                whole_realm=True,
            )
        )
        self.asked.append(asked)
        self._ask_revoke(asked)
        if wanted.is_blocking and self.random.random() < 0.85:
            self.at(int(self.random.uniform(0.5, 8) * NS_PER_S), lambda: self.reinstate(wanted))

    def _ask_revoke(self, asked: _Asked) -> None:
        asked.attempts += 1
        incarnation = self.database.disk.incarnation

        def hear(event: Any) -> None:
            if event.HasField("committed"):
                index = asked.index = event.committed.index
                self.at(MS, lambda: self._returned(incarnation, index))
            elif event.HasField("complete"):
                asked.is_complete = True
                self.history.add("admin", "complete", asked.index)
                self._count("complete")

        def failed(failure: Failure | None) -> None:
            self.history.add("admin", "failed", failure.reason if failure is not None else "")
            if incarnation != self.database.disk.incarnation or asked.attempts >= 6 or self.is_quiet:
                return
            # Without an answer the same is asked again; with an index, the way to look is by index.
            if asked.index is not None and asked.request.wait and not asked.is_complete:
                again = revocations_pb2.GetRevocationRequest(index=asked.index, wait=True)
                self.at(NS_PER_S // 2, lambda: self.ask(lambda process: process.revoked(again, hear), done, failed))
            elif asked.index is None:
                self.at(NS_PER_S // 2, lambda: self._ask_revoke(asked))

        def done(_: object) -> None:
            pass

        self.ask(lambda process: process.revoked(asked.request, hear), done, failed)

    def _returned(self, incarnation: str, index: int) -> None:
        self.history.add("admin", "revoked", index)
        self._count("revoked")
        if incarnation == self.database.disk.incarnation:
            self.check.returned(incarnation, index)

    def reinstate(self, selector: Selector) -> None:
        """An admin lifts a block."""
        self._requests += 1
        request = revocations_pb2.ReinstateRequest(
            request_id=f"request-{self._requests:012}", selector=selector_message(selector), reason="a simulation"
        )

        def again(_: object) -> None:
            if not self.is_quiet:
                self.at(NS_PER_S, lambda: self.reinstate(selector))

        self.ask(
            lambda process: process.reinstated(request),
            lambda response: self.history.add("admin", "reinstated", response.index),
            again,
        )

    def storm(self) -> None:
        """Many single tokens are revoked at once, in one batch or one after the other."""
        if self.random.random() < 0.5:
            self._requests += 1
            tokens = [token.claims.jti for token in self.tokens[-4:]]
            batch = revocations_pb2.RevokeTokensRequest(
                request_id=f"request-{self._requests:012}",
                realm=self.random.choice(tuple(self.leases)),
                tokens=tokens + [f"batch-{self._requests}-{number}".ljust(22, "x") for number in range(20)],
                reason="a simulation",
                wait=True,
            )
            asked = _Asked(batch)
            self.asked.append(asked)
            self._ask_revoke(asked)
            return
        for number in range(self.random.choice((12, 12, 80))):
            selector = Selector.of(token=f"storm-{self._requests}-{number}".ljust(22, "x"))
            self.at(
                number * 9 * MS, lambda selector=selector: self.is_quiet or self.revoke(selector, is_waited_for=False)
            )

    # What goes wrong.

    def fault(self) -> None:
        """Something goes wrong, for a while."""
        random = self.random
        faults: list[tuple[int, Callable[[], object]]] = [
            (6, self._cut),
            (4, self._lag),
            (3, self._reset),
            (4, self._freeze_verifier),
            (3, self._freeze_broker),
            (4, self._kill_verifier),
            (3, self._kill_broker),
            (3, self._database_trouble),
            (1, self._signer_away),
            (1, self._full_disk),
            (1, self._wall_jump),
            (1, self.storm),
            (1, self._restore),
            (4, self._ambush),
            (4, self._newcomer),
        ]
        _, call = random.choices(faults, [weight for weight, _ in faults])[0]
        self._count(f"fault {call.__name__}")
        call()

    def _a_while(self) -> int:
        """Mostly about a lease."""
        return int(self.random.choice((0.05, 0.5, 2.0, 4.0, 8.0)) * (0.5 + self.random.random()) * NS_PER_S)

    def _cut(self) -> None:
        ways = self.random.choice(((UP,), (DOWN,), (UP, DOWN)))
        links = [
            self.network.link(place.name, broker.endpoint)
            for place in self.places
            for broker in self.brokers
            if self.random.random() < 0.6
        ]
        # What stands between them may tell the broker, and not the verifier.
        is_told = self.random.random() < 0.5
        for link in links:
            link.cut(*ways)
            if is_told:
                for connection in tuple(link.connections):
                    self.at(int(self.random.random() * NS_PER_S), connection.break_server)
        self.history.add("network", "cut", len(links), *ways)
        self.at(self._a_while(), lambda: [link.heal() for link in links])

    def _lag(self) -> None:
        link = self.network.link(self.random.choice(self.places).name, self.random.choice(self.brokers).endpoint)
        way, lag_ns = self.random.choice((UP, DOWN, DOWN)), self._a_while()
        link.lag_ns[way] = lag_ns
        self.history.add("network", "lags", way, lag_ns)

        def end() -> None:
            link.lag_ns[way] = 0

        self.at(self._a_while(), end)

    def _ambush(self) -> None:
        """What is rare by chance: somebody comes back, or is gone, while a revocation is on its way out."""
        random, database, place = self.random, self.database, self.random.choice(self.places)
        self.history.add(place.name, "ambushed")
        links = [self.network.link(place.name, broker.endpoint) for broker in self.brokers]
        if random.random() < 0.5:
            database.is_unreadable = True
        else:
            database.slow_ns = NS_PER_S // 2

        def end() -> None:
            database.is_unreadable, database.slow_ns = False, 0

        def cut() -> None:
            for link in links:
                link.cut(UP, DOWN)
            self.at(self._a_while(), lambda: [link.heal() for link in links])

        for broker in self.brokers:
            if broker.process is not None and random.random() < 0.5:
                broker.process.signer.rotate()
        for link in links if random.random() < 0.5 else self.network.links.values():
            link.reset()
        for _ in range(random.choice((1, 1, 3))):
            self.at(int(random.random() * NS_PER_S), lambda: self.is_quiet or self.revoke())
        self.at(int(random.uniform(0.2, 1.5) * NS_PER_S), end)
        if random.random() < 0.7:
            self.at(int(random.uniform(0.1, 1.6) * NS_PER_S), lambda: self.is_quiet or cut())

    def _newcomer(self) -> None:
        """Somebody who had no lease joins between a commit and its publication, and is cut off at once."""
        random, place = self.random, self.random.choice(self.places)
        process, database = place.process, self.database
        if process is None or process.node.is_dead or place.is_awaited:
            return
        self.history.add(place.name, "will be a newcomer")
        place.is_awaited = True
        links = [self.network.link(place.name, broker.endpoint) for broker in self.brokers]
        process.node.kill()
        self.network.process_died(process.node, silently=False)

        def come() -> None:
            place.is_awaited = False
            self.start_verifier(place)

        def begin() -> None:
            if self.is_quiet:
                return
            if random.random() < 0.5:
                # Or it joins on a snapshot that was made a moment before the commit.
                for broker in self.brokers:
                    if broker.process is not None:
                        broker.process.signer.rotate()
                for link in self.network.links.values():
                    link.reset()
                if place.folder is not None and random.random() < 0.5:
                    place.folder.data = None
                self.at(int(random.uniform(0.3, 1.0) * NS_PER_S), lambda: self.revoke(is_waited_for=True))
                self.at(int(random.uniform(1.0, 2.0) * NS_PER_S), come)
                return
            database.is_unreadable = True
            self.at(int(random.random() * 60 * MS), lambda: self.revoke(is_waited_for=True))
            self.at(int(random.random() * 150 * MS), come)
            self.at(int(random.uniform(0.25, 0.5) * NS_PER_S), cut)
            self.at(int(random.uniform(0.5, 0.9) * NS_PER_S), end)

        def cut() -> None:
            if not self.is_quiet:
                for link in links:
                    link.cut(UP, DOWN)
                self.at(6 * NS_PER_S, lambda: [link.heal() for link in links])

        def end() -> None:
            database.is_unreadable = False

        longest_s = max(lease_s for lease_s, _ in self.leases.values())
        self.at(int((longest_s + random.random()) * NS_PER_S), begin)

    def _reset(self) -> None:
        for link in self.network.links.values():
            if self.random.random() < 0.5:
                link.reset()
        self.history.add("network", "resets")

    def _freeze(self, node: Any, *, asleep: bool) -> None:
        if node.is_dead or node.is_frozen:
            return
        node.freeze(asleep=asleep)
        self.network.froze(node)
        self.history.add(node.name, "freezes")

        def thaw() -> None:
            if node.is_frozen:
                self.history.add(node.name, "thaws")
                node.thaw()

        self.at(self._a_while(), thaw)

    def _freeze_verifier(self) -> None:
        process = self.random.choice(self.places).process
        if process is not None:
            self._freeze(process.node, asleep=self.random.random() < 0.4)

    def _freeze_broker(self) -> None:
        process = self.random.choice(self.brokers).process
        if process is not None:
            self._freeze(process.node, asleep=self.random.random() < 0.2)

    def _kill_verifier(self) -> None:
        place = self.random.choice(self.places)
        process = place.process
        if process is None or process.node.is_dead:
            return
        how = self.random.choice(("crash", "crash", "reboot", "lost disk", "leave"))
        self.history.add(process.node.name, "ends", how)
        if how == "leave" and not process.node.is_frozen:
            process.node.call(process.leave)
            self.at(600 * MS, lambda: self._end_verifier(place, process, "crash"))
        else:
            self._end_verifier(place, process, how)

    def _end_verifier(self, place: Place, process: VerifierProcess, how: str) -> None:
        if process.node.is_dead:
            return
        process.node.kill()
        self.network.process_died(process.node, silently=how == "reboot")
        if how == "reboot":
            place.machine.reboot()
        if how == "lost disk" and place.folder is not None:
            place.folder.data = None
        self.at(self._a_while() // 4, lambda: self.start_verifier(place))

    def _kill_broker(self, broker: Broker | None = None) -> None:
        broker = broker or self.random.choice(self.brokers)
        process = broker.process
        if process is None or process.node.is_dead:
            return
        is_reboot = self.random.random() < 0.3
        self.history.add(process.node.name, "reboots" if is_reboot else "dies")
        process.node.kill()
        self.database.stores = [store for store in self.database.stores if store is not process.store]
        self.network.process_died(process.node, silently=is_reboot)
        broker.host.node = None
        broker.host.has_power = not is_reboot
        if is_reboot:
            broker.machine.reboot()
        if self.random.random() < 0.3:
            broker.machine.wall_ns += self.random.randint(-600, 600) * NS_PER_S
        self.at(self._a_while() // 3, lambda: self.start_broker(broker))

    def _database_trouble(self) -> None:
        database, kind = self.database, self.random.random()
        if kind < 0.35:
            database.is_down = True
        elif kind < 0.7:
            database.slow_ns = int(self.random.choice((0.05, 0.4, 1.5)) * NS_PER_S)
        else:
            database.failing = 0.4
        self.history.add("ledger", "trouble", int(kind * 100))

        def end() -> None:
            database.is_down, database.slow_ns, database.failing = False, 0, 0.0

        self.at(self._a_while(), end)

    def _signer_away(self) -> None:
        process = self.random.choice(self.brokers).process
        if process is not None:
            signer = process.signer
            signer.is_away = True
            self.history.add(process.node.name, "signer away")
            self.at(self._a_while(), lambda: setattr(signer, "is_away", False))

    def _full_disk(self) -> None:
        folder = self.random.choice(self.places).folder
        if folder is not None:
            folder.is_full = True
            self.at(self._a_while(), lambda: setattr(folder, "is_full", False))

    def _wall_jump(self) -> None:
        machine = self.random.choice(self.places).machine
        machine.wall_ns += self.random.randint(-7200, 7200) * NS_PER_S

    def _restore(self) -> None:
        """An older copy takes the database's place: announced, or by mistake until somebody sees it."""
        if self.has_restored or self.random.random() < 0.5:
            return
        self.has_restored = True
        backup, size = self.database.disk.backup(), len(self.database.disk.entries)
        is_announced = self.random.random() < 0.5
        self.at(self.random.choice((1, 3, 6)) * NS_PER_S, lambda: self._put_back(backup, size, announced=is_announced))

    def _put_back(self, backup: Disk, size: int, *, announced: bool) -> None:
        if self.is_quiet:
            return
        right = self.database.disk
        self.history.add("ledger", "restored", size, int(announced))
        for broker in self.brokers:
            self._kill_broker(broker)
        self.database.restore(backup)
        if announced:
            backup.incarnation = f"ledger-{self.seed}-2"
            self.check.begin_timeline(backup, backup.incarnation)
            for place in self.places:
                if self.random.random() < 0.7:
                    self.at(self._a_while() // 2, lambda place=place: self._reset_verifier(place))
            return
        self.check.stale_from = size
        self.database.is_held = True

        def repair() -> None:
            self.history.add("ledger", "repaired")
            for broker in self.brokers:
                self._kill_broker(broker)
            self.database.restore(right)
            self.database.is_held = False
            self.check.stale_from = None

        self._repair = repair
        self.at(self.random.randint(3, 12) * NS_PER_S, self._repair_once)

    _repair: Callable[[], None] | None = None

    def _repair_once(self) -> None:
        repair, self._repair = self._repair, None
        if repair is not None:
            repair()

    def _reset_verifier(self, place: Place) -> None:
        """An admin says that it may begin anew."""
        if place.process is not None and not place.process.node.is_dead:
            place.process.node.kill()
            self.network.process_died(place.process.node, silently=False)
        if place.folder is not None:
            place.folder.data = None
        self.start_verifier(place)

    # The end.

    def _heal_all(self) -> None:
        self._repair_once()
        self.database.is_down, self.database.slow_ns, self.database.failing = False, 0, 0.0
        self.database.is_unreadable = False
        for link in self.network.links.values():
            link.heal()
        for broker in self.brokers:
            if broker.process is not None and broker.process.node.is_frozen:
                broker.process.node.thaw()
            self.start_broker(broker)
            if broker.process is not None:
                broker.process.signer.is_away = False
        for place in self.places:
            if place.folder is not None:
                place.folder.is_full = False
            process = place.process
            if process is not None and process.node.is_frozen:
                process.node.thaw()
            follows = process.verifier._follower.mark.incarnation if process is not None else ""
            place.is_awaited = False
            if follows not in ("", self.database.disk.incarnation):
                self._reset_verifier(place)
            self.start_verifier(place)

    def _is_well(self) -> bool:
        head = len(self.database.disk.entries)
        for place in self.places:
            process = place.process
            if process is None or process.node.is_dead or process.verifier._is_closed:
                return False
            state = process.verifier._follower.state
            if state.accept_until_ns <= place.machine.boottime_ns() or state.head < head:
                return False
        return not any(one.entry is None for one in self.database.disk.completions.values())

    def _judge_end(self) -> None:
        awaited = [one.revocation for one in self.database.disk.completions.values() if one.entry is None]
        if awaited:
            self.check.violated("liveness", f"no completion of {awaited}")
        for place in self.places:
            if self._is_well() and place.process is not None:
                self._judge_verdicts(place, place.process)
        if not self._is_well():
            for place in self.places:
                process = place.process
                told = "is not there" if process is None else process.verifier.state()
                self.check.violated("liveness", f"{place.name}: {told}, ledger at {len(self.database.disk.entries)}")

    def _judge_verdicts(self, place: Place, process: VerifierProcess) -> None:
        """All is well: what is dead is refused as dead, and what lives is not."""
        for token in self.tokens[-12:]:
            if token.claims.realm != place.realm or token.incarnation != self.database.disk.incarnation:
                continue
            verdict, is_dead = process.decide(token.text, token.claims.models[0]), self.check.is_dead(token)
            # A broker whose wall clock was set back says that its predecessor's tokens are not yet valid.
            if verdict not in (("Revoked", "Untrusted", "NotYetValid") if is_dead else ("accepted", "NotYetValid")):
                self.check.violated("liveness", f"{place.name} says {verdict} of token {token.claims.idx}")


def _draft(kind: Kind) -> Draft:
    return lambda index: encode_entry(Entry(index, kind, EPOCH, ADMIN, {"index": index}))


class _Defects(logging.Handler):
    """What the code logs as an error is a defect."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        why = record.exc_info[1] if record.exc_info is not None else ""
        self.found.append(f"{record.getMessage()}: {why!r}")


def _worker() -> int:
    """Which of pytest's or of our own worker processes this is."""
    name = os.environ.get("PYTEST_XDIST_WORKER", "") or os.environ.get("SIMULATION_WORKER", "")
    return int(name.removeprefix("gw")) if name else os.getpid()


def run(seed: int) -> Result:
    """Run the scenario of a seed."""
    log, defects = logging.getLogger("broker"), _Defects()
    before = log.level, log.propagate
    log.addHandler(defects)
    log.setLevel(logging.ERROR)
    log.propagate = False
    if not gc.get_freeze_count():
        gc.collect()
        gc.freeze()
    gc.disable()
    cores = os.sched_getaffinity(0)
    # Its threads take turns, which costs a multiple of the time when each is on another core.
    os.sched_setaffinity(0, {sorted(cores)[_worker() % len(cores)]})
    try:
        result = Scenario(seed).run()
    finally:
        os.sched_setaffinity(0, cores)
        gc.enable()
        log.removeHandler(defects)
        log.level, log.propagate = before
        log.manager._clear_cache()
    result.violations += [f"defect: {found}" for found in defects.found]
    return result
