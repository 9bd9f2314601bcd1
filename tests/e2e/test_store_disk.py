"""P11: a disk that is full, read-only, failing or damaged; a file that another broker has."""

import hashlib
import itertools
import os
import random
import secrets
import sqlite3
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from broker.adapters.sql import SqlLedger
from broker.errors import Revoked, StoreCorrupt, StoreFull, StoreUnavailable
from broker.sdk.failures import failure_of as failure_of_call
from broker.service.ports import Write
from broker.service.proof_ports import Completed, CompletionAwaited, CompletionIsDue
from broker.v1 import tokens_pb2
from tests.mounts import fail, failing_disk, fill, make_read_only, new_image, repair, small_disk
from tests.served import BROKER, Served, request_id
from tests.stores import Home, append, assert_whole, draft, everything, failure_of, key, revocation, write
from tests.waiting import eventually

pytest_plugins = ["tests.fixtures_stores"]

HEADROOM = 2 << 20
POWER_CUTS = 40
Damage = Callable[[Path], None]


def home_on(folder: Path) -> Home:
    return Home("sqlite", f"sqlite:///{folder / 'ledger.db'}")


def free_bytes(disk: Path) -> int:
    found = os.statvfs(disk)
    return found.f_bavail * found.f_frsize


def append_until_full(store: SqlLedger, *, at_most: int = 1000) -> int:
    """Append entries by the hundred until the store is full; return how many were acknowledged."""
    for count in range(at_most):
        failure = failure_of(store.append(Write([draft({"x": "y" * 500})] * 100, request=key())))
        if failure is not None:
            assert isinstance(failure, StoreFull)
            return 100 * count
    raise AssertionError("the disk did not get full")


