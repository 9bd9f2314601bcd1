"""P11: what a journal took is there after anything short of a lost disk, and half a record harms no other."""

import os
import signal
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.errors import ReceiptsUnkept
from broker.sdk.journal import MAX_RECORD_BYTES, Journal
from tests.waiting import eventually


def opened(folder: Path, max_bytes: int = 1 << 22) -> Journal:
    return Journal(folder, max_bytes=max_bytes)


def record(number: int) -> bytes:
    return f"record {number} ".encode() * (1 + number % 7)


def everything(journal: Journal, after: int = 0, at_once: int = 7) -> list[tuple[int, bytes]]:
    found: list[tuple[int, bytes]] = []
    while some := journal.read(found[-1][0] if found else after, at_once):
        found += some
    return found


def segments(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.seg"))


def test_records_are_numbered_from_one_and_read_as_they_were_written(tmp_path):
    journal = opened(tmp_path)
    assert [journal.append(record(number)) for number in range(1, 51)] == list(range(1, 51))
    assert everything(journal) == [(number, record(number)) for number in range(1, 51)]
    assert everything(journal, after=48) == [(49, record(49)), (50, record(50))]
    # Again from the beginning, whatever was read before.
    assert journal.read(0, 1) == [(1, record(1))]


def test_what_was_written_is_there_for_the_next_process_without_a_sync(tmp_path):
    first = opened(tmp_path)
    for number in range(1, 21):
        first.append(record(number))
    second = opened(tmp_path)
    assert second.next == 21
    assert everything(second) == [(number, record(number)) for number in range(1, 21)]


def test_p11_a_process_that_is_killed_loses_nothing_that_append_returned_for(tmp_path):
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        journal = opened(tmp_path)
        while True:
            os.write(tell, struct.pack("<Q", journal.append(record(journal.next))))
    os.close(tell)
    heard = os.read(told, 8)
    while struct.unpack("<Q", heard)[0] < 500:
        heard = os.read(told, 8)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    last = struct.unpack("<Q", heard)[0]
    while rest := os.read(told, 8):
        last = struct.unpack("<Q", rest)[0]
    os.close(told)
    kept = everything(opened(tmp_path), at_once=1000)
    assert [number for number, _ in kept[:last]] == list(range(1, last + 1))
    assert len(kept) in (last, last + 1)


@settings(max_examples=60, deadline=None)
@given(cut=st.integers(1, 400), junk=st.binary(max_size=40))
def test_a_torn_tail_is_passed_over(tmp_path_factory, cut, junk):
    folder = tmp_path_factory.mktemp("journal")
    journal = opened(folder)
    ends = [journal.append(record(number)) and journal.size for number in range(1, 31)]
    [segment] = segments(folder)
    data = segment.read_bytes()
    torn = data[:-cut] + junk
    segment.write_bytes(torn)
    # Junk can be just what was cut off.
    whole = sum(torn[:end] == data[:end] for end in ends)
    after = opened(folder)
    found = everything(after)
    # Junk that happens to be a whole record with its checksum is not to be had by chance.
    assert found == [(number, record(number)) for number in range(1, whole + 1)]
    assert after.next == whole + 1


def test_a_damaged_record_costs_no_other_segment_and_the_gap_is_seen(tmp_path):
    journal = opened(tmp_path, max_bytes=16_384)
    for number in range(1, 301):
        journal.append(record(number))
    middle = segments(tmp_path)[1]
    first, following = int(middle.stem), int(segments(tmp_path)[2].stem)
    data = bytearray(middle.read_bytes())
    data[20] ^= 1
    middle.write_bytes(data)
    numbers = [number for number, _ in everything(opened(tmp_path, max_bytes=16_384))]
    assert numbers == [*range(1, first), *range(following, 301)]


def test_what_is_acknowledged_is_removed_and_numbers_go_on(tmp_path):
    journal = opened(tmp_path, max_bytes=16_384)
    for number in range(1, 201):
        journal.append(record(number))
    before = journal.size
    journal.drop(150)
    assert journal.size < before
    assert everything(journal, after=150)[0] == (151, record(151))
    journal.drop(200)
    assert len(segments(tmp_path)) == 1
    assert journal.append(b"more") == 201
    assert everything(journal, after=200) == [(201, b"more")]
    assert sum(path.stat().st_size for path in segments(tmp_path)) == journal.size


def test_a_journal_that_never_had_a_record_has_nothing_to_drop_or_read(tmp_path):
    journal = opened(tmp_path)
    journal.drop(0)
    journal.drop(7)
    journal.sync()
    assert everything(journal) == []
    assert journal.append(b"one") == 1


def test_p7_at_its_limit_nothing_is_taken_until_something_is_acknowledged(tmp_path):
    journal = opened(tmp_path, max_bytes=8192)
    taken = 0
    with pytest.raises(ReceiptsUnkept, match="wait for the broker"):
        while True:
            journal.append(record(3))
            taken += 1
    assert sum(path.stat().st_size for path in segments(tmp_path)) <= 8192
    assert len(everything(journal)) == taken
    journal.drop(taken)
    assert journal.append(record(3)) == taken + 1


def test_a_record_that_is_too_long_is_refused(tmp_path):
    with pytest.raises(ReceiptsUnkept):
        opened(tmp_path).append(bytes(MAX_RECORD_BYTES + 1))


def test_in_a_forked_child_the_journal_is_the_parents(tmp_path):
    journal = opened(tmp_path)
    journal.append(b"one")
    child = os.fork()
    if child == 0:
        journal.forget_after_fork()
        try:
            journal.append(b"two")
        except ReceiptsUnkept:
            os._exit(0)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert journal.append(b"three") == 2
    assert everything(opened(tmp_path)) == [(1, b"one"), (2, b"three")]


def test_p11_what_a_failed_sync_covered_is_in_another_file_with_the_same_records(tmp_path):
    journal = opened(tmp_path, max_bytes=16_384)
    for number in range(1, 301):
        journal.append(record(number))
    before = everything(journal)
    files = {segment: segment.stat().st_ino for segment in segments(tmp_path)}
    # As after a sync that failed; the segment that is written to is another one from then on.
    journal.problem, journal._doubtful = "receipts cannot be kept: a test", {int(one.stem) for one in files}
    journal._set_aside()
    with pytest.raises(ReceiptsUnkept):
        journal.append(b"more")
    journal.mend()
    assert journal.problem == ""
    assert {segment: segment.stat().st_ino for segment in segments(tmp_path)}.keys() == files.keys()
    assert all(segment.stat().st_ino != inode for segment, inode in files.items())
    assert everything(opened(tmp_path, max_bytes=16_384)) == before
    assert journal.append(b"more") == 301
    journal.sync()
    assert journal.size == sum(path.stat().st_size for path in segments(tmp_path))


def test_threads_get_numbers_of_their_own(tmp_path):
    import threading

    journal = opened(tmp_path)
    numbers: list[int] = []
    threads = [
        threading.Thread(target=lambda: numbers.extend(journal.append(b"x" * 40) for _ in range(500))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    eventually(lambda: not any(thread.is_alive() for thread in threads), "the threads are done")
    assert sorted(numbers) == list(range(1, 2001))
    assert len(everything(journal, at_once=100)) == 2000
