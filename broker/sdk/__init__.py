"""For those who receive or ask for tokens: `Verifier` accepts or refuses them, `Client` mints them."""

from broker.errors import (
    ApprovalNeeded,
    ApprovalOver,
    Expired,
    Malformed,
    NotAllowed,
    NotHolder,
    NotYetValid,
    ReceiptsUnkept,
    Rejected,
    Revoked,
    Stale,
    Untrusted,
    UsedUp,
    WrongRealm,
)
from broker.sdk.approvals import Approval
from broker.sdk.asking import Minted, Spec
from broker.sdk.async_client import AsyncClient
from broker.sdk.async_run import AsyncRun
from broker.sdk.client import Client
from broker.sdk.dpop import DpopKey
from broker.sdk.identity import Identity, KeyIdentity, TokenIdentity
from broker.sdk.receipting import ReceiptPace
from broker.sdk.run import Run
from broker.sdk.uses import Proof, Use
from broker.sdk.verifier import Verifier, VerifierState
from broker.token.binding import ShownCertificate, ShownProof

__all__ = [
    "Approval",
    "ApprovalNeeded",
    "ApprovalOver",
    "AsyncClient",
    "AsyncRun",
    "Client",
    "DpopKey",
    "Expired",
    "Identity",
    "KeyIdentity",
    "Malformed",
    "Minted",
    "NotAllowed",
    "NotHolder",
    "NotYetValid",
    "Proof",
    "ReceiptPace",
    "ReceiptsUnkept",
    "Rejected",
    "Revoked",
    "Run",
    "ShownCertificate",
    "ShownProof",
    "Spec",
    "Stale",
    "TokenIdentity",
    "Untrusted",
    "Use",
    "UsedUp",
    "Verifier",
    "VerifierState",
    "WrongRealm",
]
