"""Bodies that were moved to an archive: read from there, checked by the ledger's hashes, and never half gone."""

import errno
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from broker.adapters.entry_archive import EntryArchive
from broker.adapters.sql import SqlLedger
from broker.adapters.sql import archiving as archiving_module
from broker.adapters.sql.archiving import Moved, move_bodies
from broker.adapters.sql.copying import dump, finish, load
from broker.errors import ArchiveUnavailable, StoreCorrupt, StoreUnavailable
from broker.ledger.entry import Entry, Kind, decode_entry, encode_entry
from broker.ledger.tiles import TILE_WIDTH, Tile, decode_bundle
from broker.service.tree_ports import CheckpointRecord
from tests.stores import BY, Home, append, write

pytest_plugins = ["tests.fixtures_stores"]

SIZE = 4 * TILE_WIDTH + 10
NOW = datetime.now(UTC)
LATER = NOW + timedelta(hours=1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "archive"


@pytest.fixture
def store(home: Home, folder: Path) -> SqlLedger:
    """A ledger of some more than four bundles, covered by a checkpoint."""
    store = home.open(archive=EntryArchive(folder))
    while (size := store.head().size) < SIZE:
        append(store, min(200, SIZE - size))
    cover(store, SIZE)
    return store


def cover(store: SqlLedger, size: int) -> None:
    store.checkpoints.keep(CheckpointRecord(size, "a note", NOW, True))


def move(home: Home, folder: Path, *, before: datetime = LATER, keep_last: int = 0) -> Moved:
    return move_bodies(home.url, EntryArchive(folder), before=before, keep_last=keep_last)


def bundle_path(folder: Path, store: SqlLedger, bundle: int) -> Path:
    return folder / store.head().incarnation / Tile(None, bundle).path


def bodies_in(home: Home) -> list[int]:
    return [index for (index,) in home.sql("SELECT idx FROM ledger WHERE length(entry) > 0 ORDER BY idx")]


def test_moved_bodies_read_as_before_one_by_one_and_all_at_once(home, store, folder):
    before = list(store.entries(0, SIZE))
    hashes = [store.tree.tile(0, bundle) for bundle in range(4)]
    assert move(home, folder) == Moved(store.head().incarnation, 0, 4 * TILE_WIDTH)
    # The first entry says which ledger it is; the last ones are no full bundle.
    assert bodies_in(home) == [0, *range(4 * TILE_WIDTH, SIZE)]
    assert list(store.entries(0, SIZE)) == before
    for index in (0, 1, 255, 256, 1023, 1024, SIZE - 1):
        assert list(store.entries(index, index + 1)) == before[index : index + 1]
    assert list(store.entries(250, 260)) == before[250:260]
    assert [store.tree.tile(0, bundle) for bundle in range(4)] == hashes
    assert store.receipts.entries_at([5, SIZE - 1]) == {5: before[5], SIZE - 1: before[SIZE - 1]}


def test_an_archive_is_entry_bundles_that_anybody_can_read(home, store, folder):
    before = list(store.entries(0, SIZE))
    move(home, folder)
    tile = Tile(None, 3)
    assert list(decode_bundle(bundle_path(folder, store, 3).read_bytes(), tile)) == before[768:1024]
    assert [path.stat().st_mode & 0o077 for path in folder.rglob("*")] == [0] * len(list(folder.rglob("*")))


def test_a_store_goes_on_and_opens_again(home, store, folder):
    move(home, folder)
    append(store, 3)
    store.close()
    again = home.open(archive=EntryArchive(folder))
    assert again.head().size == SIZE + 3
    assert len(again.entries(0, SIZE + 3)) == SIZE + 3


@pytest.mark.parametrize(
    ("covered", "keep_last", "stop"),
    [(SIZE, 0, 1024), (SIZE, 10, 1024), (SIZE, 11, 768), (1023, 0, 768), (255, 0, 0), (SIZE, SIZE, 0)],
)
def test_only_what_a_checkpoint_covers_moves_and_never_the_last_ones(home, folder, covered, keep_last, stop):
    store = home.open()
    while (size := store.head().size) < SIZE:
        append(store, min(200, SIZE - size))
    cover(store, covered)
    assert move(home, folder, keep_last=keep_last).stop == stop
    assert bodies_in(home) == [0, *range(max(stop, 1), SIZE)]


def test_only_what_is_older_moves(home, folder):
    store = home.open(archive=EntryArchive(folder))
    # One entry of the third bundle is younger: a clock was set back after it.
    young = {0: NOW, 600: NOW}

    def entry(index: int) -> bytes:
        at = young.get(index, NOW - timedelta(days=30))
        return encode_entry(Entry(index, Kind.TOKEN_MINTED, at, BY, {"index": index}))

    while (size := store.head().size) < SIZE:
        store.append(type(write())([entry] * min(200, SIZE - size))).result(20)
    cover(store, SIZE)
    # The ledger itself was made just now.
    assert move(home, folder, before=NOW - timedelta(days=10)).stop == 0
    home.sql("UPDATE head SET archived = 256")
    assert move(home, folder, before=NOW - timedelta(days=10)).stop == 512
    assert [decode_entry(data).index for data in store.entries(256, 512)] == list(range(256, 512))


def test_to_move_again_goes_on_where_it_ended(home, store, folder):
    assert move(home, folder, keep_last=600).stop == 256
    assert move(home, folder, keep_last=600) == Moved(store.head().incarnation, 256, 256)
    assert move(home, folder) == Moved(store.head().incarnation, 256, 1024)
    assert len(store.entries(0, SIZE)) == SIZE


def test_without_the_archive_reading_says_what_is_missing_and_the_rest_goes_on(home, store, folder):
    move(home, folder)
    folder.rename(folder.with_name("away"))
    other = home.open(archive=EntryArchive(folder))
    with pytest.raises(
        ArchiveUnavailable, match=r"entries 256 to 511 were moved to the archive, and there is no .*001"
    ):
        other.entries(300, 301)
    assert len(other.entries(1024, SIZE)) == 10
    append(other)
    folder.with_name("away").rename(folder)
    assert len(other.entries(300, 301)) == 1
    with pytest.raises(ArchiveUnavailable, match=r"entries 0 to 255 .*ledger\.archive in the broker's configuration"):
        home.open().entries(0, 10)


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "longer", "other", "folder", "gone"])
def test_p10_a_bundle_that_is_not_what_was_moved_is_refused_and_named(home, store, folder, damage):
    move(home, folder)
    path = bundle_path(folder, store, 1)
    data = path.read_bytes()
    match damage:
        case "flip":
            path.write_bytes(data[:100] + bytes([data[100] ^ 1]) + data[101:])
        case "cut":
            path.write_bytes(data[:-1])
        case "empty":
            path.write_bytes(b"")
        case "longer":
            path.write_bytes(data + b"\x00\x01x")
        case "other":
            path.write_bytes(bundle_path(folder, store, 2).read_bytes())
        case "folder":
            path.unlink()
            path.mkdir()
        case "gone":
            path.unlink()
    fresh = home.open(archive=EntryArchive(folder))
    with pytest.raises(ArchiveUnavailable, match=r"entries 256 to 511 .*001"):
        fresh.entries(256, 257)
    assert len(fresh.entries(0, 256)) == 256
    assert len(fresh.entries(512, SIZE)) == SIZE - 512


