"""P11, by force: no receipt of an accepted use is lost and none is there twice, whatever is killed, cut or full."""

import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from broker.token.jws import unb64url
from broker.v1 import tokens_pb2
from tests.e2e.force.stage import POLICY, Stage
from tests.e2e.force.using import Using
from tests.failing_calls import ALL, Calls, FailingCalls
from tests.mounts import fail, failing_disk, fill, make_read_only, new_image, small_disk
from tests.receipting import alarms_in, lines_in
from tests.tcp_proxy import Behaviour, TcpProxy
from tests.waiting import eventually

Minted = tokens_pb2.MintedToken
EACH = POLICY.replace("heartbeat: 1s}", "heartbeat: 1s, receipts: each}", 1)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with Stage(tmp_path_factory.mktemp("stage"), policy=EACH) as stage:
        yield stage


@pytest.fixture
def minted(stage: Stage) -> Minted:
    """A token of this test alone."""
    return stage.mint("globex", partner="globex", user="bob")


def told(stage: Stage, token: str) -> Counter[int]:
    """Return how many receipts the ledger has of each use of a token, by its number."""
    hashes = (line.request_hash for line in lines_in(stage.folder) if line.token == token)
    return Counter(int.from_bytes(unb64url(text), "big") for text in hashes)


def must_be_told_once(stage: Stage, token: str, accepted: list[int], *, unheard: int) -> None:
    """Each accepted use is there once; `unheard` more may be, which were killed before they could say so."""
    eventually(lambda: not set(accepted) - told(stage, token).keys(), "all receipts are in the ledger", within_s=60)
    found = told(stage, token)
    assert set(found.values()) == {1}, "a receipt is there twice"
    assert len(found.keys() - set(accepted)) <= unheard
    assert not alarms_in(stage.folder)


def test_a_verifier_that_is_killed_again_and_again_loses_no_receipt(
    stage: Stage, minted: Minted, tmp_path: Path
) -> None:
    chance = random.Random()
    accepted: list[int] = []
    for life in range(6):
        with Using(stage, minted.token, tmp_path / "state", first=1_000_000 * life) as using:
            # Before anything can be sent, and while batches are under way.
            using.until_accepted(chance.choice((1, 30, 400)))
            using.kill()
        assert using.accepted
        accepted += using.accepted
    with Using(stage, minted.token, tmp_path / "state", first=1_000_000 * 6) as using:
        using.until_accepted(1)
    must_be_told_once(stage, minted.id, accepted + using.accepted, unheard=6)


def test_a_broker_that_is_killed_between_commit_and_answer_writes_no_receipt_twice(
    stage: Stage, minted: Minted, tmp_path: Path
) -> None:
    chance = random.Random()
    with Using(stage, minted.token, tmp_path / "state") as using:
        for _ in range(4):
            using.until_accepted(20)
            before, wanted = len(told(stage, minted.id)), chance.choice((0, 1, 100))
            eventually(lambda b=before, w=wanted: len(told(stage, minted.id)) >= b + w, "some are written", within_s=40)  # type: ignore[misc]
            stage.kill()
            stage.start()
        using.until_accepted(200)
    must_be_told_once(stage, minted.id, using.accepted, unheard=0)


def test_a_connection_that_is_cut_again_and_again_loses_no_receipt(
    stage: Stage, minted: Minted, tmp_path: Path
) -> None:
    with (
        TcpProxy(stage.port) as proxy,
        Using(stage, minted.token, tmp_path / "state", endpoint=f"127.0.0.1:{proxy.port}") as using,
    ):
        for _ in range(8):
            using.until_accepted(100)
            proxy.cut()
        using.until_accepted(100)
        # While nothing gets through, uses are accepted until the lease ends; their receipts wait.
        proxy.behave(Behaviour.RESET)
        using.until_refused("STALE")
        waiting = set(using.accepted) - told(stage, minted.id).keys()
        proxy.behave(Behaviour.FORWARD)
        using.until_accepted(100)
    assert waiting
    must_be_told_once(stage, minted.id, using.accepted, unheard=0)


