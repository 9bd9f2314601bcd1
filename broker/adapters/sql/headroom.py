"""Room on the disk: minting stops while there is still space for revocations."""

import os
import time
from pathlib import Path

CHECK_EVERY_S = 0.1


class Headroom:
    """Watches the file system of a SQLite store and keeps a reserve file to give up. One thread owns it."""

    def __init__(self, folder: Path, *, headroom_bytes: int, reserve_bytes: int = 1 << 20) -> None:
        self._folder = folder
        self._headroom_bytes = headroom_bytes
        self._reserve_bytes = reserve_bytes
        self._reserve = folder / "reserve"
        self._checked_at = float("-inf")
        self._is_low = False

    def is_low(self) -> bool:
        """Tell whether less than the headroom is free; looks at most every 100 ms."""
        now = time.monotonic()
        if now - self._checked_at >= CHECK_EVERY_S:
            self._checked_at = now
            try:
                free = os.statvfs(self._folder)
            except OSError:
                # The write itself will say what is wrong.
                return False
            self._is_low = free.f_bavail * free.f_frsize < self._headroom_bytes
            if not self._is_low:
                self.refill()
        return self._is_low

    def refill(self) -> None:
        """Make the reserve file unless it is there; a disk that is full or read-only has none."""
        if self._reserve.exists():
            return
        try:
            handle = os.open(self._reserve, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError:
            return
        try:
            os.posix_fallocate(handle, 0, self._reserve_bytes)
        except OSError:
            self._reserve.unlink(missing_ok=True)
        finally:
            os.close(handle)

    def give_up(self) -> bool:
        """Remove the reserve file; return whether there was one."""
        self._checked_at = float("-inf")
        try:
            self._reserve.unlink()
        except OSError:
            return False
        return True
