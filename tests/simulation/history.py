"""What happened in a run, in its order: one line for each event, and one hash for all of them."""

import hashlib

from tests.simulation.loop import SimLoop
from tests.simulation.nodes import NS_PER_S


class History:
    """Lines with their true time. Holds no signature and nothing else that differs between equal runs."""

    def __init__(self, loop: SimLoop) -> None:
        self._loop = loop
        self._lines: list[str] = []

    def add(self, who: str, what: str, *said: object) -> None:
        """Note an event."""
        self._lines.append(f"{self._loop.now_ns} {who} {what} {' '.join(map(str, said))}")

    def digest(self) -> str:
        """Return the hash of all of it."""
        return hashlib.sha256("\n".join(self._lines).encode()).hexdigest()

    def text(self) -> str:
        """Return it for people, with seconds."""
        lines = []
        for line in self._lines:
            at, _, rest = line.partition(" ")
            lines.append(f"{int(at) / NS_PER_S:12.6f} {rest}")
        return "\n".join(lines)

    def __len__(self) -> int:
        return len(self._lines)
