"""Waiting for a condition with a deadline."""

import threading
import time
from collections.abc import Callable

from broker.errors import Failure


def eventually(condition: Callable[[], object], what: str, *, within_s: float = 10.0) -> float:
    """Wait until `condition` holds and return the seconds it took, or fail."""
    began = time.monotonic()
    waiting = threading.Event()
    while not condition():
        assert time.monotonic() < began + within_s, f"not within {within_s} s: {what}"
        waiting.wait(0.02)
    return time.monotonic() - began


def succeeds(work: Callable[[], object]) -> bool:
    """Tell whether `work` ends without a failure of ours."""
    try:
        work()
    except Failure:
        return False
    return True