def test_p10_a_body_that_is_gone_and_was_not_moved_is_damage(home, store, folder):
    move(home, folder, keep_last=600)
    nothing = "x''" if home.kind == "sqlite" else "''"
    home.sql(f"UPDATE ledger SET entry = {nothing} WHERE idx = 300")
    with pytest.raises(StoreCorrupt, match="entry 300 is not what was written"):
        store.entries(290, 310)
    with pytest.raises(StoreCorrupt, match="entry 300 is not what was written"):
        move(home, folder)
    with pytest.raises(StoreCorrupt, match="entry 300 is not what was written"):
        list(dump(home.url, NOW))


def test_another_bundle_in_the_place_is_left_alone_and_nothing_is_forgotten(home, store, folder):
    path = bundle_path(folder, store, 1)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"somebody's")
    with pytest.raises(ArchiveUnavailable, match=r"001 is there already, and is something else"):
        move(home, folder)
    assert path.read_bytes() == b"somebody's"
    assert bodies_in(home) == list(range(SIZE))


class Died(BaseException):
    pass


@pytest.mark.parametrize("at", range(9))
def test_killed_anywhere_every_body_is_still_to_be_had_and_the_next_one_ends_it(home, store, folder, monkeypatch, at):
    before = list(store.entries(0, SIZE))
    monkeypatch.setattr(archiving_module, "AT_ONCE", 1)
    put, forget, mark = EntryArchive.put, archiving_module._forget, archiving_module._move_mark
    steps = iter(range(100))

    def step() -> None:
        if next(steps) == at:
            raise Died

    def stepped(call):
        def inner(*arguments, **options):
            step()
            return call(*arguments, **options)

        return inner

    monkeypatch.setattr(EntryArchive, "put", stepped(put))
    monkeypatch.setattr(archiving_module, "_forget", stepped(forget))
    monkeypatch.setattr(archiving_module, "_move_mark", stepped(mark))
    with pytest.raises(Died):
        move(home, folder)
    assert list(store.entries(0, SIZE)) == before
    assert move(home, folder).stop == 1024
    assert list(store.entries(0, SIZE)) == before
    assert bodies_in(home) == [0, *range(1024, SIZE)]


