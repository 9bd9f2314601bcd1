"""P7, P11: a journal on a disk that is full or fails refuses, keeps what it took, and goes on when it can."""

from pathlib import Path

import pytest

from broker.errors import ReceiptsUnkept
from broker.sdk.journal import Journal
from broker.sdk.receipting import ReceiptPace, Receipts
from broker.sdk.spool import new_spool
from tests.mounts import fail, failing_disk, fill, make_read_only, new_image, small_disk


def until_refused(journal: Journal) -> int:
    """Append until it refuses; return the last number."""
    with pytest.raises(ReceiptsUnkept, match="cannot be kept"):
        while True:
            journal.append(b"x" * 100)
    return journal.next - 1


def numbers(folder: Path) -> list[int]:
    journal = Journal(folder, max_bytes=1 << 24)
    assert not journal.is_torn
    found: list[int] = []
    while some := journal.read(found[-1] if found else 0, 10_000):
        found += [number for number, _ in some]
    return found


def test_a_full_disk_tears_no_record_and_the_journal_goes_on_when_there_is_space(tmp_path):
    with small_disk(tmp_path / "disk", mib=2) as disk:
        journal = Journal(disk, max_bytes=1 << 24)
        for _ in range(3):
            journal.append(b"one")
            ballast = fill(disk)
            last = until_refused(journal)
            assert journal.problem
            # Not by itself, and not as long as the disk is full.
            journal.mend()
            with pytest.raises(ReceiptsUnkept):
                journal.append(b"two")
            assert numbers(disk) == list(range(1, last + 1))
            ballast.unlink()
            journal.mend()
            assert journal.append(b"three") == last + 1
            journal.sync()
        assert not journal.problem
        journal.close()
        assert numbers(disk) == list(range(1, last + 2))


def test_a_disk_that_turned_read_only_refuses_and_what_was_taken_can_be_read(tmp_path):
    with failing_disk(tmp_path / "disk", new_image(tmp_path / "image")) as disk:
        journal = Journal(disk, max_bytes=1 << 24)
        journal.append(b"one")
        make_read_only(disk)
        last = until_refused(journal)
        journal.mend()
        assert journal.problem
        assert [number for number, _ in journal.read(0, 10_000)] == list(range(1, last + 1))
        journal.close()


def test_after_a_failed_sync_nothing_more_is_taken(tmp_path):
    with failing_disk(tmp_path / "disk", new_image(tmp_path / "image")) as disk:
        journal = Journal(disk, max_bytes=1 << 24)
        journal.append(b"one")
        fail(disk)
        journal.sync()
        assert journal.problem
        with pytest.raises(ReceiptsUnkept):
            journal.append(b"two")
        journal.mend()
        assert journal.problem
        journal.close()


def test_on_a_full_disk_no_half_folder_is_left(tmp_path):
    with small_disk(tmp_path / "disk", mib=2) as disk:
        (disk / "state").mkdir()
        ballast = fill(disk)
        with pytest.raises(OSError, match=r".*"):
            for _ in range(2000):
                new_spool(disk / "state", "evaluation", "an-incarnation", max_bytes=1 << 20)
        ballast.unlink()
        assert not list((disk / "state").rglob(".new-*"))


def test_p7_without_a_folder_that_can_be_written_nothing_is_kept(tmp_path):
    blocked = tmp_path / "state"
    blocked.write_text("a file where a folder should be")
    receipts = Receipts(blocked, "evaluation", lambda: None, pace=ReceiptPace())
    with pytest.raises(ReceiptsUnkept):
        receipts.accepted('1,"token-id-0","mythos"', 1, 1, None)
    receipts.close(drain_s=0.1)
