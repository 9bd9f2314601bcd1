"""What a verifier keeps on disk so that it never goes back: its mark, replaced atomically."""

import contextlib
import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from broker.errors import ConfigInvalid, FrameForked, StoreCorrupt, StoreUnavailable
from broker.sdk.following import Mark
from broker.token.identifiers import identifier

MAX_FILE_BYTES = 4096
_RESTORE = "restore the file, or remove it if this verifier may start afresh"
_MEND = "free space there, or mend it; it goes on by itself"


class Remembered:
    """One realm's mark in a folder. Several processes may share the folder: the farthest mark is kept.

    Raises:
        ConfigInvalid: The folder cannot be written to.
    """

    # What this process itself saw to the disk. A file that can be read need not outlive a power cut: its name, or
    # another process's, may be one whose sync failed.
    _durable: Mark | None = None

    def __init__(self, folder: str | Path, realm: str) -> None:
        self._folder = Path(folder)
        self._realm = identifier("realm", realm)
        self._file = self._folder / f"{realm}.mark"
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            # On a full disk a file can still be made; only what is written tells.
            with self._alone(), tempfile.NamedTemporaryFile(dir=self._folder, buffering=0) as file:
                file.write(bytes(MAX_FILE_BYTES))
                os.fsync(file.fileno())
        except OSError as bad:
            raise ConfigInvalid(
                "state_dir", (f"{self._folder}: {bad.strerror or bad}; name a folder that this process can write to",)
            ) from bad

    def load(self) -> Mark | None:
        """Return what was kept, or None when nothing was.

        Raises:
            StoreCorrupt: The file is damaged. Going on without it could go back (P7).
        """
        try:
            data = self._file.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as bad:
            raise StoreCorrupt(f"{self._file} cannot be read: {bad.strerror}", hint=_RESTORE) from bad
        return self._parsed(data)

    def save(self, mark: Mark) -> None:
        """Keep `mark`, durably before it returns, unless a farther one is kept already.

        Raises:
            FrameForked: Another process keeps another incarnation here.
            StoreCorrupt: The file is damaged.
            StoreUnavailable: It may not be kept. The one before or this one is there, whole; the next time it is
                written anew.
        """
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self._alone():
                self._keep(mark)
        except OSError as bad:
            raise StoreUnavailable(f"{self._folder} cannot be written: {bad.strerror or bad}", hint=_MEND) from bad

    def _keep(self, mark: Mark) -> None:
        kept = self.load()
        head, wall_ms = mark.head, mark.highest_wall_ms
        if kept is not None:
            is_left = kept.incarnation in mark.left
            if kept.incarnation != mark.incarnation and not is_left:
                raise FrameForked("another process of this folder follows another incarnation of the ledger")
            head = head if is_left else max(head, kept.head)
            wall_ms = max(wall_ms, kept.highest_wall_ms)
        mark = Mark(mark.incarnation, head, wall_ms)
        if mark != kept or mark != self._durable:
            self._write(self._spelled(mark))
            self._durable = mark

    def _write(self, data: bytes) -> None:
        with tempfile.NamedTemporaryFile(dir=self._folder, prefix=f"{self._realm}.", delete=False) as file:
            try:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
                Path(file.name).replace(self._file)
            except OSError:
                Path(file.name).unlink(missing_ok=True)
                raise
        # The new name is durable only with its folder.
        folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        with (self._folder / f"{self._realm}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _spelled(self, mark: Mark) -> bytes:
        line = json.dumps(
            {
                "format": 1,
                "head": mark.head,
                "highest_wall_ms": mark.highest_wall_ms,
                "incarnation": mark.incarnation,
                "realm": self._realm,
            },
            sort_keys=True,
        ).encode("ascii")
        return line + b"\n" + hashlib.sha256(line).hexdigest().encode("ascii") + b"\n"

    def _parsed(self, data: bytes) -> Mark:
        line, _, digest = data.partition(b"\n")
        if len(data) > MAX_FILE_BYTES or digest != hashlib.sha256(line).hexdigest().encode("ascii") + b"\n":
            raise StoreCorrupt(f"{self._file} is damaged", hint=_RESTORE)
        try:
            kept = json.loads(line)
            mark = Mark(kept["incarnation"], kept["head"], kept["highest_wall_ms"])
        except (ValueError, KeyError, TypeError) as bad:
            raise StoreCorrupt(f"{self._file} is not a verifier's mark", hint=_RESTORE) from bad
        if kept.get("format") != 1 or kept.get("realm") != self._realm:
            raise StoreCorrupt(f"{self._file} is of another realm or version", hint=_RESTORE)
        return mark
