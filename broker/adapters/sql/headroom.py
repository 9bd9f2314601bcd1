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
            free = os.statvfs(self._folder)
            self._is_low = free.f_bavail * free.f_frsize < self._headroom_bytes
            self._checked_at = now
            if not self._is_low:
                self.refill()
        return self._is_low

    def refill(self) -> None:
        """Make the reserve file unless it is there; a disk without space for it has none."""
        if self._reserve.exists():
            return
        handle = os.open(self._reserve, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
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
        except FileNotFoundError:
            return False
        return True
