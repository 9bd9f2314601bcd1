"""P10: the promises of the ports Tree and Checkpoints, on SQLite, on PostgreSQL, and on the simulation's fake."""

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from broker.errors import PolicyMoved, StoreCorrupt
from broker.ledger.entry import Entry, Kind, encode_entry, leaf_hash
from broker.ledger.merkle import check_consistency, check_inclusion, prove_consistency, prove_inclusion
from broker.ledger.note import NoteSignature, parse_note
from broker.ledger.tiles import TileNodes
from broker.service.ports import Ledger, Write
from broker.service.tree_ports import CheckpointRecord, Checkpoints, Tree
from tests.fakes import Disk, FakeLedger
from tests.moved_clock import MovedClock
from tests.stores import BY, Home, append, assert_whole, draft, everything, failure_of, write
from tests.unit.ledger.test_merkle import naive_root

pytest_plugins = ["tests.fixtures_stores"]

NOW = datetime.now(UTC).replace(microsecond=0)
SIGNATURE = NoteSignature("ledger.example", b"abcd", b"s" * 64)
COSIGNED = NoteSignature("witness.example", b"efgh", b"c" * 72)


@dataclass(frozen=True)
class Ports:
    """One implementation, and another broker on the same store."""

    ledger: Ledger
    tree: Tree
    checkpoints: Checkpoints
    another: Callable[[], "Ports"]


def of_sql(home: Home) -> Ports:
    store = home.open()
    return Ports(store, store.tree, store.checkpoints, lambda: of_sql(home))


def of_fake(disk: Disk) -> Ports:
    fake = FakeLedger(disk, MovedClock())
    return Ports(fake, fake.tree, fake.checkpoints, lambda: of_fake(disk))


@pytest.fixture(params=["fake", "sqlite", "postgresql"])
def ports(request: pytest.FixtureRequest) -> Ports:
    if request.param == "fake":
        return of_fake(Disk.new("a" * 32, NOW))
    return of_sql(request.getfixturevalue(f"{request.param}_home"))


def record(size: int, **options: Any) -> CheckpointRecord:
    return CheckpointRecord(size, f"ledger.example\n{size}\nroot\n\n{SIGNATURE}", NOW, False, **options)


def must_be_the_tree_of_all_entries(ports: Ports) -> None:
    entries = everything(ports.ledger)
    head = ports.tree.head()
    assert head.size == len(entries)
    assert head.root == naive_root(entries)
    for at in range(0, len(entries) + 256, 256):
        assert list(ports.tree.tile(0, at // 256)) == [leaf_hash(entry) for entry in entries[at : at + 256]]
    assert list(ports.tree.tile(1, 0)) == [
        naive_root(entries[at : at + 256]) for at in range(0, len(entries) - 255, 256)
    ]
    assert list(ports.tree.tile(2, 0)) == list(ports.tree.tile(63, 7)) == []


def test_p10_a_new_ledger_has_the_tree_of_its_one_entry(ports):
    must_be_the_tree_of_all_entries(ports)
    assert ports.tree.head().incarnation == ports.ledger.head().incarnation


def test_p10_the_tree_grows_with_each_append_whatever_its_length(ports):
    for count in (1, 1, 2, 250, 1, 1, 300, 513):
        append(ports.ledger, count)
        must_be_the_tree_of_all_entries(ports)


def test_p10_the_tree_is_whole_under_many_threads_and_brokers(ports):
    another = ports.another()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: append((ports, another)[n % 2].ledger, 1 + n % 7), range(200)))
    must_be_the_tree_of_all_entries(ports)
    must_be_the_tree_of_all_entries(another)


def test_p10_what_is_refused_leaves_no_trace_in_the_tree(ports):
    before = ports.tree.head()
    assert isinstance(failure_of(ports.ledger.append(write(5, expecting=99))), PolicyMoved)
    assert failure_of(ports.ledger.append(Write([draft(), lambda _index: 1 / 0]))) is not None
    assert ports.tree.head() == before


def test_p10_proofs_from_stored_tiles_hold_for_all_that_was_published(ports):
    heads = [ports.tree.head()]
    for count in (2, 255, 400, 77):
        append(ports.ledger, count)
        heads.append(ports.tree.head())
    entries = everything(ports.ledger)
    new = heads[-1]
    for old in heads:
        path = prove_consistency(old.size, new.size, TileNodes(ports.tree.tile))
        check_consistency(old.size, old.root, new.size, new.root, path)
        # Also as the tree was then.
        index = old.size - 1
        path = prove_inclusion(index, old.size, TileNodes(ports.tree.tile))
        check_inclusion(index, old.size, leaf_hash(entries[index]), path, old.root)


def test_there_is_no_checkpoint_at_first(ports):
    assert ports.checkpoints.newest() is None
    assert ports.checkpoints.newest(settled=True) is None
    ports.checkpoints.settle(3, [COSIGNED])
    assert ports.checkpoints.newest() is None


def test_the_newest_checkpoint_is_that_of_the_largest_tree(ports):
    for size in (3, 1, 7, 5):
        assert ports.checkpoints.keep(record(size)) == record(size)
    assert ports.another().checkpoints.newest() == record(7)
    assert ports.checkpoints.newest(settled=True) is None


