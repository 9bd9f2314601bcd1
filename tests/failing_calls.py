"""Makes single writes and syncs of a real process fail or take long: as `fiu-run`, with nothing but a C compiler."""

import errno
import mmap
import struct
import subprocess
from enum import IntFlag
from pathlib import Path

SOURCE = Path(__file__).with_suffix(".c")
ORDERS = struct.Struct("6i104s")
SEEN_AT = 5


class Calls(IntFlag):
    """Kinds of system calls, as the library counts them."""

    WRITES = 1
    SYNCS = 2
    CUTS = 4


ALL = Calls.WRITES | Calls.SYNCS | Calls.CUTS


class FailingCalls:
    """A library to preload, and what it does now to those who did. Orders hold from the moment they are given."""

    def __init__(self, folder: Path) -> None:
        library, orders = folder / "failing_calls.so", folder / "failing_calls.orders"
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, SOURCE, "-ldl"], check=True)
        orders.write_bytes(bytes(ORDERS.size))
        # PostgreSQL's own user must be able to map it.
        orders.chmod(0o666)
        with orders.open("r+b") as file:
            self._shared = mmap.mmap(file.fileno(), ORDERS.size)
        self.environment = {"LD_PRELOAD": str(library), "FAILING_CALLS": str(orders)}

    def fail(self, kinds: Calls, *, nth: int, of: str, error: int = errno.EIO, for_ever: bool = False) -> None:
        """Let the `nth` call from now on a file with `of` in its path fail, once or from then on."""
        self._order(kinds, of, left=nth, error=error, for_ever=for_ever)

    def slow_down(self, kinds: Calls, *, of: str, by_ms: int) -> None:
        """Let each such call take so much longer."""
        self._order(kinds, of, delay_ms=by_ms)

    def count(self, kinds: Calls, *, of: str) -> None:
        """Let everything be, and count."""
        self._order(kinds, of)

    def stop(self) -> None:
        """Let everything be."""
        self._order(Calls(0), "")

    @property
    def seen(self) -> int:
        """How many calls counted since the last order."""
        return int(ORDERS.unpack(self._shared[:])[SEEN_AT])

    @property
    def has_failed(self) -> bool:
        """Whether the call that was to fail once has."""
        return int(ORDERS.unpack(self._shared[:])[1]) == 0

    def _order(
        self, kinds: Calls, of: str, *, left: int = 0, error: int = 0, for_ever: bool = False, delay_ms: int = 0
    ) -> None:
        # Nothing is wanted while the rest changes.
        self._shared[:4] = bytes(4)
        self._shared[4:] = ORDERS.pack(0, left, error, for_ever, delay_ms, 0, of.encode())[4:]
        self._shared[:4] = struct.pack("i", kinds)
