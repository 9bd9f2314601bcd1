"""P10, P11: what a verifier or a witness said is on its disk is there, whatever call failed before it could say so."""

import errno
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.ledger.checkpoint import LogKeys, open_checkpoint
from broker.ledger.merkle import prove_consistency
from broker.ledger.witnessing import AddCheckpoint
from broker.sdk.journal import Journal
from broker.sdk.remembered import Remembered
from tests.failing_calls import ALL, Calls, FailingCalls
from tests.faulted_files import FaultedFiles
from tests.mounts import fail, failing_disk, fill, make_read_only, new_image, repair, small_disk
from tests.unit.ledger.test_merkle import TREE
from tests.unit.ledger.test_witnessing import KEY, root, signed

LOG = str(KEY)


@pytest.fixture(scope="module")
def calls() -> Iterator[FailingCalls]:
    with tempfile.TemporaryDirectory() as folder:
        yield FailingCalls(Path(folder))


@pytest.fixture
def files(calls: FailingCalls) -> Iterator[FaultedFiles]:
    calls.stop()
    files = FaultedFiles(calls)
    yield files
    files.kill()
    calls.stop()


@pytest.fixture
def state(tmp_path: Path) -> Path:
    folder = tmp_path / "state"
    folder.mkdir()
    return folder


def kept_head(state: Path) -> int:
    mark = Remembered(state, "evaluation").load()
    return 0 if mark is None else mark.head


# The mark: what a verifier had applied when it acknowledged.


@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC, errno.EROFS], ids=errno.errorcode.get)
def test_p11_at_each_call_that_fails_a_mark_is_acknowledged_only_once_it_is_kept(
    calls: FailingCalls, files: FaultedFiles, state: Path, error: int
) -> None:
    assert files.do("acknowledge", state, 1) is True
    calls.count(ALL, of="/state")
    assert files.do("acknowledge", state, 2) is True
    needed = calls.seen
    assert needed >= 3  # the draft written and synced, then the folder
    for nth in range(1, needed + 1):
        head = kept_head(state)
        calls.fail(ALL, nth=nth, of="/state", error=error)
        refused = files.do("acknowledge", state, head + 10)
        assert calls.has_failed
        assert refused.startswith("refused: "), nth
        # Whole, and the one before or the new one; nothing half.
        assert kept_head(state) in (head, head + 10)
        calls.stop()
        assert files.do("acknowledge", state, head + 10) is True
        assert kept_head(state) == head + 10
    assert {file.name for file in state.iterdir()} == {"evaluation.mark", "evaluation.lock"}


def test_p11_a_name_whose_sync_failed_is_not_believed_because_it_can_be_seen(
    calls: FailingCalls, files: FaultedFiles, state: Path
) -> None:
    assert files.do("acknowledge", state, 1) is True
    calls.fail(Calls.SYNCS, nth=1, of="/state\n", for_ever=True)
    for _ in range(3):
        assert files.do("acknowledge", state, 2).startswith("refused: ")
        # The rename is there to be read, and gone after a power cut.
        assert kept_head(state) == 2
    calls.stop()
    calls.count(Calls.SYNCS, of="/state")
    assert files.do("acknowledge", state, 2) is True
    assert calls.seen == 2


def test_p11_another_process_of_the_folder_does_not_believe_what_the_first_could_not_keep(
    calls: FailingCalls, files: FaultedFiles, state: Path
) -> None:
    assert files.do("acknowledge", state, 1) is True
    calls.fail(Calls.SYNCS, nth=1, of="/state\n")
    assert files.do("acknowledge", state, 2).startswith("refused: ")
    files.kill()
    other = FaultedFiles(calls)
    try:
        calls.count(Calls.SYNCS, of="/state\n")
        assert other.do("acknowledge", state, 2) is True
        assert calls.seen == 1
        # Once it is known to be there, who is behind does not wear the disk.
        assert other.do("acknowledge", state, 1) is True
        assert calls.seen == 1
    finally:
        other.kill()


