"""P1, P11: the n-th write or sync fails, and another in the recovery; a sync fails once; the disk is slow."""

import errno
import itertools
import json
import random
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest

from broker.adapters.sql import SqlLedger
from broker.errors import Failure, Revoked, StoreCorrupt, StoreUnavailable
from broker.sdk.failures import failure_of as failure_of_call
from broker.service.explain_ports import Denial
from broker.service.proof_ports import Sighting
from broker.service.tree_ports import CheckpointRecord
from broker.v1 import runs_pb2, tokens_pb2
from tests.failing_calls import ALL, Calls, FailingCalls
from tests.mounts import fail, failing_disk, new_image
from tests.postgresql import PostgreSql
from tests.served import Served, request_id
from tests.stores import Home, append, assert_whole, failure_of, key, revocation, write
from tests.waiting import eventually

ROOT = Path(__file__).parent.parent.parent
PAIRS = 25
NOW = datetime(2026, 6, 1, tzinfo=UTC)
DENIAL = Denial("acme", "request", "ops", NOW, "mint", "FORBIDDEN", "no", (), "", 1, True)
REQUESTS = [f"request-{number:02}" for number in range(12)]


@pytest.fixture
def calls() -> Iterator[FailingCalls]:
    # Not in pytest's folders: PostgreSQL's user may not go there.
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield FailingCalls(Path(folder))


