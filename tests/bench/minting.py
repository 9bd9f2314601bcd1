"""Minting: one by one and in batches, beside OpenBao's ways to issue a token."""

import base64
import secrets
from collections.abc import Callable
from pathlib import Path

from broker.v1 import tokens_pb2
from tests.bench.measuring import Row, load, spread
from tests.bench.openbao import Bao
from tests.served import Served

SECONDS = 4.0
# As long as a token's signing input.
SIGNED = base64.b64encode(bytes(700)).decode()


def run(folder: Path) -> list[Row]:
    """Measure all in turns, with the same number of callers on kept-open connections."""
    rows: list[Row] = []
    with Served(folder / "served") as broker, Bao(folder) as bao:

        def one() -> Callable[[], int]:
            stub, spec = broker.tokens(), broker.spec()

            def call() -> int:
                stub.Mint(tokens_pb2.MintRequest(request_id=secrets.token_urlsafe(16), spec=spec))
                return 1

            return call

        def batch(size: int) -> Callable[[], Callable[[], int]]:
            def make() -> Callable[[], int]:
                stub, specs = broker.tokens(), [broker.spec()] * size

                def call() -> int:
                    request = tokens_pb2.MintBatchRequest(request_id=secrets.token_urlsafe(16), specs=specs)
                    return len(stub.MintBatch(request).tokens)

                return call

            return make

        def peer(method: str, path: str, body: object, token: str) -> Callable[[], Callable[[], int]]:
            def make() -> Callable[[], int]:
                ask = bao.caller(method, path, body, token)

                def call() -> int:
                    ask()
                    return 1

                return call

            return make

        peers = {
            "OpenBao identity/oidc/token (ES256)": peer("GET", "/v1/identity/oidc/token/peer", None, bao.user_token),
            "OpenBao auth/token/create": peer("POST", "/v1/auth/token/create", {"ttl": "10m"}, "bench-root"),
            "OpenBao transit/sign (P-256)": peer("POST", "/v1/transit/sign/peer", {"input": SIGNED}, "bench-root"),
        }
        for workers in (1, 8):
            ours, latencies = load(one, workers=workers, seconds=SECONDS)
            for name, make in peers.items():
                theirs, theirs_ms = load(make, workers=workers, seconds=SECONDS)
                rows.append(Row(f"mint, {workers} callers", name, theirs, "tokens/s", more=spread(theirs_ms)))
                rows.append(
                    Row(
                        f"mint, {workers} callers",
                        "mint, ledger durable",
                        ours,
                        "tokens/s",
                        name,
                        ours / theirs,
                        spread(latencies),
                    )
                )
        for workers in (1, 2):
            rate, latencies = load(batch(500), workers=workers, seconds=SECONDS)
            rows.append(
                Row(f"mint in batches, {workers} callers", "batches of 500", rate, "tokens/s", more=spread(latencies))
            )
    return rows