def test_p11_a_mark_survives_a_power_cut_once_it_is_acknowledged(files: FaultedFiles, tmp_path: Path) -> None:
    image = new_image(tmp_path / "image")
    with failing_disk(tmp_path / "disk", image) as disk:
        for head in range(1, 30):
            assert files.do("acknowledge", disk / "state", head) is True
        fail(disk)
        assert files.do("acknowledge", disk / "state", 30).startswith("refused: ")
    files.kill()
    repair(image)
    with failing_disk(tmp_path / "disk", image) as disk:
        assert kept_head(disk / "state") >= 29


def test_p7_a_full_or_read_only_disk_keeps_the_mark_before_and_says_which_folder_to_mend(
    files: FaultedFiles, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", mib=2) as disk:
        assert files.do("acknowledge", disk / "state", 1) is True
        ballast = fill(disk)
        refused = files.do("acknowledge", disk / "state", 2)
        assert "No space left on device" in refused
        assert str(disk / "state") in refused
        assert "it goes on by itself" in refused
        assert kept_head_of_full(disk / "state") == 1
        ballast.unlink()
        assert files.do("acknowledge", disk / "state", 2) is True
    with failing_disk(tmp_path / "ext4", new_image(tmp_path / "image")) as disk:
        assert files.do("acknowledge", disk / "state", 1) is True
        make_read_only(disk)
        refused = files.do("acknowledge", disk / "state", 2)
        assert "Read-only file system" in refused
        assert str(disk / "state") in refused


def kept_head_of_full(state: Path) -> int:
    """Look without the probe that a verifier makes at its start."""
    copy = Path(tempfile.mkdtemp())
    try:
        shutil.copy(state / "evaluation.mark", copy)
        return kept_head(copy)
    finally:
        shutil.rmtree(copy)


# The journal: receipts of what was accepted.


def read_anew(folder: Path) -> list[str]:
    """Return what the next process finds."""
    journal = Journal(folder, max_bytes=0, is_writable=False)
    found: list[tuple[int, bytes]] = []
    while some := journal.read(found[-1][0] if found else 0, 1000):
        found += some
    assert [number for number, _ in found] == list(range(1, len(found) + 1))
    return [record.decode() for _, record in found]


@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC], ids=errno.errorcode.get)
def test_p11_at_each_call_that_fails_a_journal_has_all_it_took_and_goes_on(
    calls: FailingCalls, files: FaultedFiles, state: Path, error: int
) -> None:
    """A second failure hits what mends the first."""
    taken: list[str] = []

    def append_until_refused(folder: Path) -> None:
        for _ in range(6):
            text = f"record {len(taken) + 1} " + "x" * 40
            answer = files.do("append", folder, text)
            if isinstance(answer, str):
                assert "receipts cannot be kept: " in answer
                return
            taken.append(text)
            assert answer == len(taken)
            if files.do("sync", folder):
                return

    for nth in range(1, 16):
        for second in (1, 2, 4):
            folder = state / f"{nth}-{second}"
            folder.mkdir()
            taken.clear()
            calls.fail(ALL, nth=nth, of=f"/{folder.name}", error=error)
            append_until_refused(folder)
            calls.fail(ALL, nth=second, of=f"/{folder.name}", error=error)
            files.do("mend", folder)
            calls.stop()
            assert files.do("mend", folder) == "", "there is space again"
            append_until_refused(folder)
            assert read_anew(folder) == taken
            assert {file.suffix for file in folder.iterdir()} == {".seg"}


def test_p11_what_a_failed_sync_covered_is_written_anew_and_not_synced_again(
    calls: FailingCalls, files: FaultedFiles, state: Path
) -> None:
    """On Linux the next fsync of the same file succeeds though its pages are gone."""
    for number in range(3):
        files.do("append", state, f"before {number}")
    calls.fail(Calls.SYNCS, nth=1, of=".seg\n")
    assert "receipts cannot be kept: " in files.do("sync", state)
    [segment] = state.glob("*.seg")
    inode = segment.stat().st_ino
    # Not before that is done is anything accepted again.
    calls.fail(Calls.SYNCS, nth=1, of="/state", for_ever=True)
    assert files.do("mend", state)
    assert files.do("append", state, "too early").startswith("refused: ")
    calls.count(Calls.SYNCS, of="/state")
    assert files.do("mend", state) == ""
    assert segment.stat().st_ino != inode, "another file, of pages that are to be written"
    assert calls.seen == 3, "the probe, the file and its name"
    assert files.do("append", state, "after") == 4
    assert read_anew(state) == ["before 0", "before 1", "before 2", "after"]


