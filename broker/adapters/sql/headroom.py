"""Room on the disk: minting stops while there is still space for revocations."""

import os
from pathlib import Path


class Headroom:
    """Watches the file system of a SQLite store and keeps a reserve file to give up. One thread owns it."""

    def __init__(self, store: Path, *, headroom_bytes: int, reserve_bytes: int = 1 << 20) -> None:
        self._folder = store.parent
        self._log = store.with_name(f"{store.name}-wal")
        self._headroom_bytes = headroom_bytes
        self._reserve_bytes = reserve_bytes
        self._reserve = store.with_name("reserve")
        self._has_reserve = False

    def is_low(self) -> bool:
        """Tell whether less than the headroom is free. Looked at each time: a fast store fills it within 0.1 s."""
        try:
            found = os.statvfs(self._folder)
        except OSError:
            # The write itself will say what is wrong.
            return False
        # A checkpoint copies the log into the store, at once; that room is as good as taken.
        free = found.f_bavail * found.f_frsize - self._log_bytes()
        # What was given up is taken back only when the headroom stays free.
        if not self._has_reserve and free >= self._headroom_bytes + self._reserve_bytes:
            self._has_reserve = self._refill()
        return free < self._headroom_bytes

    def give_up(self) -> bool:
        """Remove the reserve file; return whether there was one."""
        self._has_reserve = False
        try:
            self._reserve.unlink()
        except OSError:
            return False
        return True

    def _refill(self) -> bool:
        try:
            handle = os.open(self._reserve, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError:
            return False
        try:
            os.posix_fallocate(handle, 0, self._reserve_bytes)
        except OSError:
            self._reserve.unlink(missing_ok=True)
            return False
        finally:
            os.close(handle)
        return True

    def _log_bytes(self) -> int:
        try:
            return self._log.stat().st_size
        except OSError:
            return 0
