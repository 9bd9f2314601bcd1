"""How often a verifier asks for an echo and acknowledges, by its lease."""

import pytest

from broker.sdk.stream import Pace

S = 1_000_000_000
PACE = Pace(echo_every_s=30.0, echo_poor_s=10.0, echo_again_s=1.0, ack_every_s=2.0)


@pytest.mark.parametrize(
    ("left_ns", "after_s"),
    [
        (5 * S, 30.0),
        (5 * S // 2, 30.0),
        (5 * S // 2 - 1, 10.0),
        (0, 10.0),
        (-1, 1.0),
    ],
)
def test_the_less_of_a_lease_an_echo_gave_the_sooner_comes_the_next(left_ns, after_s):
    assert PACE.echo_after_s(left_ns, 5000) == after_s


def test_a_poor_echo_is_never_followed_later_than_a_good_one():
    assert Pace(echo_every_s=0.3).echo_after_s(1, 5000) == 0.3


@pytest.mark.parametrize(("lease_ms", "after_s"), [(60_000, 2.0), (5000, 2.0), (4000, 2.0), (3000, 1.5), (1000, 0.5)])
def test_a_verifier_that_listens_is_never_silent_for_more_than_half_a_lease(lease_ms, after_s):
    assert PACE.ack_after_s(lease_ms) == after_s