def test_p11_a_segment_that_was_full_before_the_sync_failed_is_written_anew_too(
    calls: FailingCalls, files: FaultedFiles, state: Path
) -> None:
    texts = [f"{number:04}" + "x" * 4000 for number in range(150)]
    for text in texts:
        files.do("append", state, text)
    segments = sorted(state.glob("*.seg"))
    assert len(segments) == 3
    inodes = [segment.stat().st_ino for segment in segments]
    calls.fail(Calls.SYNCS, nth=1, of=".seg\n")
    assert files.do("sync", state)
    assert files.do("mend", state) == ""
    # One failed; the others were synced, or are doubtful as it is. Each is one or the other.
    calls.count(Calls.SYNCS, of=".seg\n")
    assert files.do("sync", state) == ""
    assert segments[0].stat().st_ino != inodes[0]
    assert read_anew(state) == texts


def test_p11_a_sync_that_fails_on_what_the_broker_has_already_is_mended_too(
    calls: FailingCalls, files: FaultedFiles, state: Path
) -> None:
    texts = [f"{number:04}" + "x" * 4000 for number in range(150)]
    for text in texts:
        files.do("append", state, text)
    files.do("drop", state, 100)
    left = sorted(state.glob("*.seg"))
    calls.fail(Calls.SYNCS, nth=1, of=".seg (deleted)\n")
    assert files.do("sync", state)
    assert calls.has_failed
    assert files.do("mend", state) == ""
    assert sorted(state.glob("*.seg")) == left
    assert files.do("append", state, "after") == 151
    assert Journal(state, max_bytes=0, is_writable=False).read(149, 1) == [(150, texts[-1].encode())]


def test_p11_what_the_disk_lost_under_a_failed_sync_is_told_as_a_gap_and_all_before_it_is_kept(
    calls: FailingCalls, files: FaultedFiles, state: Path
) -> None:
    for number in range(10):
        files.do("append", state, f"record {number}")
    calls.fail(Calls.SYNCS, nth=1, of=".seg\n")
    assert files.do("sync", state)
    [segment] = state.glob("*.seg")
    data = bytearray(segment.read_bytes())
    at = data.index(b"record 6")
    # Memory was needed for other things, and the disk never had it.
    data[at:] = bytes(len(data) - at)
    segment.write_bytes(data)
    assert files.do("mend", state) == ""
    assert files.do("append", state, "after") == 11
    assert files.do("sync", state) == ""
    assert files.do("read", state) == [f"record {number}" for number in range(6)]
    journal = Journal(state, max_bytes=0, is_writable=False)
    assert journal.read(6, 10) == [(11, b"after")]
    assert files.do("size", state) == sum(file.stat().st_size for file in state.glob("*.seg"))


def test_p11_a_new_segment_is_synced_by_its_name_too(calls: FailingCalls, files: FaultedFiles, state: Path) -> None:
    calls.count(Calls.SYNCS, of="/state\n")
    files.do("append", state, "one")
    assert files.do("sync", state) == ""
    assert calls.seen == 1
    files.do("append", state, "two")
    assert files.do("sync", state) == ""
    assert calls.seen == 1, "once for each name"
    other = state / "other"
    other.mkdir()
    calls.fail(Calls.SYNCS, nth=1, of="/other\n")
    files.do("append", other, "one")
    assert files.do("sync", other)
    assert files.do("mend", other) == ""
    assert read_anew(other) == ["one"]


