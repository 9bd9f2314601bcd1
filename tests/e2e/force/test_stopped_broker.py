"""P5, P7: a broker that stood still, and heartbeats that lay in a buffer, let no verifier accept for longer."""

import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.force.stage import LEASE_MS, LEASE_NS, USERS, Stage, must_have_stopped
from tests.e2e.force.stalling_proxy import StallingProxy
from tests.e2e.force.verifying import MS, S, Verifying, now_ns, until_instant
from tests.waiting import eventually

STOPS = 8


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    with Stage(tmp_path) as stage:
        yield stage


def is_stale(verifier: Verifying, name: str) -> bool:
    return verifier.runs()[name][-1].verdict == "STALE"


def test_p5_p7_a_stopped_broker_is_refused_after_a_lease_and_taken_up_again_by_itself(stage: Stage) -> None:
    token = stage.token()
    with stage.verifying("alpha") as alpha, stage.verifying("beta") as beta:
        for verifier in (alpha, beta):
            verifier.watch(bob=token)
        stopped_ns = stage.stop()
        for verifier in (alpha, beta):
            eventually(lambda: is_stale(verifier, "bob"), "it refuses", within_s=20)  # noqa: B023 - of this turn
            [accepted, refused] = verifier.runs()["bob"]
            # Frames that were sent before the stop let it accept for a lease from then, and not an instant longer.
            assert accepted.ended_ns <= stopped_ns + LEASE_NS
            assert refused.verdict == "STALE"
        # A verifier that comes now hears nothing at all.
        with stage.verifying("gamma", keeps=False) as late:
            assert late.verdict(token) == "STALE"
            until_instant(stopped_ns + 3 * LEASE_NS)
            assert late.verdict(token) == "STALE"
            stage.go_on()
            for verifier in (alpha, beta, late):
                print(f"{verifier.name} is fresh {verifier.until_fresh():.2f} s after the broker went on")
                verifier.until(token, "accepted")


def test_p4_p5_p6_a_broker_that_is_stopped_at_any_moment_of_a_revocation_keeps_its_word(stage: Stage) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    with stage.verifying("alpha") as alpha, stage.verifying("beta") as beta:
        for user in USERS[:STOPS]:
            token = stage.token(user)
            for verifier in (alpha, beta):
                verifier.until_fresh()
                verifier.watch(**{user: token})
            after_ns = int(chance.expovariate(1 / 10) * MS)
            by = stage.ready_to_revoke()
            began_ns = now_ns()
            revoking = stage.revoking(user=user, by=by)
            until_instant(began_ns + after_ns)
            stopped_ns = stage.stop()
            until_instant(stopped_ns + int(chance.choice((0.2, 1.2)) * LEASE_NS))
            stage.go_on()
            outcomes = revoking.until_complete()
            print(f"stopped {after_ns / MS:.1f} ms after the call: {[(n, o.state) for n, o in outcomes.items()]}")
            for verifier in (alpha, beta):
                eventually(lambda: verifier.verdict(token) == "REVOKED", "it is in force", within_s=30)  # noqa: B023 - of this turn
                must_have_stopped(verifier, user, revoking)


def test_p5_heartbeats_that_lay_in_a_buffer_extend_nothing(stage: Stage) -> None:
    """The network holds frames back and then delivers those that are older than the lease, and no newer one."""
    dead, live = stage.token(USERS[0]), stage.token()
    with (
        StallingProxy(stage.port) as proxy,
        # Shortened, so that its lease ends before its patience with a silent stream does.
        stage.verifying("alpha", endpoint=f"127.0.0.1:{proxy.port}", max_lease_s=1.2) as verifier,
    ):
        for turn in range(4):
            user = USERS[turn]
            dead = stage.token(user)
            verifier.until(dead, "accepted")
            eventually(lambda: verifier.state()["fresh_for_s"] > 0.9, "a heartbeat has just come", within_s=20)
            verifier.watch(**{user: dead, f"live-{turn}": live})
            head = verifier.state()["head"]
            proxy.stall(proxy.to_verifier)
            stalled_ns = now_ns()
            # What it holds back: the revocation, and heartbeats until after it.
            revoking = stage.revoking(user=user, wait=False)
            revoking.until_committed()
            assert revoking.committed is not None
            index = revoking.committed.index
            eventually(lambda: is_stale(verifier, f"live-{turn}"), "it refuses", within_s=20)  # noqa: B023 - of this turn
            assert verifier.last_accepted_ns(f"live-{turn}") <= stalled_ns + int(1.2 * S)
            until_instant(revoking.committed_ns + int(1.25 * S))
            # Deliver what the proxy had by the time of the commit and shortly after, which is older than the lease.
            proxy.to_verifier.until = proxy_instant(revoking.committed_ns + 40 * MS)
            eventually(lambda: verifier.state()["head"] > index, "it applied what was late", within_s=2.0)  # noqa: B023 - of this turn
            state = verifier.state()
            assert head < state["head"]
            assert state["fresh_for_s"] == 0
            assert verifier.verdict(live) == "STALE"
            assert is_stale(verifier, f"live-{turn}")
            assert not verifier.last_accepted_ns(f"live-{turn}") > stalled_ns + int(1.2 * S)
            proxy.heal()
            verifier.until(live, "accepted")
            verifier.until(dead, "REVOKED")
            assert verifier.last_accepted_ns(user) <= revoking.committed_ns + LEASE_MS * MS
            verifier.drop(user, f"live-{turn}")


def proxy_instant(boottime_ns: int) -> float:
    """Return the proxy's reading of its clock at an instant of ours."""
    return time.monotonic() - (now_ns() - boottime_ns) / S
