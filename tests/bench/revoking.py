"""Revoking: from the call to denied at every verifier, and to the completion, at 10, 100 and 1,000 verifiers."""

import time
from pathlib import Path

from tests.bench.feeding import JOIN_S, ROUND_S, Swarm, revoke
from tests.bench.measuring import Row, percentile
from tests.served import Served

ROUNDS = 10


def run(folder: Path) -> list[Row]:
    """Measure with a swarm of verifiers in a process of its own."""
    rows: list[Row] = []
    with Served(folder / "served") as broker:
        for count in (10, 100, 1000):
            swarm = Swarm(broker, count, [broker.papers["gateway"]], "sdk")
            try:
                rows += _measure(broker, swarm, count)
            finally:
                swarm.end()
    return rows


def _measure(broker: Served, swarm: Swarm, count: int) -> list[Row]:
    swarm.next("fresh", JOIN_S)
    # Not counted: it may wait for the leases of the swarm before, which was killed.
    revoke(broker)
    swarm.next("times", JOIN_S)
    everywhere: list[float] = []
    each: list[float] = []
    complete: list[float] = []
    for _ in range(ROUNDS):
        time.sleep(0.3)
        called, _, completed = revoke(broker)
        complete.append((completed - called) * 1000)
        times = swarm.next("times", ROUND_S)["times"]
        each += [(at - called) * 1000 for at in times]
        everywhere.append((max(times) - called) * 1000)
    each.sort()
    name = f"revoke, {count} verifiers"
    return [
        Row(name, "denied, p99 of verifiers", percentile(each, 99), "ms", more={"p50": percentile(each, 50)}),
        Row(name, "denied everywhere, slowest round", max(everywhere), "ms"),
        Row(name, "complete, slowest round", max(complete), "ms", more={"p50": percentile(sorted(complete), 50)}),
    ]