def test_p11_what_could_not_be_cut_off_stays_to_be_synced(
    calls: FailingCalls, files: FaultedFiles, state: Path
) -> None:
    assert files.do("append", state, "one") == 1
    calls.fail(Calls.WRITES | Calls.CUTS, nth=1, of=".seg\n", for_ever=True)
    assert files.do("append", state, "two").startswith("refused: ")
    calls.stop()
    assert files.do("mend", state) == ""
    calls.count(Calls.SYNCS, of=".seg\n")
    assert files.do("append", state, "two") == 2
    assert files.do("sync", state) == ""
    assert calls.seen == 2
    assert read_anew(state) == ["one", "two"]


def test_p7_a_process_without_file_handles_accepts_nothing_that_it_cannot_sync(
    files: FaultedFiles, state: Path
) -> None:
    assert files.do("append", state, "one") == 1
    with files.without_handles():
        assert "Too many open files" in files.do("sync", state)
        assert files.do("append", state, "two").startswith("refused: ")
        assert files.do("mend", state)
    assert files.do("mend", state) == ""
    assert files.do("append", state, "two") == 2
    assert files.do("sync", state) == ""
    assert read_anew(state) == ["one", "two"]


def test_p11_a_synced_receipt_survives_a_power_cut(files: FaultedFiles, tmp_path: Path) -> None:
    image = new_image(tmp_path / "image")
    with failing_disk(tmp_path / "disk", image) as disk:
        for number in range(200):
            files.do("append", disk, f"synced {number}")
        assert files.do("sync", disk) == ""
        files.do("append", disk, "not synced")
        fail(disk)
        assert "receipts cannot be kept: " in files.do("sync", disk)
        assert files.do("append", disk, "more").startswith("refused: ")
        assert files.do("mend", disk)
    files.kill()
    repair(image)
    with failing_disk(tmp_path / "disk", image) as disk:
        assert read_anew(disk)[:200] == [f"synced {number}" for number in range(200)]


def test_a_spool_whose_folder_cannot_be_synced_is_not_there(
    calls: FailingCalls, files: FaultedFiles, state: Path
) -> None:
    calls.count(ALL, of="/receipts")
    assert not files.do("spool", state).startswith("refused: ")
    needed, home = calls.seen, state / "receipts" / "evaluation"
    for nth in range(1, needed + 1):
        before = set(home.iterdir())
        calls.fail(ALL, nth=nth, of="/receipts")
        assert files.do("spool", state).startswith("refused: "), nth
        assert calls.has_failed
        assert set(home.iterdir()) == before, nth


def test_p11_the_folders_above_a_spool_are_synced_by_their_names(
    calls: FailingCalls, files: FaultedFiles, state: Path
) -> None:
    for folder in (state, state / "receipts", state / "receipts" / "evaluation"):
        calls.count(Calls.SYNCS, of=f"{folder.relative_to(state.parent)}\n")
        files.do("spool", state)
        assert calls.seen == 1, folder


# A witness: what it signed, it remembers.


def request(old: int, new: int, *, fork: bool = False) -> str:
    proof = prove_consistency(old, new, TREE.read) if old else ()
    return AddCheckpoint(old, proof, signed(new, of=root(new - 1) if fork else None)).to_bytes().decode()


def cosigned_size(note: str | None) -> int:
    """Return the size of a shown checkpoint; it must be signed by the log, and by the witness."""
    assert note is not None
    assert "— witness.example/w1 " in note
    return open_checkpoint(note.encode(), LogKeys(KEY.name, (KEY,))).checkpoint.size


@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC, errno.EROFS], ids=errno.errorcode.get)
def test_p10_at_each_call_that_fails_a_witness_signs_nothing_it_has_not_kept_and_shows_nothing_it_has_not_signed(
    calls: FailingCalls, files: FaultedFiles, state: Path, error: int
) -> None:
    assert isinstance(files.do("cosign", state, LOG, request(0, 1)), str)
    calls.count(ALL, of="/state")
    assert isinstance(files.do("cosign", state, LOG, request(1, 2)), str)
    needed, size = calls.seen, 2
    assert needed >= 3
    for nth in range(1, needed + 1):
        calls.fail(ALL, nth=nth, of="/state", error=error)
        refused = files.do("cosign", state, LOG, request(size, size + 3))
        assert refused.startswith("refused: "), nth
        assert calls.has_failed
        # Somebody who asks sees what was signed, and no more.
        assert cosigned_size(files.do("shown", state, LOG)) == size
        calls.stop()
        # Asked again, it says from where, and signs.
        answer = files.do("cosign", state, LOG, request(size, size + 3))
        if answer == [409, size + 3]:
            answer = files.do("cosign", state, LOG, request(size + 3, size + 3))
        assert answer.startswith("— witness.example/w1 ")
        size += 3
        assert cosigned_size(files.do("shown", state, LOG)) == size


