"""How often a verifier asks for an echo and acknowledges, by its lease."""

from types import SimpleNamespace

import pytest

from broker.sdk.stream import Pace

S = 1_000_000_000
PACE = Pace(echo_every_s=30.0, echo_poor_s=10.0, echo_again_s=1.0, ack_every_s=2.0)


def after_s(pace, left_ns, *, needs_echo=False):
    state = SimpleNamespace(accept_until_ns=100 * S + left_ns, lease_ms=5000)
    return pace.echo_after_s(SimpleNamespace(state=state, needs_echo=needs_echo), 100 * S)


@pytest.mark.parametrize(
    ("left_ns", "then_s"),
    [
        (5 * S, 30.0),
        (5 * S // 2, 30.0),
        (5 * S // 2 - 1, 10.0),
        (0, 10.0),
        (-1, 1.0),
    ],
)
def test_the_less_of_a_lease_an_echo_gave_the_sooner_comes_the_next(left_ns, then_s):
    assert after_s(PACE, left_ns) == then_s


def test_without_an_echo_of_this_broker_process_it_is_asked_again_soon_whatever_is_left():
    assert after_s(PACE, 5 * S, needs_echo=True) == 1.0


def test_a_poor_echo_is_never_followed_later_than_a_good_one():
    assert after_s(Pace(echo_every_s=0.3), 1) == 0.3


@pytest.mark.parametrize(("lease_ms", "then_s"), [(60_000, 2.0), (5000, 2.0), (4000, 2.0), (3000, 1.5), (1000, 0.5)])
def test_a_verifier_that_listens_is_never_silent_for_more_than_half_a_lease(lease_ms, then_s):
    assert PACE.ack_after_s(lease_ms) == then_s
