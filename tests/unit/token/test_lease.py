"""P5: the lease never outlasts the broker's word, over any drift, delay and order of echo and frame."""

import random
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.token.lease import DRIFT_PPM, BrokerTime, EchoPoint, accept_until_ns, drift_ns, earliest_ns

NS_PER_MS = 1_000_000
NS_PER_S = 1_000_000_000
# Each clock by itself may be off by so much, so that the two part by nearly twice of it.
ppms = st.integers(-DRIFT_PPM, DRIFT_PPM) | st.sampled_from([-DRIFT_PPM, DRIFT_PPM])
spans = st.integers(0, 3 * 86_400 * NS_PER_S)
delays = st.integers(0, 90 * NS_PER_S)
starts = st.integers(0, 10**18)


class Clock:
    """Shows whole nanoseconds since a start of its own, and is fast by so many parts in a million."""

    def __init__(self, start_ns: int, ppm: int) -> None:
        self.start_ns, self.rate = start_ns, 1 + Fraction(ppm, 1_000_000)

    def at(self, real_ns: int | Fraction) -> Fraction:
        return self.start_ns + self.rate * real_ns

    def reads(self, real_ns: int | Fraction) -> int:
        return self.at(real_ns).__floor__()

    def until(self, shown_ns: int) -> Fraction:
        """The real instant from which on the clock shows more than `shown_ns`."""
        return (shown_ns + 1 - self.start_ns) / self.rate


clocks = st.builds(Clock, starts, ppms)


@settings(max_examples=2000, deadline=None, derandomize=True)
@given(clocks, clocks, spans, delays, spans, st.integers(1, 60_000))
def test_p5_nobody_accepts_later_than_a_lease_after_the_store_was_read(broker, verifier, asked, delay, read, lease_ms):
    """The frame may be read long before or long after the echo; the echo may take any time to arrive."""
    echo = EchoPoint("boot", verifier.reads(asked), broker.reads(asked + delay))
    lease_ns = lease_ms * NS_PER_MS
    until_ns = accept_until_ns(echo, broker.reads(read), lease_ns)
    # A lease by the broker's clock; a few nanoseconds are what reading clocks in whole ones costs.
    assert broker.at(verifier.until(until_ns)) <= broker.at(read) + lease_ns + 4


@settings(max_examples=1000, deadline=None, derandomize=True)
@given(clocks, clocks, spans, delays, spans)
def test_p5_the_earliest_instant_is_never_after_the_true_one(broker, verifier, asked, delay, read):
    echo = EchoPoint("boot", verifier.reads(asked), broker.reads(asked + delay))
    assert earliest_ns(echo, broker.reads(read)) <= verifier.reads(read) + 2


@settings(max_examples=2000, deadline=None, derandomize=True)
@given(clocks, clocks, spans, delays, spans, delays, spans, starts)
def test_the_broker_s_wall_clock_lies_between_its_bounds(broker, verifier, asked, delay, read, way, since, wall0):
    """`wall0`: how far the broker's wall clock is ahead of its boot clock; frames carry whole milliseconds of it."""
    echo = EchoPoint("boot", verifier.reads(asked), broker.reads(asked + delay))
    arrived, now = read + way, read + way + since
    wall_ms = (broker.reads(read) + wall0) // NS_PER_MS
    earliest = min(earliest_ns(echo, broker.reads(read)), verifier.reads(arrived))
    time = BrokerTime(wall_ms, earliest, verifier.reads(arrived))
    true_ms = (broker.at(now) + wall0) / NS_PER_MS
    now_ns = verifier.reads(now)
    # To the microsecond: expiry is never judged too late, the beginning of a life never too early.
    assert time.earliest_ms(now_ns) <= true_ms + Fraction(1, 1000)
    assert true_ms <= time.latest_ms(now_ns) + Fraction(1, 1000)