def test_p7_a_full_disk_stops_accepting_loses_nothing_and_it_goes_on_when_there_is_space(
    stage: Stage, minted: Minted, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", mib=4) as disk:
        with Using(stage, minted.token, disk / "state") as using:
            for _ in range(2):
                using.until_accepted(200)
                ballast = fill(disk)
                using.until_refused("RECEIPTS_UNKEPT")
                count = len(using.accepted)
                ballast.unlink()
                using.until_accepted(200)
                assert len(using.accepted) > count
            assert using.is_alive
        must_be_told_once(stage, minted.id, using.accepted, unheard=0)


@pytest.mark.parametrize("break_it", [make_read_only, fail], ids=["read-only", "EIO"])
def test_p7_a_disk_that_fails_stops_accepting_and_kills_nobody(
    stage: Stage, minted: Minted, tmp_path: Path, break_it: Callable[[Path], None]
) -> None:
    with (
        failing_disk(tmp_path / "disk", new_image(tmp_path / "image")) as disk,
        Using(stage, minted.token, disk / "state") as using,
    ):
        using.until_accepted(200)
        break_it(disk)
        using.until_refused("RECEIPTS_UNKEPT")
        count = len(using.accepted)
        refusals = len(using.refusals)
        # It tries again and again whether the disk takes something, and is refused as long as it does not.
        eventually(lambda: len(using.refusals) > refusals + 50, "it goes on refusing", within_s=40)
        assert len(using.accepted) == count
        assert using.is_alive
        if break_it is make_read_only:
            # What was accepted can be read, and is sent.
            must_be_told_once(stage, minted.id, using.accepted, unheard=1)


@pytest.mark.parametrize(("kinds", "of"), [(Calls.SYNCS, ".seg\n"), (ALL, "/state/receipts")], ids=["sync", "any"])
def test_p7_p11_a_call_that_fails_now_and_then_stops_accepting_until_all_of_it_is_kept_again(
    stage: Stage, minted: Minted, tmp_path: Path, kinds: Calls, of: str
) -> None:
    calls, chance = FailingCalls(tmp_path), random.Random()
    with Using(stage, minted.token, tmp_path / "state", environment=calls.environment) as using:
        for _ in range(12):
            using.until_accepted(50)
            calls.fail(kinds, nth=1 if kinds is Calls.SYNCS else chance.randrange(1, 60), of=of)
            using.until_refused("RECEIPTS_UNKEPT")
            assert calls.has_failed
        using.until_accepted(50)
        assert using.is_alive
    must_be_told_once(stage, minted.id, using.accepted, unheard=0)


def test_p7_a_spool_at_its_limit_stops_accepting_until_the_broker_takes_some(
    stage: Stage, minted: Minted, tmp_path: Path
) -> None:
    with Using(stage, minted.token, tmp_path / "state", max_spool_bytes=16 << 10) as using:
        using.until_accepted(100)
        stage.stop()
        try:
            using.until_refused("RECEIPTS_UNKEPT")
        finally:
            stage.go_on()
        using.until_accepted(500)
    must_be_told_once(stage, minted.id, using.accepted, unheard=0)


def test_p4_the_heads_in_the_receipts_prove_that_nothing_was_accepted_after_a_revocation_was_applied(
    stage: Stage, minted: Minted, tmp_path: Path
) -> None:
    dead, alive = minted, stage.token()
    with (
        Using(stage, dead.token, tmp_path / "one") as one,
        Using(stage, alive, tmp_path / "other", gateway="beta") as other,
    ):
        one.until_accepted(100)
        other.until_accepted(100)
        index = stage.revoking(token=dead.id).until_committed()
        one.until_refused("REVOKED")
        # While the other one goes on, by heads beyond the revocation.
        other.until_accepted(300)
    lines = lines_in(stage.folder)
    of_dead = [line for line in lines if line.token == dead.id]
    # A head is the number of entries that were applied: the one at `index` only by a larger one.
    assert max(line.head for line in of_dead) <= index
    assert max(line.head for line in lines if line.token != dead.id) > index
    assert len(of_dead) == len(one.accepted)
