"""A snapshot of a million revocations, in frames of at most 4 MiB, to a real verifier (P4)."""

import hashlib
import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from broker.ledger.entry import Entry, Kind, encode_entry
from broker.token.revocation import Selector
from broker.v1 import feed_pb2
from tests.e2e.force.stage import USERS, Stage
from tests.e2e.force.test_slow_consumer import MAX_FRAME_BYTES, idle_stream
from tests.e2e.force.verifying import rss_mib
from tests.served import ADMIN
from tests.waiting import eventually

REVOCATIONS = 1_000_000
# What they may add to a verifier.
MAX_GROWTH_MIB = 250


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    with Stage(tmp_path, with_feed_door=True) as stage:
        yield stage


def fill(file: Path, tokens: list[str]) -> None:
    """Write a revocation of each token as the broker would, into a ledger whose broker is away."""
    at = datetime.now(UTC)
    at_ms, until_ms = (int(moment.timestamp() * 1000) for moment in (at, at + timedelta(hours=3)))
    with closing(sqlite3.connect(file)) as database, database:
        [first] = database.execute("SELECT size FROM head").fetchone()

        def entries() -> Iterator[tuple[int, bytes, bytes]]:
            for index, token in enumerate(tokens, first):
                selector = {"realm": "evaluation", "token": token}
                told = {"blocks": False, "reason": "by force", "selector": selector}
                data = encode_entry(Entry(index, Kind.REVOKED, at, ADMIN, told))
                yield index, data, hashlib.sha256(b"\x00" + data).digest()

        def revocations() -> Iterator[tuple[int, str, str, str, int, int]]:
            for index, token in enumerate(tokens, first):
                selector = Selector.of(realm="evaluation", token=token).to_text()
                yield index, selector, "by force", ADMIN, at_ms, until_ms

        database.executemany("INSERT INTO ledger (idx, entry, leaf_hash) VALUES (?, ?, ?)", entries())
        database.executemany(
            'INSERT INTO revocations (idx, selector, reason, "by", at_ms, keep_until_ms) VALUES (?, ?, ?, ?, ?, ?)',
            revocations(),
        )
        database.execute("UPDATE head SET size = ?", (first + len(tokens),))


def test_p4_a_million_revocations_reach_a_verifier_in_one_snapshot_of_bounded_frames(stage: Stage) -> None:
    doomed = [stage.mint(user=user) for user in USERS[:50]]
    with stage.verifying("beta") as small:
        small.until(doomed[0].token, "accepted")
        quick_ns = small.ask("time", token=doomed[0].token, times=20_000)["median_ns"]
        small_mib = small.rss_mib()
    stage.kill()
    tokens = [secrets.token_urlsafe(16) for _ in range(REVOCATIONS - len(doomed))]
    fill(stage.folder / "data" / "ledger.db", [*tokens, *(one.id for one in doomed)])
    stage.start()
    live = stage.token()
    print(f"broker: {rss_mib(stage.pid):.0f} MiB")
    with idle_stream(stage, "gamma") as idle:
        sizes, carried, part, parts = [], 0, -1, 1
        while part + 1 != parts:
            message = idle.next_frame()
            body = feed_pb2.FrameBody.FromString(feed_pb2.ListenResponse.FromString(message).frame.body)
            assert body.kind == feed_pb2.FRAME_KIND_SNAPSHOT
            assert body.part == part + 1
            part, parts = body.part, body.parts
            carried += len(body.revocations)
            sizes.append(len(message))
    print(f"snapshot: {parts} frames, {sum(sizes) >> 20} MiB, the largest {max(sizes)} bytes")
    assert carried == REVOCATIONS
    assert max(sizes) <= MAX_FRAME_BYTES
    assert parts > 1
    with stage.verifying("alpha") as verifier:
        took_s = eventually(verifier.is_fresh, "it is fresh", within_s=120)
        state = verifier.state()
        taken_mib, slow_ns = verifier.rss_mib(), verifier.ask("time", token=live, times=20_000)["median_ns"]
        print(
            f"fresh {took_s:.2f} s after it was made, {state['revocations']} revocations, {taken_mib:.0f} MiB "
            f"({small_mib:.0f} MiB without); a verdict takes {slow_ns} ns ({quick_ns} ns without)"
        )
        assert state["revocations"] == REVOCATIONS
        assert taken_mib - small_mib <= MAX_GROWTH_MIB
        for one in doomed:
            assert verifier.verdict(one.token) == "REVOKED"
        assert verifier.verdict(live) == "accepted"
        # And the million does not stand in the way of the next one.
        revoking = stage.revoking(partner="globex")
        verifier.until(live, "REVOKED")
        assert revoking.until_complete()["alpha"].acknowledged
