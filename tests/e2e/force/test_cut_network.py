"""P4 to P7: a network that is cut without a word, both ways or one way, or that loses a third of everything."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.authority import LOOPBACK
from tests.e2e.force.hosts import Host
from tests.e2e.force.nftables import Loss
from tests.e2e.force.stage import LEASE_MS, LEASE_NS, USERS, Stage, must_have_stopped
from tests.e2e.force.stalling_proxy import StallingProxy
from tests.e2e.force.verifying import Verifying, now_ns, until_instant
from tests.waiting import eventually

BROKER_ADDRESS = "10.77.1.1"
VERIFIER_ADDRESS = "10.77.1.2"


class FarStage(Stage):
    """As Stage, with the broker on a host of its own and a cable to the host `far`."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.server = self.authority.server(hosts=(*LOOPBACK, BROKER_ADDRESS))
        self._config = self._config.replace("127.0.0.1", "0.0.0.0")
        self._hosts = ExitStack()
        self.near, self.far = (self._hosts.enter_context(Host()) for _ in range(2))
        self.near.join(self.far, f"{BROKER_ADDRESS}/30", f"{VERIFIER_ADDRESS}/30", name="cable")
        self.prefix = self.near.prefix
        # The way in for the test itself, which stays where it is.
        self._door = self._hosts.enter_context(
            StallingProxy(0, connect=lambda: self.near.connect("127.0.0.1", self.port))
        )

    def __exit__(self, *anything: object) -> None:
        try:
            super().__exit__(*anything)
        finally:
            self._hosts.close()

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self._door.port}"

    def near_verifying(self, gateway: str) -> Verifying:
        """A verifier beside the broker, which no cut concerns."""
        return self.verifying(gateway, endpoint=f"127.0.0.1:{self.port}", prefix=self.near.prefix)

    def far_verifying(self, gateway: str) -> Verifying:
        return self.verifying(gateway, endpoint=f"{BROKER_ADDRESS}:{self.port}", prefix=self.far.prefix)


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[FarStage]:
    with FarStage(tmp_path) as stage:
        yield stage


def revoke_amid_a_cut(stage: FarStage, near: Verifying, far: Verifying, user: str, live: str) -> None:
    """With the cut in place: revoke, see the far one lapse, heal, and see it recover by itself."""
    revoking = stage.revoking(user=user)
    outcomes = revoking.until_complete()
    assert revoking.complete is not None
    assert outcomes["beta"].acknowledged
    assert not outcomes["alpha"].acknowledged
    assert outcomes["alpha"].state == "lapsed"
    assert revoking.complete.took.ToMilliseconds() >= LEASE_MS
    eventually(lambda: far.runs()[live][-1].verdict == "STALE", "the far one refuses", within_s=20)
    assert near.runs()[live][-1].verdict == "accepted"
    must_have_stopped(near, user, revoking)
    must_have_stopped(far, user, revoking)


@pytest.mark.parametrize(
    ("incoming", "outgoing"),
    [(Loss.ALL, Loss.ALL), (Loss.ALL, None), (None, Loss.ALL)],
    ids=["both ways", "from the broker", "to the broker"],
)
def test_p5_p6_p7_a_verifier_that_is_cut_off_silently_refuses_lapses_and_recovers(
    stage: FarStage, incoming: Loss | None, outgoing: Loss | None
) -> None:
    dead, live = stage.token(USERS[0]), stage.token()
    with stage.far_verifying("alpha") as far, stage.near_verifying("beta") as near:
        for verifier in (far, near):
            verifier.watch(dead=dead, live=live, **{USERS[0]: dead})
        cut_ns = now_ns()
        stage.far.cut(incoming=incoming, outgoing=outgoing)
        cut_until_ns = now_ns()
        revoke_amid_a_cut(stage, near, far, USERS[0], "live")
        if incoming is Loss.ALL:
            # Nothing was heard after the cut, so nothing can have extended the lease.
            assert far.last_accepted_ns("live") <= cut_until_ns + LEASE_NS
            assert far.verdict(dead) == "STALE"
        # Long enough for TCP to be slow to try again.
        until_instant(cut_ns + 3 * LEASE_NS)
        healed_ns = now_ns()
        stage.far.heal()
        took_s = far.until_fresh(within_s=40)
        print(f"fresh {took_s:.2f} s after the network was healed")
        assert far.verdict(dead) == "REVOKED"
        assert far.verdict(live) == "accepted"
        assert all(run.verdict != "accepted" or run.began_ns > healed_ns for run in far.runs()["live"][1:])


def test_p4_p5_p6_a_network_that_loses_a_third_of_everything_delays_and_breaks_nothing(stage: FarStage) -> None:
    live = stage.token()
    with stage.far_verifying("alpha") as far, stage.near_verifying("beta") as near:
        for verifier in (far, near):
            verifier.watch(live=live)
        for user in USERS[:10]:
            token = stage.token(user)
            for verifier in (far, near):
                verifier.watch(**{user: token})
            stage.far.cut(incoming=Loss.A_THIRD, outgoing=Loss.A_THIRD)
            revoking = stage.revoking(user=user)
            outcomes = revoking.until_complete()
            print({name: (outcome.state, outcome.after.ToMilliseconds()) for name, outcome in outcomes.items()})
            assert outcomes["beta"].acknowledged
            assert "alpha" in outcomes
            stage.far.heal()
            far.until(token, "REVOKED", within_s=40)
            for verifier in (far, near):
                must_have_stopped(verifier, user, revoking)
        far.until(live, "accepted", within_s=40)
        assert near.runs()["live"][0].ended_ns >= revoking.complete_ns


def test_p4_p5_p6_a_network_that_comes_and_goes_lets_nothing_pass_that_is_dead(stage: FarStage) -> None:
    live = stage.token()
    with stage.far_verifying("alpha") as far, stage.near_verifying("beta") as near:
        for verifier in (far, near):
            verifier.watch(live=live)
        for turn, user in enumerate(USERS[:5]):
            token = stage.token(user)
            for verifier in (far, near):
                verifier.watch(**{user: token})
            # Away for spans below and above what a lease bridges, the revocation at their beginning.
            gone_ns = now_ns() + LEASE_NS * (turn + 1) // 4
            stage.far.cut(incoming=Loss.ALL, outgoing=Loss.ALL)
            revoking = stage.revoking(user=user)
            revoking.until_committed()
            until_instant(gone_ns)
            stage.far.heal()
            outcomes = revoking.until_complete()
            print({name: (outcome.state, outcome.after.ToMilliseconds()) for name, outcome in outcomes.items()})
            assert outcomes["beta"].acknowledged
            far.until(token, "REVOKED", within_s=40)
            for verifier in (far, near):
                must_have_stopped(verifier, user, revoking)
            far.until(live, "accepted", within_s=40)
