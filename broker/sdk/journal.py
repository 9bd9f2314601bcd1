"""A journal on disk: records appended to bounded segments, numbered, checked when read, dropped when told.

A record is its length and CRC-32 (little-endian, 4 bytes each), then itself. A segment begins with eight bytes
that say what it is, and the number of its first record (8 bytes); its name is that number.

What `append` returned for is in the kernel: it survives the death of the process. `sync` makes it survive the
death of the machine; its owner calls it every so often, so a power cut loses what came since. A record that was
not written whole is cut off, or passed over when it is read; those around it are not harmed.

After a sync that failed, a second one of the same file may succeed although nothing was written: the kernel drops
what it could not write, and forgets that it did. So `mend` reads back what the sync was to cover, while memory still
has it, and writes it to another file.
"""

import logging
import os
import struct
import threading
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from broker.errors import ReceiptsUnkept

MAGIC = b"BRKRCPT1"
_HEADER = struct.Struct("<8sQ")
_FRAME = struct.Struct("<II")
SEGMENT_BYTES = 1 << 20
MAX_RECORD_BYTES = 4096
PROBE_BYTES = 64 << 10
_ENDING = ".seg"
_ANEW = "anew"
log = logging.getLogger("broker.sdk")


@dataclass(slots=True)
class _Cursor:
    """Where the record after `number` begins."""

    first: int
    offset: int
    number: int