@dataclass
class Life:
    """What one process said."""

    answered: dict[str, tuple[list[int], bool]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    ended: str = ""
    why: str = ""


class Writers:
    """Processes of tests.faulted_writer, one after another."""

    def __init__(self, calls: FailingCalls) -> None:
        self._parent = subprocess.Popen(
            [sys.executable, "-m", "tests.faulted_writer"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            text=True,
            env=calls.environment,
        )

    def live(self, url: str, requests: list[str]) -> Life:
        assert self._parent.stdin is not None
        assert self._parent.stdout is not None
        self._parent.stdin.write(json.dumps({"url": url, "requests": requests}) + "\n")
        self._parent.stdin.flush()
        life = Life()
        for line in self._parent.stdout:
            words: dict[str, Any] = json.loads(line)
            assert "failed" not in words, words["failed"]
            if "gone" in words:
                return life
            if "answered" in words:
                life.answered[words["answered"]] = (words["indices"], words["again"])
            elif "refused" in words:
                life.refused[words["refused"]] = words["why"]
            life.ended, life.why = words.get("ended", life.ended), words.get("why", life.why)
        raise AssertionError("the parent of the writers has ended")

    def end(self) -> None:
        assert self._parent.stdin is not None
        assert self._parent.stdout is not None
        self._parent.stdin.close()
        self._parent.stdout.close()
        self._parent.wait(10)


@pytest.fixture
def writers(calls: FailingCalls) -> Iterator[Writers]:
    writers = Writers(calls)
    yield writers
    writers.end()


# A sync that fails ends the store for whatever reason, also for want of space.
@pytest.mark.parametrize(("error", "kinds"), [(errno.EIO, ALL), (errno.ENOSPC, Calls.WRITES)])
def test_p1_p11_any_call_fails_and_any_other_in_the_recovery_and_nothing_acknowledged_is_lost(
    tmp_path: Path, calls: FailingCalls, writers: Writers, error: int, kinds: Calls
) -> None:
    """The second failure while the first is handled, at each durable boundary of the store."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    new = tmp_path / "new"
    new.mkdir()
    assert writers.live(f"sqlite:///{new / 'ledger.db'}", ["first"]).ended == "closed"

    def home_of(number: int) -> Home:
        folder = tmp_path / f"pair-{number}"
        shutil.copytree(new, folder)
        return Home("sqlite", f"sqlite:///{folder / 'ledger.db'}")

    calls.count(kinds, of="/ledger.db")
    assert writers.live(home_of(0).url, REQUESTS).ended == "closed"
    enough = calls.seen
    assert enough > 2 * len(REQUESTS)
    for number in range(1, PAIRS + 1):
        home = home_of(number)
        acknowledged: dict[str, list[int]] = {}
        for nth in (number * enough // PAIRS, chance.randrange(1, enough // 2)):
            calls.fail(kinds, nth=nth, of="/ledger.db", error=error)
            life = writers.live(home.url, REQUESTS)
            acknowledged.update({request: indices for request, (indices, _) in life.answered.items()})
            # A full disk ends nobody.
            assert error == errno.EIO or life.ended != "broken", life
        calls.stop()
        life = writers.live(home.url, REQUESTS)
        assert life.ended == "closed", life
        for request, indices in acknowledged.items():
            assert life.answered[request] == (indices, True), (number, request)
        assert life.answered.keys() == set(REQUESTS)
        assert_whole(home)


@pytest.mark.parametrize("of", ["ledger.db-wal", "ledger.db"])
def test_p11_a_sync_that_fails_once_ends_the_broker_and_is_not_tried_again(
    tmp_path: Path, calls: FailingCalls, of: str
) -> None:
    """On Linux the next fsync succeeds though the pages are gone: whoever tries again believes in what is not there."""
    with Served(tmp_path, environment=calls.environment) as broker:
        before = [broker.mint().index for _ in range(3)]
        # The whole name: the log's name begins with the store's.
        calls.fail(Calls.SYNCS, nth=1, of=f"{tmp_path}/data/{of}" if of.endswith("wal") else "/ledger.db\n")
        batch = [broker.spec()] * 500
        with pytest.raises(grpc.RpcError):
            for _ in range(40):
                broker.tokens().MintBatch(tokens_pb2.MintBatchRequest(request_id=request_id(), specs=batch), timeout=20)
        assert calls.has_failed
        assert broker.process is not None
        assert broker.process.wait(10) == 70
        assert '"the store failed"' in broker.log.read_text()
        calls.stop()
        broker.start()
        assert broker.mint().index > max(before)
    assert_whole(Home("sqlite", f"sqlite:///{tmp_path / 'data' / 'ledger.db'}"))


def test_p11_a_sync_that_fails_under_postgresql_loses_and_doubles_nothing(calls: FailingCalls) -> None:
    """It stops and recovers from its log by itself; the broker has to bear that, and acknowledge nothing meanwhile."""
    server = PostgreSql(environment=calls.environment).start()
    try:
        home = Home("postgresql", server.url(server.new_database()))
        store = home.open()
        acknowledged = {}
        for number in range(4):
            calls.fail(Calls.SYNCS, nth=1, of="/pg_wal/")
            failure = failure_of(store.append(write(request=key(request_id=f"{number}"))))
            assert calls.has_failed
            assert isinstance(failure, StoreUnavailable)
            calls.stop()
            eventually(lambda: failure_of(store.append(write())) is None, "it goes on by itself", within_s=60)
            acknowledged[f"{number}"] = append(store, request=key(request_id=f"{number}")).indices
        assert "PANIC:  could not fdatasync file" in server.log.read_text()
        for request, indices in acknowledged.items():
            assert append(store, request=key(request_id=request)).indices == indices
        home.close()
        assert_whole(home)
    finally:
        server.remove()


def _mints(broker: Served) -> Callable[[], object]:
    stub, specs = broker.tokens(), [broker.spec()] * 500
    return lambda: stub.MintBatch(tokens_pb2.MintBatchRequest(request_id=request_id(), specs=specs), timeout=60)


def _opens_runs(broker: Served) -> Callable[[], object]:
    stub = broker.runs()
    run = {"realm": "evaluation", "partner": "acme", "user": "alice", "models": ["mythos"]}
    return lambda: stub.OpenRun(runs_pb2.OpenRunRequest(request_id=request_id(), **run), timeout=60)


# Mints wait without a thread, everything else of the doors with one.
FLOODS = {"mints": (_mints, 12), "runs that open": (_opens_runs, 60)}


@pytest.mark.parametrize("kind", FLOODS)
def test_p5_on_a_slow_disk_under_a_flood_a_revocation_waits_for_two_groups_and_nobody_goes_stale(
    tmp_path: Path, calls: FailingCalls, kind: str
) -> None:
    stop, done = threading.Event(), itertools.count()
    refused: list[Failure] = []
    begin, clients = FLOODS[kind]

    def flood(ask: Callable[[], object]) -> None:
        while not stop.is_set():
            try:
                ask()
                next(done)
            except grpc.RpcError as refusal:
                refused.append(failure_of_call(refusal))
                stop.wait(0.1)

    with Served(tmp_path, environment=calls.environment) as broker, broker.verifier() as verifier:
        others = broker.mint("globex", partner="globex", user="bob").token
        broker.until_accepted(verifier, others)
        broker.revoke(user="nobody")
        calls.slow_down(Calls.SYNCS, of="/ledger.db-wal\n", by_ms=250)
        ask = begin(broker)
        with ThreadPoolExecutor(clients) as pool:
            floods = [pool.submit(flood, ask) for _ in range(clients)]
            try:
                eventually(lambda: calls.seen > 8, "the flood is on", within_s=60)
                waited = []
                for number in range(5):
                    assert verifier.verify(others, "mythos")
                    before = calls.seen
                    broker.revoke(user=f"user-{number}")
                    waited.append(calls.seen - before)
                assert verifier.verify(others, "mythos")
                [*_, last] = broker.revoke(partner="globex", wait=True)
                assert last.complete.verifiers
                with pytest.raises(Revoked):
                    verifier.verify(others, "mythos")
            finally:
                stop.set()
                calls.stop()
            for one in floods:
                one.result(60)
        assert next(done) > 0
        # Counted in syncs, whatever the machine: the group that is being written, its own, and what else is written
        # beside the ledger.
        assert sorted(waited)[len(waited) // 2] <= 4, waited
        assert {(failure.reason, failure.retry_after_s is not None) for failure in refused} <= {("OVERLOADED", True)}


# What is written beside the ledger, each by a thread of its own.
BESIDE: dict[str, Callable[[SqlLedger], object]] = {
    "who listens": lambda store: store.roster.note([Sighting("gateway", "evaluation", "1", "here", 1, NOW, True)]),
    "a checkpoint": lambda store: store.checkpoints.keep(CheckpointRecord(1, "a note", NOW, is_settled=True)),
    "a checkpoint with its witnesses": lambda store: store.checkpoints.settle(1, []),
    "a denial": lambda store: store.explaining.note([DENIAL]),
    "what is pruned": lambda store: store.prune(NOW + timedelta(days=30)),
}


@pytest.mark.parametrize("what", BESIDE)
def test_p11_a_disk_that_fails_under_what_is_written_beside_the_ledger_ends_the_store_too(
    tmp_path: Path, what: str
) -> None:
    with failing_disk(tmp_path / "disk", new_image(tmp_path / "image")) as disk:
        told: list[Failure] = []
        home = Home("sqlite", f"sqlite:///{disk / 'ledger.db'}")
        store = home.open(on_fatal=told.append)
        append(store, 1, revocation(user="alice"), request=key())
        fail(disk)
        with pytest.raises(Failure):
            BESIDE[what](store)
        assert len(told) == 1
        assert isinstance(failure_of(store.append(write(urgent=True))), StoreUnavailable | StoreCorrupt)
        home.close()
