"""Clocks that are wrong: nothing is minted on them, nothing else stops, and the broker says which clock and how far."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from broker.adapters.clock import SystemClock
from broker.errors import Expired, Revoked
from broker.sdk.failures import failure_of
from broker.v1 import status_pb2
from tests.embedded import Embedded, Wall
from tests.served import POLICY

HOUR = timedelta(hours=1)


@pytest.fixture
def wall() -> Wall:
    return Wall()


@pytest.fixture
def served(tmp_path: Path, wall: Wall) -> Iterator[Embedded]:
    with Embedded(tmp_path, wall=wall) as served:
        yield served


def refusal(served: Embedded) -> str:
    """What a mint is refused with, which must be CLOCK_ASTRAY."""
    with pytest.raises(grpc.RpcError) as refused:
        served.mint()
    failure = failure_of(refused.value)
    assert (failure.reason, refused.value.code()) == ("CLOCK_ASTRAY", grpc.StatusCode.UNAVAILABLE)
    assert failure.retry_after_s
    return failure.message


def status(served: Embedded) -> status_pb2.GetStatusResponse:
    return served.status().GetStatus(status_pb2.GetStatusRequest(), timeout=10)


@pytest.mark.parametrize("off", [HOUR, -HOUR, timedelta(seconds=62), timedelta(seconds=-62)])
def test_a_wall_clock_that_steps_stops_minting_and_nothing_else(served: Embedded, wall: Wall, off: timedelta) -> None:
    token = served.mint().token
    verifier = served.verifier()
    wall.off = off
    assert "clock has moved" in refusal(served)
    assert not (now := status(served)).minting
    assert "clock has moved" in now.problems[0]
    # No false expiry and no false freshness: all of that runs on the time since the start.
    assert verifier.verify(token, "mythos")
    [*_, last] = served.revoke(partner="acme", wait=True)
    assert last.complete.verifiers
    with pytest.raises(Revoked):
        verifier.verify(token, "mythos")
    served.reinstate(partner="acme")
    wall.off = timedelta()
    assert served.mint().token
    verifier.close()


def test_a_clock_that_is_off_by_less_is_left_in_peace(served: Embedded, wall: Wall) -> None:
    wall.off = timedelta(seconds=55)
    assert served.mint().token


def test_a_clock_an_hour_behind_the_ledger_at_a_restart_mints_nothing_until_it_is_right(
    served: Embedded, wall: Wall
) -> None:
    token = served.mint().token
    served.stop()
    wall.off = -HOUR
    served.start()
    assert "behind the last ledger entry" in refusal(served)
    assert any("behind the last ledger entry" in problem for problem in status(served).problems)
    # Cutting off goes on.
    served.revoke(partner="acme")
    served.reinstate(partner="acme")
    served.stop()
    wall.off = timedelta()
    served.start()
    verifier = served.verifier()
    with pytest.raises(Revoked):
        verifier.verify(token, "mythos")
    assert verifier.verify(served.mint().token, "mythos")
    verifier.close()


def test_an_hour_behind_stays_refused_also_after_a_second_restart(served: Embedded, wall: Wall) -> None:
    """The entries written meanwhile (revocations, keys) carry the wrong time and must not hide the right one."""
    served.mint()
    served.stop()
    wall.off = -HOUR
    for _ in range(2):
        served.start()
        served.revoke(user="somebody")
        assert "behind the last ledger entry" in refusal(served)
        served.stop()


def test_p7_a_restart_on_a_clock_that_is_behind_revives_no_expired_token_and_refuses_no_live_one(
    served: Embedded, wall: Wall
) -> None:
    served.stop()
    wall.off = timedelta(minutes=-50)
    served.wipe()
    served.start()
    served.apply(POLICY)
    ended = served.mint(lifetime=Duration(seconds=60)).token
    served.stop()
    wall.off = timedelta()
    served.start()
    live = served.mint().token
    with served.verifier() as verifier:
        with pytest.raises(Expired):
            verifier.verify(ended, "mythos")
        assert verifier.verify(live, "mythos")
    served.stop()
    # The same wrong clock again, on which the first token is alive and the second is of the future.
    wall.off = timedelta(minutes=-50)
    served.start()
    with served.verifier() as verifier:
        with pytest.raises(Expired):
            verifier.verify(ended, "mythos")
        assert verifier.verify(live, "mythos")


def test_the_witnesses_of_a_clock_are_heard_each_by_itself() -> None:
    clock = SystemClock()
    clock.compare("the store's clock", clock.now() + timedelta(seconds=59))
    assert clock.is_astray() is None
    clock.compare("the store's clock", clock.now() + timedelta(seconds=61))
    assert clock.is_astray() == "the broker's clock is 61 s behind the store's clock"
    clock.compare("the ledger", clock.now())
    assert clock.is_astray() == "the broker's clock is 61 s behind the store's clock"
    clock.compare("the store's clock", clock.now() - HOUR)
    assert clock.is_astray() == "the broker's clock is 3600 s ahead of the store's clock"
    clock.compare("the store's clock", clock.now())
    assert clock.is_astray() is None


def test_a_clock_that_was_corrected_stays_doubted_until_a_restart() -> None:
    clock = SystemClock()
    right = clock.now() + HOUR
    clock.correct("the store's clock at the start", right)
    assert abs(clock.now() - right) < timedelta(seconds=1)
    clock.compare("the store's clock", right)
    doubt = clock.is_astray()
    assert doubt is not None
    assert "restart" in doubt
