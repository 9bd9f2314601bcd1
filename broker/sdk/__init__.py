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
from broker.sdk.identity import Identity
from broker.sdk.uses import Proof, Use
from broker.sdk.verifier import Verifier, VerifierState

__all__ = [
    "Expired",
    "Identity",
    "Malformed",
    "NotAllowed",
    "NotYetValid",
    "Proof",
    "Rejected",
    "Revoked",
    "Stale",
    "Untrusted",
    "Use",
    "Verifier",
    "VerifierState",
    "WrongRealm",
]