def test_p10_a_checkpoint_that_may_be_kept_is_not_contradicted(
    calls: FailingCalls, files: FaultedFiles, state: Path
) -> None:
    """The name could not be synced: after a power cut either may be there, so neither may be forked from."""
    assert isinstance(files.do("cosign", state, LOG, request(0, 2)), str)
    calls.fail(Calls.SYNCS, nth=1, of="/state\n")
    assert files.do("cosign", state, LOG, request(2, 5)).startswith("refused: ")
    assert calls.has_failed
    assert files.do("cosign", state, LOG, request(2, 6)) == [409, 5]
    assert files.do("cosign", state, LOG, request(5, 5, fork=True)) == [409, 5]


def test_p10_a_witness_that_starts_again_writes_anew_what_it_shows(
    calls: FailingCalls, files: FaultedFiles, state: Path
) -> None:
    """Whoever ran before may have been stopped before its name was synced, or because that failed."""
    assert isinstance(files.do("cosign", state, LOG, request(0, 2)), str)
    calls.fail(Calls.SYNCS, nth=1, of="/state\n")
    assert files.do("cosign", state, LOG, request(2, 5)).startswith("refused: ")
    files.kill()
    calls.fail(Calls.SYNCS, nth=1, of="/state\n", for_ever=True)
    again = FaultedFiles(calls)
    try:
        refused = again.do("shown", state, LOG)
        assert refused.startswith("refused: ")
        assert str(state) in refused
        calls.count(Calls.SYNCS, of="/state\n")
        assert cosigned_size(again.do("shown", state, LOG)) == 5
        assert calls.seen == 1
    finally:
        again.kill()


def test_p10_a_witness_on_a_full_or_read_only_disk_says_so_signs_nothing_and_goes_on_with_space(
    files: FaultedFiles, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", mib=2) as disk:
        assert isinstance(files.do("cosign", disk, LOG, request(0, 2)), str)
        ballast = fill(disk)
        refused = files.do("cosign", disk, LOG, request(2, 5))
        assert "No space left on device" in refused
        assert "free space" in refused
        assert cosigned_size(files.do("shown", disk, LOG)) == 2
        ballast.unlink()
        assert files.do("cosign", disk, LOG, request(2, 5)).startswith("— witness.example/w1 ")
    with failing_disk(tmp_path / "ext4", new_image(tmp_path / "image")) as disk:
        assert isinstance(files.do("cosign", disk, LOG, request(0, 2)), str)
        make_read_only(disk)
        assert "Read-only file system" in files.do("cosign", disk, LOG, request(2, 5))
        assert cosigned_size(files.do("shown", disk, LOG)) == 2


def test_p10_a_witness_remembers_what_it_signed_after_a_power_cut(files: FaultedFiles, tmp_path: Path) -> None:
    image = new_image(tmp_path / "image")
    with failing_disk(tmp_path / "disk", image) as disk:
        for size in range(1, 20):
            assert isinstance(files.do("cosign", disk, LOG, request(size - 1, size)), str)
        fail(disk)
        assert files.do("cosign", disk, LOG, request(19, 20)).startswith("refused: ")
        assert cosigned_size(files.do("shown", disk, LOG)) == 19
    files.kill()
    repair(image)
    with failing_disk(tmp_path / "disk", image) as disk:
        again = FaultedFiles(calls_of_nothing(tmp_path))
        try:
            assert again.do("cosign", disk, LOG, request(18, 20)) == [409, 19]
        finally:
            again.kill()


def calls_of_nothing(folder: Path) -> FailingCalls:
    (folder / "calls").mkdir()
    return FailingCalls(folder / "calls")