def test_of_two_checkpoints_of_one_size_the_first_is_kept(ports):
    first, second = record(4), replace(record(4), note="another", at=NOW + timedelta(seconds=1))
    assert ports.checkpoints.keep(first) == first
    assert ports.another().checkpoints.keep(second) == first
    assert ports.checkpoints.newest() == first


def test_cosignatures_are_added_once_for_each_key_and_settle_it(ports):
    ports.checkpoints.keep(record(4))
    ports.checkpoints.keep(record(5))
    ports.checkpoints.settle(4, [COSIGNED])
    ports.checkpoints.settle(4, [replace(COSIGNED, blob=b"d" * 72), replace(COSIGNED, name="second.example")])
    settled = ports.checkpoints.newest(settled=True)
    assert settled is not None
    assert (settled.size, settled.is_settled) == (4, True)
    assert parse_note(settled.note.encode()).signatures == (
        SIGNATURE,
        replace(COSIGNED, blob=b"d" * 72),
        replace(COSIGNED, name="second.example"),
    )
    assert ports.checkpoints.newest() == record(5)
    ports.checkpoints.settle(5, [])
    assert ports.checkpoints.newest(settled=True) == replace(record(5), is_settled=True)


def test_only_some_of_the_newest_checkpoints_stay(ports):
    for size in range(1, 1021):
        ports.checkpoints.keep(record(size))
    assert ports.checkpoints.keep(replace(record(21), note="the first is kept")) == record(21)
    assert ports.checkpoints.keep(replace(record(20), note="it is gone")).note == "it is gone"
    assert ports.checkpoints.newest() == record(1020)


def test_p10_the_tree_is_whole_with_several_processes(home):
    store = home.open()
    command = [sys.executable, "-m", "tests.store_writer", home.url, "150", "3"]
    writers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        for one in writers:
            assert one.stdout.readline() == "ready\n"
        for one in writers:
            one.stdin.write("go\n")
            one.stdin.flush()
        for _ in range(20):
            append(store, 5)
        told = [one.communicate(timeout=120)[0] for one in writers]
    finally:
        for one in writers:
            one.kill()
            one.wait()
    assert sorted(len(text.split()) for text in told) == [150, 150]
    assert_whole(home)
    assert store.tree.head().root == naive_root(everything(store))


@pytest.mark.parametrize("kept", ["NULL", "old"])
def test_p10_a_broker_from_before_the_tree_may_append_meanwhile(home, kept):
    """Rolling upgrade: the old one moves the size and leaves the tree behind."""
    store = home.open()
    append(store, 300)
    [(old,)] = home.sql("SELECT frontier FROM head")
    append(store, 300)
    literal = (
        "NULL" if kept == "NULL" else f"X'{bytes(old).hex()}'" if home.kind == "sqlite" else rf"'\x{bytes(old).hex()}'"
    )
    home.sql(f"UPDATE head SET frontier = {literal}")
    home.sql(f"DELETE FROM tree WHERE idx >= {0 if kept == 'NULL' else 1}")
    assert store.tree.head().root == naive_root(everything(store))
    append(store, 1)
    assert_whole(home)
    assert store.tree.head().root == naive_root(everything(store))


def respelled(home: Home, index: int) -> None:
    """Change an entry and its leaf hash, as one who knows the store would."""
    entry = encode_entry(Entry(index, Kind.TOKEN_MINTED, NOW, BY, {"forged": True}))
    form = "X'{}'" if home.kind == "sqlite" else r"'\x{}'"
    values = [form.format(data.hex()) for data in (entry, leaf_hash(entry))]
    home.sql(f"UPDATE ledger SET entry = {values[0]}, leaf_hash = {values[1]} WHERE idx = {index}")


@pytest.mark.parametrize(
    "harm",
    [
        lambda home: respelled(home, 3),
        lambda home: respelled(home, 299),
        lambda home: home.sql("DELETE FROM tree WHERE level = 1"),
        lambda home: home.sql("UPDATE tree SET hash = (SELECT leaf_hash FROM ledger WHERE idx = 0)"),
        lambda home: home.sql("UPDATE head SET frontier = (SELECT leaf_hash FROM ledger WHERE idx = 0)"),
        lambda home: home.sql("UPDATE head SET size = 200, frontier = NULL"),
    ],
    ids=["an entry", "the last entry", "a node gone", "a node", "the frontier", "the size"],
)
def test_p10_a_store_whose_tree_is_not_its_entries_is_not_opened(home, harm):
    store = home.open()
    append(store, 299)
    store.close()
    home.opened.clear()
    harm(home)
    with pytest.raises(StoreCorrupt):
        home.open()


def test_p10_a_tree_ahead_of_its_ledger_takes_no_append(home):
    store = home.open()
    append(store, 10)
    [(ahead,)] = home.sql("SELECT frontier FROM head")
    home.sql("DELETE FROM ledger WHERE idx > 5")
    home.sql("UPDATE head SET size = 6")
    assert int.from_bytes(bytes(ahead)[:8], "big") == 11
    assert isinstance(failure_of(store.append(write(1))), StoreCorrupt)
