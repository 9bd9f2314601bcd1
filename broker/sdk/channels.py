"""What the client and its asyncio twin share: the methods of the wire, and tokens held until they are about to end."""

from collections.abc import Mapping, Sequence
from typing import Any, NotRequired, TypedDict

from broker.sdk.asking import RENEW_AT, life_s
from broker.v1 import runs_pb2, tokens_pb2

CHANNEL_OPTIONS: Sequence[tuple[str, Any]] = (
    ("grpc.keepalive_time_ms", 5_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.use_local_subchannel_pool", 1),
)
METHODS: Mapping[str, tuple[str, Any]] = {
    "Mint": ("/broker.v1.TokenService/Mint", tokens_pb2.MintResponse),
    "MintBatch": ("/broker.v1.TokenService/MintBatch", tokens_pb2.MintBatchResponse),
    "OpenRun": ("/broker.v1.RunService/OpenRun", runs_pb2.OpenRunResponse),
    "KeepRun": ("/broker.v1.RunService/KeepRun", runs_pb2.KeepRunResponse),
    "CloseRun": ("/broker.v1.RunService/CloseRun", runs_pb2.CloseRunResponse),
}
SWEEP_ABOVE = 1024


class Fields(TypedDict):
    """The fields of `Spec`."""

    realm: str
    partner: str
    models: Sequence[str]
    user: NotRequired[str | None]
    workload: NotRequired[str | None]
    run: NotRequired[str | None]
    test: NotRequired[str | None]
    lifetime_s: NotRequired[int | None]


class Wallet:
    """The tokens of one run by test, each until it is about to end. Instants are monotonic seconds."""

    def __init__(self) -> None:
        self._held: dict[str | None, tuple[str, float]] = {}

    def get(self, test: str | None, now_s: float) -> str | None:
        """Return the token for `test`, or None: mint a new one."""
        text, renew_at_s = self._held.get(test, ("", 0.0))
        return text if now_s < renew_at_s else None

    def put(self, test: str | None, text: str, asked_s: float) -> None:
        """Hold a token that was asked for at `asked_s`. Raises Malformed."""
        if len(self._held) >= SWEEP_ABOVE:
            self._held = {name: held for name, held in list(self._held.items()) if asked_s < held[1]}
        # Its life began after it was asked for.
        self._held[test] = (text, asked_s + life_s(text) * RENEW_AT)
