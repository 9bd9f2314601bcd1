"""Receipts: how many a broker checks and makes durable, what that costs a revocation, and what one costs a verifier."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.bench.measuring import Row, per_call_us, spread
from tests.served import POLICY, Served

EACH = POLICY.replace("heartbeat: 1s}", "heartbeat: 1s, receipts: each}", 1)
PLAYERS, SIZE = 200, 200
FLAT_OUT, PACED = 8, 5
TOKENS = 400
REVOKED = 20
WANTED_PER_S = 20_000


def run(folder: Path) -> list[Row]:
    """Measure."""
    with Served(folder / "served", policy=EACH) as broker:
        tokens = [broker.mint() for _ in range(TOKENS)]
        quiet = revoking(broker, [token.id for token in tokens[:REVOKED]])
        flat, at_flat = played(broker, tokens, REVOKED, FLAT_OUT, 0.0)
        paced, at_paced = played(broker, tokens, 2 * REVOKED, PACED, PLAYERS * SIZE / WANTED_PER_S)
        rows = [rate(flat, "flat out"), rate(paced, "sent at that rate")]
        for what, took in (
            ("a batch, sent to answered, flat out", flat["took_ms"]),
            ("a batch, sent to answered, at that rate", paced["took_ms"]),
            ("a revocation committed, nothing else going on", quiet),
            ("a revocation committed, flat out", at_flat),
            ("a revocation committed, at that rate", at_paced),
        ):
            rows.append(Row("receipts", what, spread(took)["p50"], "ms", more=spread(took)))
        return rows + verifying(broker, folder)


def rate(told: dict[str, Any], how: str) -> Row:
    """Return how many a second were checked, durable and answered."""
    per_s = told["receipts"] / told["took_s"]
    more = {"receipts": told["receipts"], "longest heartbeat gap s": told["gap_s"]}
    what = f"checked, durable, answered; {PLAYERS} verifiers, {how}"
    return Row("receipts", what, per_s, "per s", f"{WANTED_PER_S:,} per s", per_s / WANTED_PER_S, more)


def revoking(broker: Served, tokens: list[str]) -> list[float]:
    """Return how long each single revocation took to be committed, ms, sorted."""
    took = []
    for token in tokens:
        began = time.perf_counter()
        broker.revoke(token=token)
        took.append((time.perf_counter() - began) * 1000)
    return sorted(took)


def played(
    broker: Served, tokens: list[Any], first: int, batches: int, every_s: float
) -> tuple[dict[str, Any], list[float]]:
    """Return what the players told, and how long revocations took meanwhile."""
    papers = broker.papers["gateway"]
    arguments = {
        "count": PLAYERS,
        "batches": batches,
        "every_s": every_s,
        "size": SIZE,
        "endpoint": broker.endpoint,
        "certificate": str(papers.certificate),
        "key": str(papers.key),
        "ca": str(papers.ca),
        "tokens": [(token.id, token.index) for token in tokens],
    }
    players = subprocess.Popen(
        [sys.executable, "-m", "tests.bench.receipt_players"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert players.stdin is not None
    assert players.stdout is not None
    try:
        players.stdin.write(json.dumps(arguments) + "\n")
        players.stdin.flush()
        assert json.loads(players.stdout.readline()) == {"ready": True}
        players.stdin.write("go\n")
        players.stdin.flush()
        busy = revoking(broker, [token.id for token in tokens[first : first + REVOKED]])
        return json.loads(players.stdout.readline()), busy
    finally:
        players.kill()
        players.wait(10)


def verifying(broker: Served, folder: Path) -> list[Row]:
    """Return what a verification of a token seen before takes, with a receipt and without."""
    token = broker.mint().token
    took = {}
    for name, policy in (("with a receipt", EACH), ("without", POLICY)):
        broker.apply(policy)
        with broker.verifier(state_dir=folder / f"state-{name}") as verifier:
            broker.until_accepted(verifier, token)
            took[name] = per_call_us(lambda: verifier.verify(token, "mythos"), seconds=1.0)
    us, bare_us = took["with a receipt"], took["without"]
    return [Row("receipts", "verify, token seen before, with a receipt", us, "us", "without", us / bare_us)]
