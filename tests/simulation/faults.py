"""What goes wrong in a run."""

from collections.abc import Callable
from typing import Any

from tests.fakes import Disk
from tests.simulation.network import DOWN, UP
from tests.simulation.nodes import NS_PER_S
from tests.simulation.people import People
from tests.simulation.processes import VerifierProcess
from tests.simulation.world import MS, Broker, Place


class Faults(People):
    """The list of what can happen, and how it ends."""

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
                self.at(int(random.uniform(1.0, 2.0) * NS_PER_S), lambda: self.come_late(place))
                return
            database.is_unreadable = True
            self.at(int(random.random() * 60 * MS), lambda: self.revoke(is_waited_for=True))
            self.at(int(random.random() * 150 * MS), lambda: self.come_late(place))
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
