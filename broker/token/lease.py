"""How long a verifier may accept, and what time it is: two machines' clocks are never compared.

The derivation is in the design: a verifier sends its clock c1, the broker answers with its clock s1.
The instant s1 was not before c1, so a broker instant s is not before c1 + (s - s1) on the verifier's
clock, less drift. All instants are CLOCK_BOOTTIME in nanoseconds; all rounding refuses.
"""

from dataclasses import dataclass

# What a disciplined clock may be off by, each of the two: the kernel slews by no more.
DRIFT_PPM = 500
_MILLION = 1_000_000
_NS_PER_MS = 1_000_000


@dataclass(frozen=True, slots=True)
class EchoPoint:
    """One echo: the broker process `boot` read `broker_ns` not before the verifier read `verifier_ns`."""

    boot: str
    verifier_ns: int
    broker_ns: int


def drift_ns(span_ns: int) -> int:
    """Return how far two clocks can part over a span that one of them counted, rounded up.

    Most when that one is slow and the other fast: then the other counts (1 + d) / (1 - d) of it.
    """
    return -(-abs(span_ns) * 2 * DRIFT_PPM // (_MILLION - DRIFT_PPM))


def earliest_ns(echo: EchoPoint, as_of_ns: int) -> int:
    """Return an instant of the verifier's clock that the broker's instant `as_of_ns` is certainly not before."""
    since_ns = as_of_ns - echo.broker_ns
    return echo.verifier_ns + since_ns - drift_ns(since_ns)


def accept_until_ns(echo: EchoPoint, as_of_ns: int, lease_ns: int) -> int:
    """Return the last instant at which a frame with this `as_of_ns` lets the verifier accept (P5)."""
    return earliest_ns(echo, as_of_ns) + lease_ns - drift_ns(lease_ns)


@dataclass(frozen=True, slots=True)
class BrokerTime:
    """The broker's wall clock as a verifier can know it from one frame.

    The frame's `wall_ms` was read at an instant between `earliest_ns` and `arrived_ns` of the verifier's
    clock. Expiry is judged by the latest time it can be, the beginning of a life by the earliest.
    """

    wall_ms: int
    earliest_ns: int
    arrived_ns: int

    def latest_ms(self, now_ns: int) -> int:
        """Return the latest that the broker's wall clock can show now."""
        since_ns = now_ns - self.earliest_ns
        # One more: `wall_ms` is what is left when the broker's clock is cut to whole milliseconds.
        return self.wall_ms + 1 - (-(since_ns + drift_ns(since_ns)) // _NS_PER_MS)

    def earliest_ms(self, now_ns: int) -> int:
        """Return the earliest that the broker's wall clock can show now."""
        since_ns = now_ns - self.arrived_ns
        return self.wall_ms + (since_ns - drift_ns(since_ns)) // _NS_PER_MS
