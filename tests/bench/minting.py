"""Minting: one by one and in batches, beside OpenBao's ways to issue a token."""

import base64
import secrets
from collections.abc import Callable
from pathlib import Path

from broker.v1 import tokens_pb2
from tests.authority import Authority
from tests.bench.measuring import Row, load, spread
from tests.bench.openbao import Peer, peers
from tests.served import Served

SECONDS = 4.0
ROUNDS = 2
BATCH = 500
# As long as a token's signing input.
SIGNED = base64.b64encode(bytes(700)).decode()

MakeCall = Callable[[], Callable[[], int]]
Measured = tuple[float, list[float]]


def run(folder: Path) -> list[Row]:
    """Measure all in turns, with the same number of callers on kept-open connections."""
    rows: list[Row] = []
    servers = peers(folder, Authority(folder / "peers").server())
    try:
        for server in servers.values():
            server.start()
        with Served(folder / "served") as broker:
            for callers in (1, 8):
                rows += _one_by_one(broker, servers, callers)
            for callers in (1, 2):
                rate, latencies = load(_batch(broker), workers=callers, seconds=SECONDS)
                rows.append(
                    Row(f"mint, {callers} callers", f"batches of {BATCH}", rate, "tokens/s", more=spread(latencies))
                )
    finally:
        for server in servers.values():
            server.stop()
    return rows


def _one_by_one(broker: Served, servers: dict[str, Peer], callers: int) -> list[Row]:
    bench = f"mint, {callers} callers"
    calls: dict[str, MakeCall] = {"mint, ledger durable": _mint(broker)}
    for form, server in servers.items():
        calls[f"OpenBao ({form}) identity/oidc/token ES256"] = _ask(
            server, "GET", "identity/oidc/token/peer", None, server.user_token
        )
        calls[f"OpenBao ({form}) auth/token/create"] = _ask(server, "POST", "auth/token/create", {"ttl": "10m"})
        calls[f"OpenBao ({form}) transit/sign P-256"] = _ask(server, "POST", "transit/sign/peer", {"input": SIGNED})
    best: dict[str, Measured] = {}
    # In turns, and the best of each: whatever else the machine does hits all alike.
    for _ in range(ROUNDS):
        for name, make in calls.items():
            measured = load(make, workers=callers, seconds=SECONDS)
            best[name] = max(best.get(name, measured), measured, key=lambda one: one[0])
    ours, latencies = best.pop("mint, ledger durable")
    rows = [Row(bench, "mint, ledger durable", ours, "tokens/s", more=spread(latencies))]
    for name, (rate, theirs) in best.items():
        rows.append(Row(bench, name, rate, "tokens/s", "mint over this", ours / rate, spread(theirs)))
    return rows


def _mint(broker: Served) -> MakeCall:
    def make() -> Callable[[], int]:
        stub, spec = broker.tokens(), broker.spec()

        def call() -> int:
            stub.Mint(tokens_pb2.MintRequest(request_id=secrets.token_urlsafe(16), spec=spec))
            return 1

        return call

    return make


def _batch(broker: Served) -> MakeCall:
    def make() -> Callable[[], int]:
        stub, specs = broker.tokens(), [broker.spec()] * BATCH

        def call() -> int:
            request = tokens_pb2.MintBatchRequest(request_id=secrets.token_urlsafe(16), specs=specs)
            return len(stub.MintBatch(request).tokens)

        return call

    return make


def _ask(server: Peer, method: str, path: str, body: object, token: str | None = None) -> MakeCall:
    def make() -> Callable[[], int]:
        ask = server.caller(method, path, body, token)

        def call() -> int:
            ask()
            return 1

        return call

    return make
