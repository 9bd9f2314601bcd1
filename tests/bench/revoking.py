"""Revoking: from the call to denied at every verifier, and to the completion, at 10, 100 and 1,000 verifiers."""

import json
import secrets
import subprocess
import sys
import time
from pathlib import Path

from tests.bench.measuring import Row, percentile
from tests.served import Served

ROUNDS = 10


def run(folder: Path) -> list[Row]:
    """Measure with a swarm of verifiers in a process of its own."""
    rows: list[Row] = []
    with Served(folder / "served") as broker:
        papers, trust = broker.papers["gateway"], broker.trust()
        for count in (10, 100, 1000):
            arguments = {
                "count": str(count),
                "trust": str(trust),
                "cert": str(papers.certificate),
                "key": str(papers.key),
                "ca": str(papers.ca),
                "endpoint": broker.endpoint,
            }
            with subprocess.Popen(
                [sys.executable, "-m", "tests.bench.swarm", json.dumps(arguments)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            ) as swarm:
                try:
                    rows += _measure(broker, swarm, count)
                finally:
                    swarm.kill()
    return rows


def _measure(broker: Served, swarm: "subprocess.Popen[str]", count: int) -> list[Row]:
    assert swarm.stdout is not None
    while "fresh" not in json.loads(swarm.stdout.readline()):
        pass
    # Not counted: it may wait for the leases of the swarm before, which was killed.
    broker.revoke(wait=True, token=secrets.token_urlsafe(16))
    while "times" not in json.loads(swarm.stdout.readline()):
        pass
    everywhere: list[float] = []
    each: list[float] = []
    complete: list[float] = []
    for _ in range(ROUNDS):
        time.sleep(0.3)
        started = time.monotonic()
        broker.revoke(wait=True, token=secrets.token_urlsafe(16))
        complete.append((time.monotonic() - started) * 1000)
        while "times" not in (line := json.loads(swarm.stdout.readline())):
            pass
        each += [(at - started) * 1000 for at in line["times"]]
        everywhere.append((max(line["times"]) - started) * 1000)
    each.sort()
    name = f"revoke, {count} verifiers"
    return [
        Row(name, "denied, p99 of verifiers", percentile(each, 99), "ms", more={"p50": percentile(each, 50)}),
        Row(name, "denied everywhere, slowest round", max(everywhere), "ms"),
        Row(name, "complete, slowest round", max(complete), "ms", more={"p50": percentile(sorted(complete), 50)}),
    ]
