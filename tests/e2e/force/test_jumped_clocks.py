"""Wall clocks that jump by an hour under real processes, with libfaketime (P4 to P7)."""

import importlib.util
import time
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from broker.sdk.failures import failure_of
from broker.v1 import status_pb2
from tests.e2e.force.stage import LEASE_NS, USERS, Stage, must_have_stopped
from tests.e2e.force.verifying import Verifying, now_ns, until_instant
from tests.waiting import eventually

HOUR_S = 3600
SHORT_S = 8


class JumpingClock:
    """The wall clock of one process, `set` at any time. Its monotonic clocks are left alone, as a jump leaves them."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.set(0)

    def set(self, seconds: int) -> None:
        fresh = self._file.with_suffix(".new")
        fresh.write_text(f"{seconds:+d}\n")
        fresh.replace(self._file)

    @property
    def environment(self) -> dict[str, str]:
        spec = importlib.util.find_spec("libfaketime")
        assert spec is not None
        assert spec.origin is not None
        library = Path(spec.origin).parent / "vendor" / "libfaketime" / "src" / "libfaketime.so.1"
        assert library.exists()
        return {
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }


@pytest.fixture
def clock(tmp_path: Path) -> JumpingClock:
    return JumpingClock(tmp_path / "clock")


def short(stage: Stage, user: str) -> str:
    return stage.token(user, lifetime=Duration(seconds=SHORT_S))


def ends_in_time(verifier: Verifying, name: str, minted_ns: int) -> None:
    """Accepted until about its end and not after: neither revived nor ended by a clock that jumped."""
    eventually(lambda: verifier.runs()[name][-1].verdict == "EXPIRED", "it has expired", within_s=40)
    last_ns = verifier.last_accepted_ns(name)
    assert last_ns <= minted_ns + SHORT_S * 1_000_000_000
    # Whole seconds are cut off its beginning, and the rest rounds to refuse.
    assert last_ns >= minted_ns + (SHORT_S - 4) * 1_000_000_000


def test_p4_p7_a_verifier_whose_wall_clock_jumps_by_an_hour_notices_nothing(
    tmp_path: Path, clock: JumpingClock
) -> None:
    with ExitStack() as programs:
        stage = programs.enter_context(Stage(tmp_path))
        verifier = programs.enter_context(stage.verifying("alpha", environment=clock.environment))
        # What has ended stays so, whatever the clock.
        old = short(stage, USERS[9])
        old_ns = now_ns()
        live, dead = stage.token(), stage.token(USERS[0])
        verifier.watch(old=old, live=live, dead=dead)
        revoking = stage.revoking(user=USERS[0])
        revoking.until_complete()
        verifier.until(dead, "REVOKED")
        for turn, off_s in enumerate((HOUR_S, -HOUR_S, 2 * HOUR_S, 0)):
            clock.set(off_s)
            assert abs(verifier.state()["wall_s"] - time.time() - off_s) < 60
            user = USERS[turn + 1]
            token = stage.token(user)
            verifier.watch(**{user: token})
            revoking = stage.revoking(user=user)
            assert revoking.until_complete()["alpha"].acknowledged
            verifier.until(token, "REVOKED")
            must_have_stopped(verifier, user, revoking)
            # Longer than a lease: what keeps it fresh is heard under the wrong clock.
            until_instant(now_ns() + LEASE_NS + LEASE_NS // 10)
            assert verifier.verdict(dead) == "REVOKED"
        assert [run.verdict for run in verifier.runs()["live"]] == ["accepted"]
        ends_in_time(verifier, "old", old_ns)


def test_p7_a_broker_whose_wall_clock_jumps_stops_minting_and_goes_on_revoking(
    tmp_path: Path, clock: JumpingClock
) -> None:
    with ExitStack() as programs:
        stage = programs.enter_context(Stage(tmp_path, environment=clock.environment))
        verifier = programs.enter_context(stage.verifying("alpha"))
        live = stage.token()
        verifier.watch(live=live)
        for turn, off_s in enumerate((HOUR_S, -HOUR_S)):
            user, other = USERS[2 * turn], USERS[2 * turn + 1]
            dead, brief = stage.token(user), short(stage, other)
            minted_ns = now_ns()
            verifier.watch(**{user: dead, other: brief})
            clock.set(off_s)
            with pytest.raises(grpc.RpcError) as refused:
                stage.token(user)
            assert failure_of(refused.value).reason == "CLOCK_ASTRAY"
            status = stage.status().GetStatus(status_pb2.GetStatusRequest(), timeout=10)
            assert not status.minting
            assert any("clock has moved" in problem for problem in status.problems)
            revoking = stage.revoking(user=user)
            assert revoking.until_complete()["alpha"].acknowledged
            must_have_stopped(verifier, user, revoking)
            ends_in_time(verifier, other, minted_ns)
            clock.set(0)
            eventually(lambda: stage.token(other), "it mints again", within_s=10)  # noqa: B023 - of this turn
        # No mass expiry, no lost freshness.
        assert [run.verdict for run in verifier.runs()["live"]] == ["accepted"]
