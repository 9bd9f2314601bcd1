"""P5: the lease never outlasts the broker's word, over any drift, delay and order of echo and frame."""

from fractions import Fraction

from hypothesis import given, settings
from hypothesis import strategies as st

from broker.token.lease import DRIFT_PPM, BrokerTime, EchoPoint, accept_until_ns, drift_ns, earliest_ns

NS_PER_MS = 1_000_000
rates = st.integers(-DRIFT_PPM, DRIFT_PPM).map(lambda ppm: 1 + Fraction(ppm, 1_000_000))
spans = st.integers(0, 3 * 86_400 * 10**9)
delays = st.integers(0, 90 * 10**9)
starts = st.integers(0, 10**18)


class Clocks:
    """Real time is the broker's clock; the verifier's runs at `rate` of it, from somewhere else."""

    def __init__(self, broker_ns: int, verifier_ns: int, rate: Fraction) -> None:
        self.broker0, self.verifier0, self.rate = broker_ns, verifier_ns, rate

    def broker(self, real_ns: int) -> int:
        return self.broker0 + real_ns

    def verifier(self, real_ns: int) -> int:
        """As read: whole nanoseconds that have passed."""
        return self.verifier0 + (self.rate * real_ns).__floor__()

    def real(self, verifier_ns: int) -> Fraction:
        """The latest instant at which the verifier still reads `verifier_ns`."""
        return Fraction(verifier_ns + 1 - self.verifier0) / self.rate


worlds = st.builds(Clocks, starts, starts, rates)


@settings(max_examples=2000, deadline=None, derandomize=True)
@given(worlds, spans, delays, spans, st.integers(1, 60_000))
def test_p5_nobody_accepts_later_than_a_lease_after_the_store_was_read(world, asked, delay, read, lease_ms):
    """The frame may be read long before or long after the echo; the echo may take any time to arrive."""
    echo = EchoPoint("boot", world.verifier(asked), world.broker(asked + delay))
    lease_ns = lease_ms * NS_PER_MS
    until_ns = accept_until_ns(echo, world.broker(read), lease_ns)
    # One nanosecond is what reading a clock in whole ones costs.
    assert world.real(until_ns) <= read + lease_ns + 2


@settings(max_examples=1000, deadline=None, derandomize=True)
@given(worlds, spans, delays, spans)
def test_p5_the_earliest_instant_is_never_after_the_true_one(world, asked, delay, read):
    echo = EchoPoint("boot", world.verifier(asked), world.broker(asked + delay))
    assert earliest_ns(echo, world.broker(read)) <= world.verifier(read) + 1


@settings(max_examples=2000, deadline=None, derandomize=True)
@given(worlds, spans, delays, spans, delays, spans, st.integers(0, 999_999), starts)
def test_the_broker_s_wall_clock_lies_between_its_bounds(world, asked, delay, read, way, since, cut_ns, wall0):
    """`wall0`: what the broker's wall clock shows at real 0, in nanoseconds; frames carry whole milliseconds."""
    echo = EchoPoint("boot", world.verifier(asked), world.broker(asked + delay))
    arrived = read + way
    wall_ns = wall0 + read + cut_ns
    earliest = min(earliest_ns(echo, world.broker(read)), world.verifier(arrived))
    time = BrokerTime(wall_ns // NS_PER_MS, earliest, world.verifier(arrived))
    now = arrived + since
    true_ms = Fraction(wall0 + now + cut_ns, NS_PER_MS)
    now_ns = world.verifier(now)
    assert time.earliest_ms(now_ns) <= true_ms
    assert true_ms <= time.latest_ms(now_ns) + Fraction(1, 1000)


def test_the_usual_case_loses_little():
    """An echo of 1 ms, a frame 30 s later, a lease of 5 s: what caution costs is some 20 ms."""
    echo = EchoPoint("boot", 1_000_000_000, 77_000_500_000)
    until_ns = accept_until_ns(echo, 77_000_500_000 + 30_000_000_000, 5_000_000_000)
    assert 36_000_000_000 - 20_000_000 < until_ns <= 36_000_000_000


def test_drift_is_rounded_up():
    assert (drift_ns(0), drift_ns(1), drift_ns(2000), drift_ns(2001), drift_ns(-2001)) == (0, 1, 1, 2, 2)


def test_an_instant_that_lies_before_its_echo_is_not_trusted_more():
    echo = EchoPoint("boot", 10**12, 10**12)
    assert earliest_ns(echo, 10**12 - 10**9) < 10**12 - 10**9
    assert BrokerTime(5, 0, 0).latest_ms(0) >= 5
