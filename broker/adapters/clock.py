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
        self._corrected = timedelta()
        # By witness, how far it is ahead of us. Replaced as a whole, so that readers need no lock.
        self._apart: dict[str, timedelta] = {}

    def now(self) -> datetime:
        """As the port says."""
        return self._own() + self._corrected

    def boottime_ns(self) -> int:
        """As the port says."""
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME)

    def is_astray(self) -> str | None:
        """As the port says."""
        moved = self._read_wall() - self._own()
        if abs(moved) > ASTRAY:
            return f"the machine's clock has moved {_seconds(moved)} since the broker started; set it right and restart"
        for witness, apart in self._apart.items():
            if abs(apart) > ASTRAY:
                side = "behind" if apart > timedelta() else "ahead of"
                return f"the broker's clock is {_seconds(abs(apart))} {side} {witness}"
        return None

    def compare(self, witness: str, theirs: datetime) -> None:
        """Take note of what another clock says now; the latest word of each witness counts."""
        # Ours is judged as the machine gave it and as it is used.
        apart = max(theirs - self._own(), theirs - self.now(), key=abs)
        self._apart = {**self._apart, witness: apart}

    def correct(self, witness: str, at: datetime) -> None:
        """Go on from `at`, because the start's reading was wrong; until a restart, it stays doubted for that.

        Frames tell verifiers what time it is: from a clock that is behind, dead tokens would live again, and
        live ones would not have begun.
        """
        self._corrected = at - self._own()
        self._apart = {**self._apart, f"{witness} (set it right and restart)": self._corrected}

    def _own(self) -> datetime:
        elapsed_ns = self.boottime_ns() - self._boottime_at_start_ns
        return self._wall_at_start + timedelta(microseconds=elapsed_ns // 1000)


def _seconds(span: timedelta) -> str:
    return f"{span.total_seconds():.0f} s"
