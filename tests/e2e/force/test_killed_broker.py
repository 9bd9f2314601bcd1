"""P2, P4 to P6, P11: a broker that is killed in the middle of a revocation, a hundred times."""

import random
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from broker.ledger.entry import Kind, decode_entry
from broker.v1 import revocations_pb2
from tests.e2e.force.stage import LEASE_NS, USERS, Revoking, Stage, must_have_stopped
from tests.e2e.force.verifying import MS, Verifying, now_ns, until_instant
from tests.kept_record import Record
from tests.stores import Home

# Two lanes of fifty, so that the suite's two workers can share them.
LANES = 2
KILLS_PER_LANE = 50


@dataclass(slots=True)
class Attempt:
    """One revocation in whose middle the broker was killed."""

    user: str
    token: str
    index: int
    blocks: bool
    killed_after_ms: float
    revoking: Revoking

    @property
    def request_id(self) -> str:
        return str(self.revoking.request.request_id)

    @property
    def how_far(self) -> str:
        if self.revoking.complete is not None:
            return "complete"
        return "committed" if self.revoking.committed is not None else "not answered"


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    with Stage(tmp_path, with_feed_door=True) as stage:
        yield stage


def kill_amid(stage: Stage, verifiers: list[Verifying], user: str, chance: random.Random, started_ns: int) -> Attempt:
    """Begin to revoke, kill the broker at any moment, and start it on the same data."""
    minted = stage.mint(user=user)
    for verifier in verifiers:
        verifier.watch(**{user: minted.token})
    blocks = chance.random() < 0.5
    if chance.random() < 0.15:
        # By then a completion waits for nobody whom the broker before may have known, and comes at once.
        until_instant(started_ns + LEASE_NS)
        after_ms = chance.uniform(0, 80)
    else:
        after_ms = chance.uniform(0, 12) if chance.random() < 0.8 else chance.uniform(12, 400)
    by = stage.ready_to_revoke()
    began_ns = now_ns()
    revoking = stage.revoking(by=by, **({"user": user} if blocks else {"token": minted.id}))
    until_instant(began_ns + int(after_ms * MS))
    stage.kill()
    revoking.until_over()
    stage.start()
    return Attempt(user, minted.token, minted.index, blocks, after_ms, revoking)


def ask_again(stage: Stage, attempt: Attempt) -> None:
    """Repeat an attempt by its request id: it is done once, whatever became of the first."""
    selector = {"user": attempt.user} if attempt.blocks else {"token": attempt.revoking.request.selector.token}
    again = stage.revoking(again=attempt.request_id, **selector)
    again.until_committed()
    if attempt.revoking.committed is not None:
        assert again.committed == attempt.revoking.committed
    attempt.revoking = again


def written(home: Home) -> dict[str, int]:
    """Return each revocation's request id with its index, as the ledger has it."""
    entries = [decode_entry(bytes(row[0])) for row in home.sql("SELECT entry FROM ledger ORDER BY idx")]
    found: dict[str, int] = {}
    for entry in entries:
        if entry.kind is Kind.REVOKED:
            assert entry.body["request"] not in found, "written twice"
            found[str(entry.body["request"])] = entry.index
    return found


def completions(home: Home) -> list[int]:
    """Return the index of each revocation that has a completion in the ledger, once for each of them."""
    entries = [decode_entry(bytes(row[0])) for row in home.sql("SELECT entry FROM ledger ORDER BY idx")]
    return [int(str(entry.body["revocation"])) for entry in entries if entry.kind is Kind.REVOCATION_COMPLETED]


def completed(stage: Stage, index: int) -> revocations_pb2.RevocationComplete:
    """Ask for a revocation by its index, whoever finished it."""
    request = revocations_pb2.GetRevocationRequest(index=index, wait=True)
    events = [answer.event for answer in stage.revocations().GetRevocation(request, timeout=60)]
    assert events[0].committed.index == index
    return events[-1].complete


def must_be_whole(home: Home, attempt: Attempt, index: int | None) -> None:
    """The entry, the revocation and the block are all there, or none of them is."""
    revocations = home.sql(f"SELECT idx FROM revocations WHERE idx = {-1 if index is None else index}")
    assert len(revocations) == (0 if index is None else 1)
    if attempt.blocks:
        blocks = home.sql(f"SELECT idx FROM blocks WHERE selector LIKE '%{attempt.user}%'")
        assert [row[0] for row in blocks] == ([] if index is None else [index])


@pytest.mark.parametrize("lane", range(LANES))
def test_p4_p5_p11_a_broker_killed_in_the_middle_of_a_revoke_keeps_what_it_said(
    stage: Stage, tmp_path: Path, lane: int
) -> None:
    seed = random.randrange(1 << 32)
    print(f"lane {lane}, seed {seed}")
    chance = random.Random(seed)
    home = Home("sqlite", f"sqlite:///{tmp_path / 'data' / 'ledger.db'}")
    record = Record()
    attempts: list[Attempt] = []
    with ExitStack() as programs:
        verifiers = [programs.enter_context(stage.verifying(name)) for name in ("alpha", "beta")]
        started_ns = now_ns()
        for user in USERS[:KILLS_PER_LANE]:
            attempt = kill_amid(stage, verifiers, user, chance, started_ns)
            started_ns = now_ns()
            attempts.append(attempt)
            if attempt.how_far == "not answered" and chance.random() < 0.3:
                ask_again(stage, attempt)
            record.tokens.append(attempt.token)
            record.hear({"asking": attempt.request_id, "kind": "revoking"})
            if attempt.revoking.committed is not None:
                record.hear({"answered": attempt.request_id, "index": attempt.revoking.committed.index})
            record.check(home)
        live = stage.token()
        for verifier in verifiers:
            print(f"{verifier.name} is fresh {verifier.until_fresh():.2f} s after the last kill")
            verifier.until(live, "accepted")
        entries = written(home)
        far = {how: sum(one.how_far == how for one in attempts) for how in ("not answered", "committed", "complete")}
        silent = sum(one.how_far == "not answered" and one.request_id in entries for one in attempts)
        print(f"{far}; of those not answered, {silent} were written")
        assert far["not answered"]
        assert far["committed"]
        for attempt in attempts:
            index = entries.get(attempt.request_id)
            must_be_whole(home, attempt, index)
            if attempt.revoking.committed is not None:
                assert index == attempt.revoking.committed.index
            for verifier in verifiers:
                # It is in force or it is not, and nobody is told otherwise.
                verifier.until(attempt.token, "accepted" if index is None else "REVOKED")
                if attempt.revoking.committed is not None:
                    must_have_stopped(verifier, attempt.user, attempt.revoking)
        for index in entries.values():
            completed(stage, index)
        finished = completions(home)
        for attempt in attempts:
            index = entries.get(attempt.request_id)
            if index is not None:
                complete = completed(stage, index)
                assert complete.entry > index
                assert len(complete.statements) == 1
                # Whoever asks again is told the same.
                assert attempt.revoking.complete in (None, complete)
                assert finished.count(index) == 1
        # P2, P11: no gap, nothing lost, nothing twice.
        record.check_all(home)
        assert all(verifier.is_alive() for verifier in verifiers)
