"""For those who receive or ask for tokens: `Verifier` accepts or refuses them, `Client` mints them."""

from broker.errors import (
    Expired,
    Malformed,
    NotAllowed,
    NotYetValid,
    Rejected,
    Revoked,
    Stale,
    Untrusted,
    WrongRealm,
)
from broker.sdk.asking import Minted, Spec
from broker.sdk.async_client import AsyncClient
from broker.sdk.client import Client
from broker.sdk.identity import Identity, TokenIdentity
from broker.sdk.uses import Proof, Use
from broker.sdk.verifier import Verifier, VerifierState

__all__ = [
    "AsyncClient",
    "Client",
    "Expired",
    "Identity",
    "Malformed",
    "Minted",
    "NotAllowed",
    "NotYetValid",
    "Proof",
    "Rejected",
    "Revoked",
    "Spec",
    "Stale",
    "TokenIdentity",
    "Untrusted",
    "Use",
    "Verifier",
    "VerifierState",
    "WrongRealm",
]
