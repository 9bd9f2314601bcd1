"""A mass revocation: a million single tokens in batches, overtaken by an urgent partner; what verifying costs then."""

import json
import secrets
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from broker.adapters.sql import open_store
from broker.token.revocation import Matcher, Revocation, Selector
from broker.v1 import revocations_pb2
from tests.bench.measuring import Row
from tests.moved_clock import MovedClock
from tests.served import Served, request_id

BATCH = 10_000
URGENT_EVERY = 10


class Verifying:
    """The process with one verifier."""

    def __init__(self, broker: Served) -> None:
        papers = broker.papers["gateway"]
        arguments = {
            "trust": str(broker.trust()),
            "cert": str(papers.certificate),
            "key": str(papers.key),
            "ca": str(papers.ca),
            "endpoint": broker.endpoint,
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.bench.one_verifier", json.dumps(arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, do: str, **more: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps({"do": do, **more}), file=self._process.stdin, flush=True)
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


@contextmanager
def verifying(broker: Served) -> Iterator[Verifying]:
    one = Verifying(broker)
    try:
        one.ask("fresh")
        yield one
    finally:
        one.end()


def run(folder: Path, *, tokens: int) -> list[Row]:
    """Measure the storm, and what is left behind by it."""
    bench = f"{tokens:,} single tokens revoked in batches of {BATCH:,}"
    rows: list[Row] = []
    folder.mkdir(parents=True)
    with Served(folder) as broker:
        token = broker.mint("globex", partner="globex", user="bob").token
        with verifying(broker) as verifier:
            wait(lambda: verifies(verifier, token))
            quiet = [urgent(broker) for _ in range(10)]
            before = measured(verifier, token)
            storm = Storm(broker, tokens // BATCH)
            during = storm.run()
            wait(lambda: verifier.ask("state")["revocations"] >= tokens)
            caught_up_s = time.monotonic() - storm.ended_at
            after = measured(verifier, token)
        rows += [
            Row(bench, "batches committed", tokens / storm.took_s, "tokens/s"),
            Row(bench, "verifier has applied all, after the last", caught_up_s, "s"),
            Row(
                bench,
                "urgent partner, complete, during the storm",
                statistics.median(during),
                "ms",
                "quiet",
                statistics.median(during) / statistics.median(quiet),
                {"max": max(during), "quiet p50": statistics.median(quiet)},
            ),
            Row(bench, "verify, seen before", after["seen"], "us", "empty list", after["seen"] / before["seen"]),
            Row(bench, "verify, first sight", after["first"], "us", "empty list", after["first"] / before["first"]),
            Row(
                bench,
                "memory of the verifier",
                after["kib"] / 1024,
                "MiB",
                "wanted",
                after["kib"] / 1024 / 238,
                {"before": before["kib"] / 1024},
            ),
        ]
        # A new verifier begins with a snapshot of all of it.
        began = time.monotonic()
        with verifying(broker) as verifier:
            snapshot_s = time.monotonic() - began
            kib = verifier.ask("state")["kib"]
        rows.append(
            Row(
                bench,
                "a new process is fresh, from its start",
                snapshot_s,
                "s",
                "wanted",
                snapshot_s / 5,
                {"MiB": kib / 1024},
            )
        )
    rows += pruning(bench, folder, tokens)
    return rows


def verifies(verifier: Verifying, token: str) -> bool:
    return verifier.ask("state")["head"] > 0 and bool(token)


def wait(condition: Any, timeout_s: float = 300) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.05)


def measured(verifier: Verifying, token: str) -> dict[str, float]:
    return {
        "seen": verifier.ask("seen", token=token)["us"],
        "first": verifier.ask("first", token=token)["us"],
        "kib": verifier.ask("state")["kib"],
    }


def urgent(broker: Served) -> float:
    """Revoke a partner and wait for the completion; return how long it took, in ms."""
    started = time.monotonic()
    broker.revoke(wait=True, partner="acme")
    took_ms = (time.monotonic() - started) * 1000
    broker.reinstate(partner="acme")
    return took_ms


class Storm:
    """Sends the batches, two at a time."""

    def __init__(self, broker: Served, batches: int) -> None:
        self._broker = broker
        self._left = batches
        self._lock = threading.Lock()
        self.took_s = 0.0
        self.ended_at = 0.0

    def run(self) -> list[float]:
        """Send all; return how long each urgent revocation took meanwhile, in ms."""
        began = time.monotonic()
        threads = [threading.Thread(target=self._send) for _ in range(2)]
        for thread in threads:
            thread.start()
        took = []
        while any(thread.is_alive() for thread in threads):
            took.append(urgent(self._broker))
            time.sleep(0.2)
        self.ended_at = time.monotonic()
        self.took_s = self.ended_at - began
        return took

    def _send(self) -> None:
        stub = self._broker.revocations()
        while True:
            with self._lock:
                if self._left == 0:
                    return
                self._left -= 1
            ids = [secrets.token_urlsafe(16) for _ in range(BATCH)]
            request = revocations_pb2.RevokeTokensRequest(
                request_id=request_id(), realm="evaluation", tokens=ids, reason="a storm"
            )
            list(stub.RevokeTokens(request, timeout=120))


def pruning(bench: str, folder: Path, tokens: int) -> list[Row]:
    """Measure how long forgetting takes when no token that was revoked can live any more."""
    clock = MovedClock()
    store = open_store(f"sqlite:///{folder / 'data' / 'ledger.db'}", clock)
    try:
        held = len(store.changes(0, now=clock.now()).revocations)
        began = time.monotonic()
        store.prune(clock.now() + timedelta(days=8))
        store_s = time.monotonic() - began
        left = len(store.changes(0, now=clock.now()).revocations)
    finally:
        store.close()
    matcher = Matcher()
    for index in range(tokens):
        matcher.add(Revocation(index, Selector.of(realm="evaluation", token=f"{index:022d}")), 10**9)
    began = time.monotonic()
    dropped = matcher.prune(10**12)
    return [
        Row(bench, "pruned in the store", store_s, "s", more={"before": held, "after": left}),
        Row(
            bench,
            "pruned in a verifier",
            time.monotonic() - began,
            "s",
            more={"dropped": dropped, "left": len(matcher)},
        ),
    ]