@pytest.mark.parametrize("seed", range(40))
def test_p5_over_days_of_echoes_frames_delays_and_sleep_nobody_accepts_what_was_revoked_a_lease_ago(seed):
    """A broker and a verifier as they run: frames and echoes arrive late, twice and in any order, or not at all."""
    print("seed", seed)
    chance = random.Random(seed)
    broker = Clock(chance.randrange(10**18), chance.choice((-DRIFT_PPM, DRIFT_PPM, chance.randint(-500, 500))))
    verifier = Clock(chance.randrange(10**18), chance.choice((-DRIFT_PPM, DRIFT_PPM, chance.randint(-500, 500))))
    wall0, lease_ns = chance.randrange(10**18), chance.choice((500, 5_000, 60_000)) * NS_PER_MS
    now = 0
    asks: list[int] = []
    echoes: list[tuple[int, EchoPoint]] = []
    frames: list[tuple[int, int, int, int]] = []
    best: EchoPoint | None = None
    until_ns, newest_read, time = -1, 0, None
    accepted = refused = 0
    for _ in range(1500):
        # A step, a wait in a queue, or a machine that slept: CLOCK_BOOTTIME counts all of it.
        now += chance.choice((1, 10**5, 10**6, 10**7, 10**7, 10**8, 2 * 10**8, chance.choice((10**9, 10**11, 10**13))))
        match chance.randrange(6):
            case 0:
                asks.append(verifier.reads(now))
            case 1 if asks:
                # The broker answers a question that it got just now, however old it is.
                asked = asks[-1] if chance.random() < 0.8 else chance.choice(asks)
                echoes.append((now, EchoPoint("boot", asked, broker.reads(now))))
            case 2 | 3:
                wall_ms = (broker.reads(now) + wall0) // NS_PER_MS
                frames.append((now, broker.reads(now), wall_ms, now))
            case 4 if echoes:
                best = (echoes[-1] if chance.random() < 0.7 else chance.choice(echoes))[1]
            case _ if frames and best is not None:
                read, as_of_ns, wall_ms, _ = frames[-1] if chance.random() < 0.7 else chance.choice(frames)
                if read >= newest_read:
                    newest_read = read
                    until_ns = max(until_ns, accept_until_ns(best, as_of_ns, lease_ns))
                    arrived_ns = verifier.reads(now)
                    time = BrokerTime(wall_ms, min(earliest_ns(best, as_of_ns), arrived_ns), arrived_ns)
        now_ns = verifier.reads(now)
        if now_ns > until_ns:
            refused += 1
        else:
            accepted += 1
            # What was revoked just after the newest frame was read is accepted for a lease, and no longer.
            assert broker.at(now) <= broker.at(newest_read) + lease_ns + 4
        if time is not None:
            true_ms = (broker.at(now) + wall0) / NS_PER_MS
            assert time.earliest_ms(now_ns) - Fraction(1, 1000) <= true_ms <= time.latest_ms(now_ns) + Fraction(1, 1000)
    assert refused
    assert accepted, "a verifier that never accepts shows nothing"


def test_the_usual_case_loses_little():
    """An echo of 1 ms, a frame 30 s later, a lease of 5 s: what caution costs is some 36 ms."""
    echo = EchoPoint("boot", 1_000_000_000, 77_000_500_000)
    until_ns = accept_until_ns(echo, 77_000_500_000 + 30_000_000_000, 5_000_000_000)
    assert 36_000_000_000 - 36_000_000 < until_ns <= 36_000_000_000


def test_drift_is_that_of_two_clocks_and_rounded_up():
    assert [drift_ns(span) for span in (0, 1, 999, 1000, 999_500_000)] == [0, 1, 1, 2, 1_000_000]
    assert drift_ns(-1000) == drift_ns(1000)


def test_an_instant_that_lies_before_its_echo_is_not_trusted_more():
    echo = EchoPoint("boot", 10**12, 10**12)
    assert earliest_ns(echo, 10**12 - 10**9) < 10**12 - 10**9
    assert BrokerTime(5, 0, 0).latest_ms(0) >= 5
