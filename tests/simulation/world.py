"""Who is there in a run, how processes start, and what is heard of them."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from random import Random
from typing import Any

from broker.errors import Failure
from broker.ledger.entry import Entry, Kind, encode_entry
from broker.sdk.following import Step
from broker.service.ports import CertificateAdded, Draft, PolicyReplaced, Write
from broker.token.keys import Purpose
from broker.v1 import feed_pb2
from tests.fakes import Disk
from tests.simulation.history import History
from tests.simulation.loop import SimLoop
from tests.simulation.network import Connection, Host, Network
from tests.simulation.nodes import NS_PER_S, Machine
from tests.simulation.outside import (
    ADMIN,
    EPOCH,
    MOST_VERIFIERS,
    REALMS,
    Database,
    SimRemembered,
    StateFolder,
    keys_of,
    policy_document,
)
from tests.simulation.processes import BrokerProcess, VerifierProcess
from tests.simulation.validators import Lineage, Token, Validators

MS = 1_000_000
LEASES = ((3, 1), (4, 1), (5, 1), (5, 2))


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


class World:
    """A run's machines, processes and network. Everything random comes from the seed."""

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
        if self.check.stale_from is not None:
            self.check.misleading[boot] = self.check.stale_from
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

    def come_late(self, place: Place) -> None:
        """Start a process that was held back."""
        place.is_awaited = False
        self.start_verifier(place)

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

    def at(self, after_ns: int, call: Callable[[], object]) -> None:
        """Do something in the world, later."""
        self.loop.schedule(self.loop.world, self.loop.now_ns + after_ns, call)

    def _repeat(self, mean_s: float, call: Callable[[], object]) -> None:
        def again() -> None:
            if not self.is_quiet:
                call()
                self.at(int(self.random.expovariate(1 / mean_s) * NS_PER_S) + MS, again)

        self.at(int(self.random.random() * 2 * NS_PER_S), again)

    def _reset_verifier(self, place: Place) -> None:
        """An admin says that it may begin anew."""
        if place.process is not None and not place.process.node.is_dead:
            place.process.node.kill()
            self.network.process_died(place.process.node, silently=False)
        if place.folder is not None:
            place.folder.data = None
        self.start_verifier(place)


def _draft(kind: Kind) -> Draft:
    return lambda index: encode_entry(Entry(index, kind, EPOCH, ADMIN, {"index": index}))
