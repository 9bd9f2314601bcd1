"""What the client and its asyncio twin share: the methods of the wire, and the proofs that go with them."""

from collections.abc import Mapping, Sequence
from typing import Any, NotRequired, TypedDict

from google.protobuf.message import Message

from broker.sdk.asking import OwnCertificate
from broker.sdk.dpop import DpopKey
from broker.sdk.run_key import RunKey
from broker.token.binding import Bound
from broker.v1 import approvals_pb2, runs_pb2, tokens_pb2

CHANNEL_OPTIONS: Sequence[tuple[str, Any]] = (
    ("grpc.keepalive_time_ms", 5_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.use_local_subchannel_pool", 1),
)
METHODS: Mapping[str, tuple[str, Any]] = {
    "Mint": ("/broker.v1.TokenService/Mint", tokens_pb2.MintResponse),
    "MintBatch": ("/broker.v1.TokenService/MintBatch", tokens_pb2.MintBatchResponse),
    "Exchange": ("/broker.v1.TokenService/Exchange", tokens_pb2.ExchangeResponse),
    "OpenRun": ("/broker.v1.RunService/OpenRun", runs_pb2.OpenRunResponse),
    "KeepRun": ("/broker.v1.RunService/KeepRun", runs_pb2.KeepRunResponse),
    "CloseRun": ("/broker.v1.RunService/CloseRun", runs_pb2.CloseRunResponse),
    "RequestApproval": ("/broker.v1.ApprovalService/RequestApproval", approvals_pb2.RequestApprovalResponse),
    "GetApproval": ("/broker.v1.ApprovalService/GetApproval", approvals_pb2.GetApprovalResponse),
    "Withdraw": ("/broker.v1.ApprovalService/Withdraw", approvals_pb2.WithdrawResponse),
}


Metadata = tuple[tuple[str, str], ...]


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
    approval: NotRequired[str | None]
    binding: NotRequired[Bound | OwnCertificate | None]


class ChildFields(TypedDict):
    """What a child of a token shall be; what is left out is as its parent."""

    models: NotRequired[Sequence[str]]
    lifetime_s: NotRequired[int | None]
    binding: NotRequired[Bound | OwnCertificate | None]
    test: NotRequired[str | None]
    workload: NotRequired[str | None]


def proof_metadata(
    path: str, request: Message, key: RunKey | None, run: str | None, holder: DpopKey | None = None
) -> Metadata | None:
    """Return the metadata of one attempt of a call: the proof of the run's key, if the call is one of a run.

    `holder`: the DPoP key to which the subject of an exchange is bound.
    """
    metadata: Metadata = () if key is None else key.metadata(path.removeprefix("/broker.v1."), run, request)
    if holder is not None and isinstance(request, tokens_pb2.ExchangeRequest):
        metadata = (*metadata, ("dpop", holder.proof_for_exchange(path, request.subject_token)))
    return metadata or None
