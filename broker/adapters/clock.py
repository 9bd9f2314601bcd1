"""The process's clock: it runs on from the start's reading, whatever is done to the machine's wall clock."""

import time
from datetime import UTC, datetime, timedelta

ASTRAY = timedelta(seconds=60)


class SystemClock:
    """The Clock port."""

    def __init__(self) -> None:
        self._wall_at_start = datetime.now(UTC)
        self._boottime_at_start_ns = self.boottime_ns()

    def now(self) -> datetime:
        """As the port says."""
        elapsed_ns = self.boottime_ns() - self._boottime_at_start_ns
        return self._wall_at_start + timedelta(microseconds=elapsed_ns // 1000)

    def boottime_ns(self) -> int:
        """As the port says."""
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME)

    def is_astray(self) -> str | None:
        """As the port says."""
        apart = datetime.now(UTC) - self.now()
        if abs(apart) <= ASTRAY:
            return None
        return f"the machine's clock has moved {apart.total_seconds():.0f} s since the broker started"
