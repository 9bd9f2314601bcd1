"""The feed at scale: denied everywhere, complete, at rest, memory for each stream, all back after kill -9."""

import json
import os
import queue
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import grpc

from broker.v1 import revocations_pb2, selector_pb2
from tests.authority import Issued
from tests.bench.measuring import Row, percentile
from tests.served import POLICY, Served, request_id

LEASE_S, HEARTBEAT_S = 5, 1
QUIET_S = 5.0
REST_S = 0.5
# A swarm that is not there by then never will be: the machine is too small for it.
JOIN_S = 120.0
ROUND_S = 30.0
PAGE = os.sysconf("SC_PAGE_SIZE")
TICKS = os.sysconf("SC_CLK_TCK")
# Asked for in design.md, by number of verifiers: revoke to denied p99, and complete; ms.
WANTED = {1000: (100.0, 250.0), 10_000: (750.0, 1500.0)}
WANTED_KIB, WANTED_BACK_S = 95.0, 15.0


@dataclass
class Scale:
    """What was measured with so many verifiers. Latencies in ms, from the call; one for each round but `latencies`."""

    verifiers: int
    players: str
    names: int
    lease_s: float
    heartbeat_s: float
    latencies: list[float] = field(default_factory=list)
    """From the call to each verifier's denial, all rounds, sorted."""
    committed: list[float] = field(default_factory=list)
    everywhere: list[float] = field(default_factory=list)
    complete: list[float] = field(default_factory=list)
    joined_s: float = 0.0
    ready_s: float = 0.0
    back_s: float = 0.0
    kib_per_stream: float = 0.0
    busy_at_rest: float = 0.0
    players_busy_at_rest: float = 0.0
    busy_ms_per_revoke: float = 0.0
    broken: dict[str, int] = field(default_factory=dict)
    """Streams that ended before the kill, by what ended them: none should."""
    failure: str = ""
    """Why it was not measured to the end; empty when it was."""


class Unborne(Exception):
    """The machine does not bear so many."""


class Swarm:
    """A process that plays verifiers: `light` at the feed's own door, `light at gRPC` at the door of gRPC, and `sdk`
    there with gRPC's own client."""

    def __init__(
        self, broker: Served, count: int, papers: Sequence[Issued], players: str = "light", join_per_s: float = 400
    ) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.bench.swarm" if players == "sdk" else "tests.bench.light"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if players == "sdk" else None,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        # Read as it comes: what ten thousand tell of one revocation fills a pipe, and whoever cannot write stands still.
        self._said: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        threading.Thread(target=self._hear, args=(self._process.stdout,), daemon=True).start()
        arguments = {
            "count": count,
            "trust": str(broker.trust()),
            "papers": [(str(one.certificate), str(one.key)) for one in papers],
            "ca": str(papers[0].ca),
            "endpoint": broker.feed_endpoint if players == "light" else broker.endpoint,
            "join_per_s": join_per_s,
        }
        self._process.stdin.write(json.dumps(arguments).encode() + b"\n")
        self._process.stdin.flush()

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    def next(self, what: str, timeout_s: float) -> dict[str, Any]:
        """Return the next line that tells of `what`. Raises Unborne when it does not come in time."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                found = self._said.get(timeout=max(0.0, min(0.2, deadline - time.monotonic())))
            except queue.Empty:
                if self._process.poll() is not None:
                    raise Unborne("the swarm ended") from None
                if time.monotonic() > deadline:
                    raise Unborne(f"the verifiers were not all {what} within {timeout_s:g} s") from None
                continue
            if what in found:
                return found

    def _hear(self, said: IO[bytes]) -> None:
        with suppress(ValueError):  # closed, or cut off in the middle
            for line in said:
                self._said.put(json.loads(line))

    def end(self) -> None:
        """End it without a word."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


