"""What a verifier takes from the outside: clocks and randomness, passed in so that a simulation can bring its own."""

import random
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass


def boottime_ns() -> int:
    """Return the clock that counts while the machine sleeps."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


@dataclass(frozen=True, slots=True)
class Outside:
    """The real outside, unless told otherwise."""

    boottime_ns: Callable[[], int] = boottime_ns
    """CLOCK_BOOTTIME: what the lease is counted by."""
    monotonic_s: Callable[[], float] = time.monotonic
    """What the event loop's timers are counted by."""
    random_bytes: Callable[[int], bytes] = secrets.token_bytes
    """So many bytes that nobody can guess."""
    fraction: Callable[[], float] = random.random
    """At least 0 and less than 1; spreads, and hides nothing."""


OUTSIDE = Outside()