class Journal:
    """One folder's segments. `append` from any thread; the others from one, `drop` not of what is still to be read.

    Raises:
        OSError: The folder cannot be read or written.
    """

    def __init__(self, folder: Path, *, max_bytes: int, is_writable: bool = True) -> None:
        self.problem = ""
        """Why nothing can be appended; empty while all is well."""
        self._folder = folder
        self._max_bytes = max_bytes
        # So small that what is acknowledged makes room before it is all used up.
        self._segment_bytes = min(SEGMENT_BYTES, max_bytes // 4)
        self._is_writable = is_writable
        self._lock = threading.Lock()
        self._fd = -1
        self._begun = 0
        self._good = 0
        self._is_dirty = False
        # First number to a handle of a segment that nothing is written to any more.
        self._to_sync: dict[int, int] = {}
        # Whether the folder has a name that was not synced.
        self._is_named = False
        # Segments whose sync failed.
        self._doubtful: set[int] = set()
        self._cursor: _Cursor | None = None
        # First number to bytes, in their order.
        self._segments = {
            int(path.stem): path.stat().st_size for path in sorted(folder.glob(f"*{_ENDING}")) if path.stem.isdecimal()
        }
        self._bytes = sum(self._segments.values())
        last = max(self._segments, default=0)
        end = _Cursor(last, _HEADER.size, last - 1)
        self.next = last + sum(1 for _ in self._scan(end)) if last else 1
        """The number of the next record."""
        self.is_torn = bool(last) and end.offset != self._segments[last]
        """Whether something that nobody can read stood at its end."""

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return self._bytes

    def append(self, record: bytes) -> int:
        """Hand `record` to the kernel and return its number. Raises ReceiptsUnkept; then nothing was kept."""
        frame = _framed(record)
        if self.problem:
            raise ReceiptsUnkept(self.problem)
        if len(record) > MAX_RECORD_BYTES:
            raise ReceiptsUnkept("what is to be kept is too long", hint="name fewer or shorter things")
        with self._lock:
            if self._bytes + len(frame) > self._max_bytes:
                raise ReceiptsUnkept(
                    f"{self._max_bytes} bytes of receipts wait for the broker already",
                    hint="check the verifier's connection to the broker, or allow it a larger spool",
                )
            try:
                if self._fd < 0 or self._good + len(frame) > self._segment_bytes:
                    self._roll()
                _write(self._fd, frame)
            except OSError as bad:
                self._fail(bad)
                raise ReceiptsUnkept(self.problem) from bad
            number = self.next
            self.next = number + 1
            self._good += len(frame)
            self._bytes += len(frame)
            self._segments[self._begun] = self._good
            self._is_dirty = True
            return number

    def read(self, after: int, most: int) -> list[tuple[int, bytes]]:
        """Return the records after number `after`, at most so many, each with its number.

        The first may have a higher number than the next: those between are lost. No two others are so.
        """
        with self._lock:
            segments, end = dict(self._segments), self.next
        found: list[tuple[int, bytes]] = []
        for first, size in segments.items():
            following = min((other for other in segments if other > first), default=end)
            if following <= after + 1:
                continue
            cursor = self._cursor
            if cursor is None or cursor.first != first or cursor.number > after:
                cursor = self._cursor = _Cursor(first, _HEADER.size, first - 1)
            for number, record in self._scan(cursor, limit=size):
                if number > after:
                    found.append((number, record))
                if len(found) >= most:
                    return found
            if found:
                return found
        return found

    def drop(self, through: int) -> None:
        """Remove the segments whose records all have a number up to `through`."""
        with self._lock:
            firsts = list(self._segments)
            ends = [*firsts[1:], self.next][: len(firsts)]
            # Not the one that is written to: that would make a new file for each few receipts. Nor one for people.
            held = self._begun if self._fd >= 0 else max(firsts, default=0) if self.is_torn else -1
            gone = [first for first, end in zip(firsts, ends, strict=True) if end <= through + 1 and first != held]
            for first in gone:
                with suppress(FileNotFoundError):
                    self._path(first).unlink()
                self._bytes -= self._segments.pop(first)
            self._doubtful.difference_update(gone)

    def sync(self) -> None:
        """Make what was appended survive a power cut. After a failure nothing more goes to the same files."""
        with self._lock:
            try:
                # A copy: the segment may be closed meanwhile.
                current = {self._begun: os.dup(self._fd)} if self._fd >= 0 and self._is_dirty else {}
            except OSError as bad:
                self.problem = _told(bad)
                return
            done, self._to_sync = self._to_sync | current, {}
            is_named, self._is_named, self._is_dirty = self._is_named, False, False
        try:
            for fd in done.values():
                os.fdatasync(fd)
            if is_named:
                sync_folder(self._folder)
        except OSError as bad:
            with self._lock:
                self.problem = _told(bad)
                # Also those that were not tried; and a name without records yet, which comes again.
                tried = {*done, self._begun} if is_named and self._fd >= 0 else set(done)
                self._doubtful |= tried & self._segments.keys()
                self._set_aside()
        finally:
            for fd in done.values():
                os.close(fd)

    def mend(self) -> None:
        """Try whether the disk takes something again, after a problem."""
        if not self.problem:
            return
        try:
            self._probe()
            with self._lock:
                if self._fd >= 0:
                    os.ftruncate(self._fd, self._good)
            for first in sorted(self._doubtful):
                self._write_anew(first)
            if self._doubtful:
                sync_folder(self._folder)
                self._doubtful.clear()
            self.problem = ""
        except OSError as bad:
            self.problem = _told(bad)

    def close(self) -> None:
        """Sync and close. Nothing can be appended any more."""
        self.sync()
        with self._lock:
            self.problem = self.problem or "the verifier is closed"
            self._set_aside()
            for fd in self._to_sync.values():
                with suppress(OSError):
                    os.close(fd)
            self._to_sync = {}

    def forget_after_fork(self) -> None:
        """In a child: let go of the parent's files without touching them."""
        self._lock = threading.Lock()
        self.problem = "the process was forked"
        for fd in (self._fd, *self._to_sync.values()):
            if fd >= 0:
                with suppress(OSError):
                    os.close(fd)
        self._fd, self._to_sync = -1, {}

    def _path(self, first: int) -> Path:
        return self._folder / f"{first:020d}{_ENDING}"

    def _roll(self) -> None:
        if not self._is_writable:
            raise OSError(None, "the journal is only read")
        first = self.next
        # There may be one that a problem kept from getting its first record.
        fd = os.open(self._path(first), os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, 0o600)
        header = _HEADER.pack(MAGIC, first)
        try:
            _write(fd, header)
        except OSError:
            os.close(fd)
            raise
        self._set_aside()
        self._forget(first)
        self._is_named = True
        self._bytes += len(header) - self._segments.pop(first, 0)
        self._fd, self._begun, self._good = fd, first, len(header)
        self._segments[first] = len(header)

    def _fail(self, bad: OSError) -> None:
        self.problem = _told(bad)
        if self._fd >= 0:
            try:
                os.ftruncate(self._fd, self._good)
            except OSError:
                # Half a record may stay at its end: a new segment is begun behind it.
                self._set_aside()

    def _set_aside(self) -> None:
        """Append nothing more to the segment. What was is still to be synced."""
        if self._fd >= 0:
            self._to_sync[self._begun] = self._fd
        self._fd = -1

    def _forget(self, first: int) -> None:
        """Sync no more what was written anew, or never got a record and is begun again."""
        fd = self._to_sync.pop(first, -1)
        if fd >= 0:
            with suppress(OSError):
                os.close(fd)

    def _probe(self) -> None:
        probe = self._folder / "probe"
        fd = os.open(probe, os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            _write(fd, bytes(PROBE_BYTES))
            os.fsync(fd)
        finally:
            os.close(fd)
            probe.unlink()

    def _write_anew(self, first: int) -> None:
        """Put a segment's records, as they can be read, into a file that takes its place."""
        size = self._segments[first]
        cursor = _Cursor(first, _HEADER.size, first - 1)
        records = [record for _, record in self._scan(cursor, limit=size)]
        if cursor.offset != size:
            log.error("the disk lost receipts: %s can be read up to number %d only", self._path(first), cursor.number)
        data = b"".join((_HEADER.pack(MAGIC, first), *map(_framed, records)))
        draft = self._folder / _ANEW
        # Over what an attempt that failed has left.
        fd = os.open(draft, os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            _write(fd, data)
            os.fsync(fd)
        finally:
            os.close(fd)
        draft.replace(self._path(first))
        with self._lock:
            self._segments[first] = len(data)
            self._bytes += len(data) - size
            self._forget(first)

    def _scan(self, cursor: _Cursor, limit: int | None = None) -> Iterator[tuple[int, bytes]]:
        """Walk a segment from the cursor, which moves along; stop at what is not whole."""
        try:
            with self._path(cursor.first).open("rb") as file:
                if file.read(_HEADER.size) != _HEADER.pack(MAGIC, cursor.first):
                    return
                file.seek(cursor.offset)
                data = file.read() if limit is None else file.read(max(0, limit - cursor.offset))
        except FileNotFoundError:
            return
        at = 0
        while at + _FRAME.size <= len(data):
            length, checksum = _FRAME.unpack_from(data, at)
            record = data[at + _FRAME.size : at + _FRAME.size + length]
            if length > MAX_RECORD_BYTES or len(record) != length or zlib.crc32(record) != checksum:
                return
            at += _FRAME.size + length
            cursor.offset += _FRAME.size + length
            cursor.number += 1
            yield cursor.number, record


def _framed(record: bytes) -> bytes:
    return _FRAME.pack(len(record), zlib.crc32(record)) + record


def _write(fd: int, data: bytes) -> None:
    if os.write(fd, data) != len(data):
        raise OSError(None, "no space left for receipts")


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut. Raises OSError."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _told(bad: OSError) -> str:
    return f"receipts cannot be kept: {bad.strerror or bad}"
