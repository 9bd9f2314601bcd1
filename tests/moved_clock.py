"""The real clock, which a test can move on."""

from datetime import datetime, timedelta

from broker.adapters.clock import SystemClock


class MovedClock:
    """The Clock port; `advance` moves wall clock and boot time alike."""

    def __init__(self) -> None:
        self._real = SystemClock()
        self._moved = timedelta()

    def advance(self, seconds: float) -> None:
        self._moved += timedelta(seconds=seconds)

    def now(self) -> datetime:
        return self._real.now() + self._moved

    def boottime_ns(self) -> int:
        return self._real.boottime_ns() + int(self._moved.total_seconds() * 1e9)

    def is_astray(self) -> str | None:
        return None
