"""P4 to P7: a verifier that stood still refuses when it wakes, until it has caught up."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.e2e.force.stage import LEASE_MS, LEASE_NS, USERS, Stage, must_have_stopped
from tests.e2e.force.verifying import S, Verifying, now_ns, until_instant
from tests.waiting import eventually

ASLEEP_NS = 60 * S
MIN_NAPS = 3


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    with Stage(tmp_path) as stage:
        yield stage


def must_have_woken_refusing(verifier: Verifying, name: str, *, stopped_ns: int, woke_ns: int, index: int) -> None:
    """Its first verdict after waking is STALE, and it accepts nothing before it is past the revocation."""
    after = [run for run in verifier.runs()[name] if run.ended_ns > stopped_ns]
    assert after[0].began_ns >= woke_ns
    assert after[0].verdict == "STALE", after
    for run in after:
        assert run.verdict != "accepted" or run.head > index, after


def nap(stage: Stage, napper: Verifying, dead: str, live: str) -> None:
    """Stop `napper` for longer than a lease; revoke meanwhile."""
    stopped_ns = napper.stop()
    revoking = stage.revoking(user=dead)
    outcomes = revoking.until_complete()
    until_instant(stopped_ns + LEASE_NS)
    assert not outcomes["beta"].acknowledged
    woke_ns = now_ns()
    napper.go_on()
    eventually(lambda: napper.runs()[dead][-1].verdict == "REVOKED", "it has caught up", within_s=30)
    eventually(lambda: napper.runs()[live][-1].verdict == "accepted", "it accepts what is alive", within_s=30)
    assert revoking.committed is not None
    for name in (dead, live):
        must_have_woken_refusing(napper, name, stopped_ns=stopped_ns, woke_ns=woke_ns, index=revoking.committed.index)
    must_have_stopped(napper, dead, revoking)


def test_p5_p6_a_verifier_that_was_stopped_for_a_minute_refuses_until_it_has_caught_up(stage: Stage) -> None:
    tokens = {user: stage.token(user) for user in USERS[:20]} | {"bob": stage.token()}
    with ExitStack() as programs:
        sleeper, napper, awake = (programs.enter_context(stage.verifying(name)) for name in ("alpha", "beta", "gamma"))
        for verifier in (sleeper, napper, awake):
            verifier.watch(**tokens)
        stopped_ns = sleeper.stop()
        revoking = stage.revoking(user=USERS[0])
        outcomes = revoking.until_complete()
        assert {name for name, outcome in outcomes.items() if outcome.acknowledged} == {"beta", "gamma"}
        # Named as lapsed, after its lease and no sooner.
        assert outcomes["alpha"].state in ("lapsed", "")
        assert revoking.complete is not None
        assert revoking.complete.took.ToMilliseconds() >= LEASE_MS
        # While it sleeps, another one wakes up several times.
        naps = 0
        while now_ns() < stopped_ns + ASLEEP_NS - 12 * S or naps < MIN_NAPS:
            naps += 1
            nap(stage, napper, USERS[naps], "bob")
        until_instant(stopped_ns + ASLEEP_NS)
        woke_ns = now_ns()
        sleeper.go_on()
        eventually(lambda: sleeper.runs()[USERS[0]][-1].verdict == "REVOKED", "it has caught up", within_s=30)
        took_s = eventually(lambda: sleeper.runs()["bob"][-1].verdict == "accepted", "it accepts again", within_s=30)
        # All that was revoked meanwhile counts, not only the first.
        newest = sleeper.state()["head"]
        print(f"asleep {(woke_ns - stopped_ns) / S:.1f} s, {naps} naps of another, caught up after {took_s:.2f} s")
        assert revoking.committed is not None
        for name in ("bob", *USERS[: naps + 1]):
            must_have_woken_refusing(
                sleeper, name, stopped_ns=stopped_ns, woke_ns=woke_ns, index=revoking.committed.index + naps
            )
        assert newest > revoking.committed.index + naps
        for verifier in (sleeper, napper, awake):
            must_have_stopped(verifier, USERS[0], revoking)
            assert verifier.runs()[USERS[naps]][-1].verdict == "REVOKED"
            assert verifier.runs()[USERS[naps + 1]][-1].verdict == "accepted"


def test_p5_a_stop_that_is_shorter_than_the_lease_costs_no_acceptance_and_adds_none(stage: Stage) -> None:
    with stage.verifying("alpha") as verifier, stage.verifying("beta") as other:
        for user in USERS[:6]:
            token = stage.token(user)
            verifier.watch(**{user: token}, bob=stage.token())
            other.watch(**{user: token})
            stopped_ns = verifier.stop()
            revoking = stage.revoking(user=user)
            revoking.until_committed()
            eventually(lambda: other.runs()[user][-1].verdict == "REVOKED", "the other has it", within_s=20)  # noqa: B023 - of this turn
            until_instant(stopped_ns + LEASE_NS // 10)
            verifier.go_on()
            outcomes = revoking.until_complete()
            assert set(outcomes) == {"alpha", "beta"}
            eventually(lambda: verifier.runs()[user][-1].verdict == "REVOKED", "it has it", within_s=30)  # noqa: B023 - of this turn
            must_have_stopped(verifier, user, revoking)
            must_have_stopped(other, user, revoking)