@pytest.mark.parametrize("call", ["open", "fsync", "replace", "mkdir"])
def test_what_the_disk_refuses_to_take_stays_in_the_store(home, store, folder, monkeypatch, call):
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    where = {"open": "os.open", "fsync": "os.fsync", "replace": "pathlib.Path.replace", "mkdir": "pathlib.Path.mkdir"}
    with monkeypatch.context() as patched:
        patched.setattr(where[call], refuse)
        archive = EntryArchive(folder)
        with pytest.raises(ArchiveUnavailable, match="No space left on device"):
            archive.put(store.head().incarnation, 0, store.entries(0, 256))
    assert bodies_in(home) == list(range(SIZE))
    assert move(home, folder).stop == 1024


def test_two_that_archive_at_once_do_not_both(home, store, folder, monkeypatch):
    mark = archiving_module._move_mark

    def beaten(*arguments):
        monkeypatch.setattr(archiving_module, "_move_mark", mark)
        assert move(home, folder, keep_last=600).stop == 256
        mark(*arguments)

    monkeypatch.setattr(archiving_module, "AT_ONCE", 1)
    put = EntryArchive.put

    def first_other(self, incarnation, bundle, entries):
        monkeypatch.setattr(EntryArchive, "put", put)
        move(home, folder, keep_last=600)
        put(self, incarnation, bundle, entries)

    monkeypatch.setattr(EntryArchive, "put", first_other)
    with pytest.raises(StoreUnavailable, match="somebody else archives"):
        move(home, folder)
    assert len(store.entries(0, SIZE)) == SIZE


@pytest.fixture
def empty_home(tmp_path: Path) -> Iterator[Home]:
    place = Home("sqlite", f"sqlite:///{tmp_path / 'other.db'}")
    yield place
    place.close()


def test_a_backup_goes_without_what_was_moved_and_its_store_reads_it_there(home, store, folder, empty_home):
    before = list(store.entries(0, SIZE))
    move(home, folder)
    load(empty_home.url, list(dump(home.url, NOW)))
    finish(empty_home.url, "ab" * 16, SIZE - 1, {}, NOW)
    other = empty_home.open(archive=EntryArchive(folder))
    assert list(other.entries(0, SIZE)) == before
    # What is of another incarnation from here on goes beside it.
    append(other, 300)
    cover(other, SIZE + 300)
    moved = move(empty_home, folder)
    assert (moved.incarnation, moved.start, moved.stop) == ("ab" * 16, 1024, 1280)
    assert list(other.entries(0, SIZE)) == before
    assert (folder / ("ab" * 16)).is_dir()


def test_p2_live_tokens_are_found_without_what_is_archived(home, store, folder):
    since = NOW - timedelta(minutes=1)
    everything = len(list(store.proofs.minted([], since=since)))
    move(home, folder, keep_last=600)
    assert len(list(store.proofs.minted([], since=since))) == everything - 256 + 1
