"""One run from one seed: who is there, what they do, and what goes wrong."""

import functools
import gc
import logging
from dataclasses import dataclass

from tests.simulation.faults import Faults
from tests.simulation.history import History
from tests.simulation.nodes import NS_PER_S
from tests.simulation.outside import remembered_signatures
from tests.simulation.processes import VerifierProcess
from tests.simulation.world import Place

# Once nothing goes wrong any more, all must be well within this time.
LIVENESS_NS = 45 * NS_PER_S
# One seed in seven, so that there are enough of both kinds.
LATE = 6


@dataclass(slots=True)
class Result:
    """What came of a run."""

    seed: int
    violations: list[str]
    digest: str
    history: History
    counts: dict[str, int]


class Scenario(Faults):
    """A run. Nothing but the seed differs between two runs."""

    def run(self) -> Result:
        """Run all of it."""
        try:
            for broker in self.brokers:
                self.start_broker(broker)
            for place in self.places:
                self.at(int(self.random.random() * 2 * NS_PER_S), lambda place=place: self.start_verifier(place))
            if self.seed % 7 == LATE:
                # Others come only after something was revoked, and is complete.
                for place in self.places[1:]:
                    place.is_awaited = True
                    self.at(int(self.random.uniform(1.5, 4) * NS_PER_S), lambda place=place: self._come_late(place))
                self.at(int(self.random.uniform(0.8, 2) * NS_PER_S), lambda: self.revoke(is_waited_for=True))
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

    def _come_late(self, place: Place) -> None:
        self.come_late(place)
        if self.random.random() < 0.7:
            # No key, so no snapshot, for a moment; the echo is then answered first.
            for broker in self.brokers:
                if broker.process is not None:
                    signer = broker.process.signer
                    signer.is_away = True
                    self.at(
                        int(self.random.uniform(0.01, 0.3) * NS_PER_S), lambda s=signer: setattr(s, "is_away", False)
                    )

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


class _Defects(logging.Handler):
    """What the code logs as an error is a defect."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        why = record.exc_info[1] if record.exc_info is not None else ""
        self.found.append(f"{record.getMessage()}: {why!r}")


def _set_level(log: logging.Logger, level: int) -> None:
    # To set it anew costs a walk over all loggers.
    if log.level != level:
        log.setLevel(level)


@functools.cache
def _freeze_once() -> None:
    gc.collect()
    gc.freeze()


def run(seed: int) -> Result:
    """Run the scenario of a seed."""
    log, defects = logging.getLogger("broker"), _Defects()
    before = log.level, log.propagate
    log.addHandler(defects)
    _set_level(log, logging.ERROR)
    log.propagate = False
    _freeze_once()
    gc.disable()
    try:
        with remembered_signatures():
            result = Scenario(seed).run()
    finally:
        gc.enable()
        log.removeHandler(defects)
        _set_level(log, before[0])
        log.propagate = before[1]
    result.violations += [f"defect: {found}" for found in defects.found]
    return result
