"""The process's clock: it runs on from the start's reading, whatever is done to the machine's wall clock."""

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

ASTRAY = timedelta(seconds=60)


def _wall() -> datetime:
    return datetime.now(UTC)


class SystemClock:
    """The Clock port. It is doubted when the machine's wall clock, or a witness outside, is more than 60 s away."""

    def __init__(self, *, read_wall: Callable[[], datetime] = _wall) -> None:
        self._read_wall = read_wall
        self._wall_at_start = read_wall()
        self._boottime_at_start_ns = self.boottime_ns()
        # Replaced as wholes, so that readers need no lock.
        self._apart: dict[str, timedelta] = {}
        self._not_before: dict[str, datetime] = {}

    def now(self) -> datetime:
        """As the port says."""
        elapsed_ns = self.boottime_ns() - self._boottime_at_start_ns
        return self._wall_at_start + timedelta(microseconds=elapsed_ns // 1000)

    def boottime_ns(self) -> int:
        """As the port says."""
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME)

    def is_astray(self) -> str | None:
        """As the port says."""
        moved = self._read_wall() - self.now()
        if abs(moved) > ASTRAY:
            return f"the machine's clock has moved {_seconds(moved)} since the broker started; set it right and restart"
        for witness, apart in self._apart.items():
            if abs(apart) > ASTRAY:
                side = "behind" if apart > timedelta() else "ahead of"
                return f"the broker's clock is {_seconds(abs(apart))} {side} {witness}"
        for witness, at in self._not_before.items():
            behind = at - self.now()
            if behind > ASTRAY:
                return f"the broker's clock is {_seconds(behind)} behind {witness}"
        return None

    def compare(self, witness: str, theirs: datetime) -> None:
        """Take note of what another clock says now; the latest word of each witness counts."""
        self._apart = {**self._apart, witness: theirs - self.now()}

    def not_before(self, witness: str, at: datetime) -> None:
        """Take note of an instant that has passed already."""
        self._not_before = {**self._not_before, witness: at}


def _seconds(span: timedelta) -> str:
    return f"{span.total_seconds():.0f} s"