class Crowd:
    """Verifiers in two processes, so that no core is idle while they, who would have one each, wait for each other."""

    PROCESSES = 2

    def __init__(self, broker: Served, count: int, papers: Sequence[Issued], players: str = "light") -> None:
        shares = [
            (count * (n + 1) // self.PROCESSES - count * n // self.PROCESSES, papers[n :: self.PROCESSES] or papers)
            for n in range(self.PROCESSES)
        ]
        self._swarms = [Swarm(broker, *share, players, 400 / self.PROCESSES) for share in shares if share[0]]

    def next(self, what: str, timeout_s: float) -> dict[str, Any]:
        """Return what all tell next of `what`, together. Raises Unborne when it does not come in time."""
        deadline = time.monotonic() + timeout_s
        found = [swarm.next(what, deadline - time.monotonic()) for swarm in self._swarms]
        ended: dict[str, int] = {}
        for one in found:
            for why, count in one.get("ended", {}).items():
                ended[why] = ended.get(why, 0) + count
        return {
            "at": max(one.get("at", 0.0) for one in found),
            "ended": ended,
            "times": [at for one in found for at in one.get("times", ())],
        }

    def cpu_s(self) -> float:
        """Return the CPU time that they have used."""
        return sum(cpu_s(swarm.pid) for swarm in self._swarms)

    def end(self) -> None:
        """End them without a word."""
        for swarm in self._swarms:
            swarm.end()


def rss_kib(pid: int | str) -> float:
    """Return the resident memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE / 1024


def peak_kib(pid: int | str) -> float:
    """Return the most resident memory that a process ever had; getrusage would tell of its parent's, too."""
    status = Path(f"/proc/{pid}/status").read_text()
    return float(status.partition("VmHWM:")[2].split()[0])


def cpu_s(pid: int) -> float:
    """Return the CPU time that a process has used, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


@contextmanager
def served(folder: Path, names: int, heartbeat_s: float) -> Iterator[tuple[Served, Sequence[Issued]]]:
    """Serve a broker whose policy knows so many verifiers; also return their papers."""
    lease_s = LEASE_S * heartbeat_s / HEARTBEAT_S
    policy = POLICY.replace("lease: 3s, heartbeat: 1s", f"lease: {lease_s:g}s, heartbeat: {heartbeat_s:g}s")
    uris = [f"spiffe://lab.example/gateway-{number:05d}" for number in range(names)]
    policy += "".join(f'  - {{id: "{uri}", role: verifier, realm: evaluation}}\n' for uri in uris)
    folder.mkdir(parents=True)
    with Served(folder, policy=policy, with_feed_door=True) as broker:
        yield broker, [broker.authority.client(uri) for uri in uris]


def measure(
    folder: Path,
    verifiers: int,
    *,
    rounds: int,
    with_kill: bool,
    players: str = "light",
    heartbeat_s: float = 1.0,
    names: int = 10_000,
) -> Scale:
    """Measure one number of verifiers, with a broker of its own. Never fails: `failure` says how far it came.

    Beyond so many `names`, several share a name and its certificate, as replicas do.
    """
    names = min(verifiers, names)
    scale = Scale(verifiers, players, names, LEASE_S * heartbeat_s / HEARTBEAT_S, heartbeat_s)
    try:
        with served(folder, names, heartbeat_s) as (broker, papers):
            _measure(scale, broker, papers, rounds=rounds, with_kill=with_kill)
    except (Unborne, grpc.RpcError, AssertionError, OSError, subprocess.SubprocessError) as failed:
        scale.failure = f"{type(failed).__name__}: {str(failed)[:200]}"
    scale.latencies.sort()
    return scale


def _measure(scale: Scale, broker: Served, papers: Sequence[Issued], *, rounds: int, with_kill: bool) -> None:
    assert broker.process is not None
    # What a first revocation loads is not counted as a stream's.
    revoke(broker)
    before_kib = rss_kib(broker.process.pid)
    began = time.monotonic()
    swarm = Crowd(broker, scale.verifiers, papers, scale.players)
    try:
        scale.broken = swarm.next("fresh", JOIN_S).get("ended", {})
        scale.joined_s = time.monotonic() - began
        # Streams that broke while joining are waited for, rightly, by whatever is revoked within a lease.
        time.sleep(scale.lease_s if scale.broken else 1)
        _rest(scale, broker.process.pid, swarm)
        scale.kib_per_stream = (rss_kib(broker.process.pid) - before_kib) / scale.verifiers
        _revoke_rounds(scale, broker, swarm, rounds)
        if with_kill:
            _kill(scale, broker, swarm)
    finally:
        swarm.end()


def revoke(broker: Served, **selector: str) -> tuple[float, float, float]:
    """Revoke a token, or what is given, and wait; return when it was called, committed and complete."""
    request = revocations_pb2.RevokeRequest(
        request_id=request_id(),
        selector=selector_pb2.Selector(**selector or {"token": secrets.token_urlsafe(16)}),
        reason="a measurement",
        wait=True,
    )
    stub = broker.revocations()
    # Connected before the clock runs.
    stub.ListRevocations(revocations_pb2.ListRevocationsRequest(limit=1), timeout=10)
    called = time.monotonic()
    committed = complete = 0.0
    for event in stub.Revoke(request, timeout=60):
        if event.WhichOneof("event") == "committed":
            committed = time.monotonic()
        elif event.WhichOneof("event") == "complete":
            complete = time.monotonic()
    return called, committed, complete


def _rest(scale: Scale, broker: int, players: Crowd) -> None:
    used, began = (cpu_s(broker), players.cpu_s()), time.monotonic()
    time.sleep(QUIET_S)
    took_s = time.monotonic() - began
    scale.busy_at_rest = (cpu_s(broker) - used[0]) / took_s
    scale.players_busy_at_rest = (players.cpu_s() - used[1]) / took_s


def _revoke_rounds(scale: Scale, broker: Served, swarm: Crowd, rounds: int) -> None:
    assert broker.process is not None
    used_s, began = cpu_s(broker.process.pid), time.monotonic()
    for _ in range(rounds):
        time.sleep(REST_S)
        called, committed, complete = revoke(broker)
        scale.committed.append((committed - called) * 1000)
        scale.complete.append((complete - called) * 1000)
        times = swarm.next("times", ROUND_S)["times"]
        scale.latencies += [(at - called) * 1000 for at in times]
        scale.everywhere.append((max(times) - called) * 1000)
    # What it would have used anyway belongs to the heartbeats.
    used_s = cpu_s(broker.process.pid) - used_s - scale.busy_at_rest * (time.monotonic() - began)
    scale.busy_ms_per_revoke = max(0.0, used_s) / rounds * 1000


def _kill(scale: Scale, broker: Served, swarm: Crowd) -> None:
    began = time.monotonic()
    broker.kill()
    broker.start()
    scale.ready_s = time.monotonic() - began
    scale.back_s = swarm.next("fresh", JOIN_S)["at"] - began


def rows_of(scale: Scale) -> list[Row]:
    """Return the table's rows."""
    denied, completed = WANTED.get(scale.verifiers, (None, None))
    bench = (
        f"{scale.verifiers:,} verifiers ({scale.players}, {scale.names:,} names, mutual TLS, lease {scale.lease_s:g} s,"
        f" heartbeat {scale.heartbeat_s:g} s){' - STOPPED: ' + scale.failure if scale.failure else ''}"
    )
    rows = [Row(bench, "all joined, from the start of the swarm", scale.joined_s, "s")]
    if scale.kib_per_stream:
        rows += [
            Row(bench, "memory of the broker per stream", scale.kib_per_stream, "KiB", wanted=WANTED_KIB),
            Row(
                bench,
                "CPU of the broker at rest",
                scale.busy_at_rest * 100,
                "% of one",
                more={
                    "us per heartbeat": scale.busy_at_rest * scale.heartbeat_s / scale.verifiers * 1e6,
                    "% if each second": scale.busy_at_rest * scale.heartbeat_s * 100,
                    "players %": scale.players_busy_at_rest * 100,
                },
            ),
        ]
    if scale.complete:
        each = scale.latencies
        rows += [
            Row(bench, "revoke to committed, median round", percentile(sorted(scale.committed), 50), "ms"),
            Row(
                bench,
                "revoke to denied, p99 of verifiers",
                percentile(each, 99),
                "ms",
                more={"p50": percentile(each, 50), "max": each[-1]},
                wanted=denied,
            ),
            Row(
                bench,
                "revoke to denied everywhere, median round",
                percentile(sorted(scale.everywhere), 50),
                "ms",
                more={"best": min(scale.everywhere), "worst": max(scale.everywhere)},
            ),
            Row(
                bench,
                "revoke to complete, slowest round",
                max(scale.complete),
                "ms",
                more={"p50": percentile(sorted(scale.complete), 50), "best": min(scale.complete)},
                wanted=completed,
            ),
            Row(
                bench,
                "CPU of the broker for a revoke",
                scale.busy_ms_per_revoke,
                "ms",
                more={"us per verifier": scale.busy_ms_per_revoke / scale.verifiers * 1000},
            ),
        ]
    if scale.back_s:
        rows.append(
            Row(
                bench,
                "all fresh after kill -9, from the kill",
                scale.back_s,
                "s",
                more={"broker ready": scale.ready_s},
                wanted=WANTED_BACK_S,
            )
        )
    if scale.broken:
        rows.append(Row(bench, "streams that broke while joining", sum(scale.broken.values()), ""))
    return rows
