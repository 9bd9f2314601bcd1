"""Signing keys in this process's memory, certified by the realm's root for some minutes."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import datetime

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from broker.token.keys import Jwk, Purpose, public_jwk, raw_signature, thumbprint

_ES256 = ec.ECDSA(hashes.SHA256())


@dataclass(frozen=True, slots=True)
class MemoryKey:
    """The SigningKey port on a key in memory; signing is done when `sign` returns."""

    kid: str
    certificate: str
    signs_until: datetime
    _private: ec.EllipticCurvePrivateKey = field(repr=False)

    def sign(self, messages: Sequence[bytes]) -> "Future[Sequence[bytes]]":
        """As the port says."""
        done: Future[Sequence[bytes]] = Future()
        done.set_result([raw_signature(self._private.sign(message, _ES256)) for message in messages])
        return done


def make_memory_key(realm: str, purpose: Purpose, certify: Callable[[Jwk], str], signs_until: datetime) -> MemoryKey:
    """Make a new key and have it certified (a MakeKey of key_rotation)."""
    del realm, purpose
    private = ec.generate_private_key(ec.SECP256R1())
    jwk = public_jwk(private.public_key())
    return MemoryKey(thumbprint(jwk), certify(jwk), signs_until, private)