def test_minting_stops_before_the_disk_is_full_and_revoking_goes_on(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", mib=8) as disk:
        home = home_on(disk)
        store = home.open(headroom_bytes=HEADROOM)
        count = append_until_full(store)
        assert store.head().size == 1 + count
        # Less the last group, with its copy in the log.
        assert free_bytes(disk) > HEADROOM - (200 << 10)
        before = everything(store)
        revoked = [append(store, 1, revocation(user=f"u{number}"), urgent=True) for number in range(100)]
        assert [appended.indices.start for appended in revoked] == list(range(1 + count, 101 + count))
        assert everything(store)[: len(before)] == before
        assert len(store.revocations(-1, 1000)) == 100
        # So is what proves them, for as many verifiers as it may tell of.
        waits = append(store, 1, revocation(partner="acme"), CompletionAwaited(("evaluation",), 5000), urgent=True)
        due = CompletionIsDue(waits.indices.start)
        document = random.Random(7).randbytes(100 << 10)
        append(store, 1, Completed(due.revocation, document), guards=(due,), urgent=True)
        completion = store.proofs.completion(due.revocation)
        assert completion is not None
        assert completion.document == document
        home.close()
        # A start fits as well.
        assert home.open(headroom_bytes=HEADROOM).head().size == 103 + count
        home.close()
        assert_whole(home)


def test_on_a_disk_without_a_byte_left_revocations_use_the_reserve(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", mib=16) as disk:
        home = home_on(disk)
        store = home.open(headroom_bytes=HEADROOM)
        append(store, 10)
        ballast = fill(disk)
        # Somebody else filled the disk within the moment that the last look at it is good for, or not.
        assert isinstance(failure_of(store.append(write(200, request=key(request_id="mint")))), StoreFull)
        before = everything(store)
        assert append(store, 1, revocation(partner="acme", blocks=True), urgent=True).indices.start == len(before)
        assert [*store.policy().blocks]
        # The reserve ends too, at some time: then a revocation is refused as clearly, and not half done.
        refused = 0
        for number in range(400):
            refused += isinstance(
                failure_of(store.append(write(1, revocation(user=f"u{number}"), urgent=True))), StoreFull
            )
        assert 0 < refused < 400
        assert len(store.revocations(-1, 1000)) == 401 - refused
        assert store.head().size == len(everything(store)) == len(before) + 401 - refused
        ballast.unlink()
        eventually(lambda: failure_of(store.append(write())) is None, "minting goes on when there is space again")
        assert append(store, request=key(request_id="mint")).is_repeat is False
        home.close()
        assert_whole(home)


def test_a_served_broker_on_a_full_disk_says_so_verifies_revokes_and_recovers(tmp_path: Path) -> None:
    with small_disk(tmp_path / "data", mib=16) as disk, Served(tmp_path, store="headroom_mib = 2") as broker:
        token = broker.mint().token
        verifier = broker.verifier()
        ballast = fill(disk, leave_bytes=3 << 20)
        batch = [broker.spec()] * 500
        with pytest.raises(grpc.RpcError) as refused:
            for _ in range(50):
                broker.tokens().MintBatch(tokens_pb2.MintBatchRequest(request_id=request_id(), specs=batch), timeout=20)
        failure = failure_of_call(refused.value)
        assert failure.reason == "STORE_FULL"
        assert "free space" in failure.hint
        with pytest.raises(grpc.RpcError):
            broker.mint()
        assert verifier.verify(token, "mythos")
        [*_, last] = broker.revoke(partner="acme", wait=True)
        assert last.complete.verifiers
        with pytest.raises(Revoked):
            verifier.verify(token, "mythos")
        ballast.unlink()
        eventually(lambda: _mints(broker), "minting goes on when there is space again")
        verifier.close()


def _mints(broker: Served) -> bool:
    try:
        broker.reinstate(partner="acme")
        return bool(broker.mint().token)
    except grpc.RpcError:
        return False


def test_a_store_on_a_read_only_disk_is_not_opened(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", mib=8) as disk:
        home = home_on(disk)
        append(home.open())
        home.close()
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        with pytest.raises(
            StoreUnavailable, match="Read-only file system; check the data folder's owner, mode and mount"
        ):
            home.open()
        subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
        assert home.open().head().size == 2
        home.close()


def test_a_store_in_a_folder_that_is_not_there_or_is_a_folder_is_not_opened(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere" / "ledger.db", tmp_path):
        with pytest.raises(StoreUnavailable, match="check the data folder"):
            Home("sqlite", f"sqlite:///{path}").open()


@pytest.mark.parametrize("break_disk", [fail, make_read_only])
def test_a_disk_that_fails_under_the_store_ends_it_and_nothing_acknowledged_is_lost(
    tmp_path: Path, break_disk: Callable[[Path], None]
) -> None:
    image = new_image(tmp_path / "image")
    with failing_disk(tmp_path / "disk", image) as disk:
        home, told = home_on(disk), []
        store = home.open(on_fatal=told.append)
        for _ in range(5):
            append(store, 20, request=key())
        break_disk(disk)
        failure = failure_of(store.append(write(1, revocation(partner="acme"), urgent=True)))
        assert isinstance(failure, StoreUnavailable | StoreCorrupt)
        assert "the broker stops; look at the disk, then start it again" in str(failure)
        # After a failed write nobody knows what is on the disk: this process says nothing more about it.
        assert failure_of(store.append(write())) is failure
        assert told == [failure]
        home.close()
    # As after a restart of the machine.
    repair(image)
    with failing_disk(tmp_path / "disk", image) as disk:
        home = home_on(disk)
        store = home.open()
        assert store.head().size == 101
        assert store.revocations(-1, 10) == []
        append(store)
        home.close()
        assert_whole(home)


def test_p1_p11_a_power_cut_at_any_moment_loses_nothing_acknowledged(tmp_path: Path) -> None:
    """What was not synced is gone with the disk's power; what was acknowledged must have been."""
    image, acknowledged = new_image(tmp_path / "image"), {}

    def go_on(store: SqlLedger, worker: int) -> None:
        for count in itertools.count():
            request = key(request_id=f"{worker}-{count}-{secrets.token_hex(4)}")
            future = store.append(write(1 + count % 3, *effects[worker], request=request, urgent=worker == 0))
            if failure_of(future) is not None:
                return
            acknowledged[request.request_id] = future.result().indices

    effects = [[revocation(user="alice")], [], []]
    for _ in range(POWER_CUTS):
        with failing_disk(tmp_path / "disk", image) as disk:
            home, before = home_on(disk), len(acknowledged)
            store = home.open()
            with ThreadPoolExecutor(3) as pool:
                workers = [pool.submit(go_on, store, number) for number in range(3)]
                enough = before + random.randrange(60)
                eventually(lambda enough=enough: len(acknowledged) > enough, "some were acknowledged")
                # A sync that runs while the power goes may be told that it is done; nobody could act on that any more.
                held = dict(acknowledged)
                fail(disk)
                for worker in workers:
                    worker.result(20)
            home.close()
        repair(image)
        with failing_disk(tmp_path / "disk", image) as disk:
            home = home_on(disk)
            home.open()
            home.close()
            assert_whole(home)
            kept = {
                row[0]: range(row[1], row[1] + row[2])
                for row in home.sql("SELECT request_id, first_idx, entries FROM requests")
            }
            assert kept.items() >= held.items()
            acknowledged.clear()
            acknowledged.update(kept)
            taken = sorted(index for indices in kept.values() for index in indices)
            assert taken == list(range(1, len(taken) + 1))


def test_a_served_broker_ends_with_its_disk_and_says_why(tmp_path: Path) -> None:
    image = new_image(tmp_path / "image")
    with failing_disk(tmp_path / "data", image) as disk, Served(tmp_path) as broker:
        broker.mint()
        fail(disk)
        with pytest.raises(grpc.RpcError):
            broker.mint()
        assert broker.process is not None
        assert broker.process.wait(10) == 70
        assert '"the store failed"' in broker.log.read_text()


def _sql(*statements: str) -> Damage:
    def damage(path: Path) -> None:
        with sqlite3.connect(path) as connection:
            for statement in statements:
                connection.execute(statement)
        connection.close()

    return damage


def _overwrite(offset: float, data: bytes) -> Damage:
    def damage(path: Path) -> None:
        with path.open("r+b") as file:
            file.seek(int(offset * path.stat().st_size) if offset < 1 else int(offset))
            file.write(data)

    return damage


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size * 2 // 3)


def _spoil_a_table_that_no_start_reads(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        [(page,)] = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'requests'")
        [(size,)] = connection.execute("PRAGMA page_size")
    connection.close()
    _overwrite((page - 1) * size, b"\xa5" * size)(path)


DAMAGES: dict[str, tuple[Damage, str]] = {
    "another file": (lambda path: path.write_bytes(b"not a database at all\n" * 1000) and None, "damaged"),
    "garbage in its first page": (_overwrite(100, b"\xff" * 400), "damaged"),
    "garbage in the middle": (_overwrite(0.5, b"\xa5" * 8192), "damaged"),
    "garbage in a table that no start reads": (_spoil_a_table_that_no_start_reads, "SQLite finds the store damaged"),
    "its end is missing": (_cut, "damaged"),
    "an entry was edited": (
        _sql("UPDATE ledger SET entry = CAST(replace(entry, 'acme', 'evil') AS BLOB) WHERE idx = 700"),
        "entry 700 is not what was written",
    ),
    "an entry and its hash were swapped with another's": (
        _sql(
            "UPDATE ledger SET (entry, leaf_hash) = (SELECT entry, leaf_hash FROM ledger WHERE idx = 5) WHERE idx = 400"
        ),
        "entry 400 is not what was written",
    ),
    "a hash was edited": (
        _sql("UPDATE ledger SET leaf_hash = zeroblob(32) WHERE idx = 3"),
        "entry 3 is not what was written",
    ),
    "an entry is missing": (_sql("DELETE FROM ledger WHERE idx = 400"), "indices are missing"),
    "the last entries are missing": (
        _sql("DELETE FROM ledger WHERE idx > 700"),
        "the head says 801 entries, the last index is 700",
    ),
    "the head is behind": (_sql("UPDATE head SET size = 500"), "the head says 500 entries, the last index is 800"),
    "there is no head": (_sql("DELETE FROM head"), "entries but no head"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_store_is_refused_and_left_as_it_is(tmp_path: Path, damage: str) -> None:
    home = home_on(tmp_path)
    append(home.open(), 800)
    home.close()
    path = tmp_path / "ledger.db"
    do, text = DAMAGES[damage]
    do(path)
    before = hashlib.sha256(path.read_bytes()).digest()
    with pytest.raises(StoreCorrupt, match=text) as refused:
        home.open()
    assert "backup" in refused.value.hint
    assert hashlib.sha256(path.read_bytes()).digest() == before
    # Nor does another attempt find it well.
    with pytest.raises(StoreCorrupt, match=text):
        home.open()


def test_what_is_damaged_while_the_store_is_open_is_never_given_out(tmp_path: Path) -> None:
    home, told = home_on(tmp_path), []
    store = home.open(on_fatal=told.append)
    append(store, 50)
    home.sql("UPDATE ledger SET entry = CAST(replace(entry, 'acme', 'evil') AS BLOB) WHERE idx = 20")
    assert len(store.entries(0, 20)) == 20
    with pytest.raises(StoreCorrupt, match="entry 20 is not what was written"):
        store.entries(10, 30)
    assert len(told) == 1
    assert isinstance(failure_of(store.append(write(urgent=True))), StoreCorrupt)
    home.close()


def test_p2_a_gap_in_what_is_read_is_never_given_out(tmp_path: Path) -> None:
    home = home_on(tmp_path)
    store = home.open()
    append(store, 50)
    home.sql("DELETE FROM ledger WHERE idx = 20")
    with pytest.raises(StoreCorrupt, match="entry 20 is not what was written"):
        store.entries(10, 30)
    home.close()


def test_a_served_broker_refuses_a_damaged_store_with_the_way_out(tmp_path: Path) -> None:
    with Served(tmp_path) as broker:
        broker.mint()
        broker.kill()
    path = tmp_path / "data" / "ledger.db"
    _sql("UPDATE ledger SET entry = x'00' WHERE idx = 2")(path)
    before = path.read_bytes()
    ended = _serve(tmp_path)
    assert ended.returncode == 1
    assert "broker: failed: ledger entry 2 is not what was written; stop the broker, keep the damaged" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert path.read_bytes() == before


def test_p6_a_second_broker_on_the_same_sqlite_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    url = f'url = "sqlite:///{tmp_path / "ledger.db"}"'
    with Served(tmp_path / "one", store=url) as broker:
        second = Served(tmp_path / "two", store=url)
        (second.folder / "broker.toml").write_text(second._config.replace("PORT", "0").replace("HTTP", "0"))
        ended = _serve(second.folder)
        assert ended.returncode == 1
        assert "another broker is using the store" in ended.stderr
        assert "store.sole_broker = false" in ended.stderr
        assert "Traceback" not in ended.stderr
        # The first did not notice.
        assert broker.mint().token
        # The one on the same data folder neither.
        ended = _serve(broker.folder)
        assert ended.returncode == 1
        assert "another broker is using the data folder" in ended.stderr
        assert broker.mint().token


def _serve(folder: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [BROKER, "serve", "--config", folder / "broker.toml"],
        check=False,
        capture_output=True,
        text=True,
        timeout=30,
        env={"PATH": os.environ["PATH"], "HOME": str(folder)},
    )
