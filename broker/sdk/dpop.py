"""A client's DPoP key: it proves for each request that the token is its own (RFC 9449)."""

import secrets
import time
from pathlib import Path
from typing import Self

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from broker.errors import ConfigInvalid
from broker.token.claims import TOKEN_TYP, decode_claims
from broker.token.dpop import make_dpop
from broker.token.jws import parse_jws
from broker.token.keys import public_jwk, raw_signature, thumbprint

_ES256 = ec.ECDSA(hashes.SHA256())


class DpopKey:
    """A P-256 key. Tokens are bound to its `thumbprint`; who has the token without it has nothing.

    Without a key to take, a new one is made, which lives as long as this object.
    """

    def __init__(self, key: ec.EllipticCurvePrivateKey | None = None) -> None:
        self._key = key or ec.generate_private_key(ec.SECP256R1())
        if not isinstance(self._key.curve, ec.SECP256R1):
            raise ConfigInvalid("DPoP key", ("must be on P-256",))
        self._jwk = public_jwk(self._key.public_key())

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Take the key of an unencrypted PEM file. Raises ConfigInvalid."""
        try:
            key = serialization.load_pem_private_key(Path(path).read_bytes(), None)
        except (OSError, ValueError, TypeError) as bad:
            raise ConfigInvalid("DPoP key", (f"{path}: is no private key in PEM",)) from bad
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ConfigInvalid("DPoP key", (f"{path}: must be on P-256",))
        return cls(key)

    @property
    def thumbprint(self) -> str:
        """What a token's `cnf.jkt` says (RFC 7638)."""
        return thumbprint(self._jwk)

    def proof_for_exchange(self, path: str, token: str) -> str:
        """Return the proof by which a broker derives a child of `token`. Raises Malformed: it is no token."""
        unverified = decode_claims(parse_jws(token, typ=TOKEN_TYP).payload)
        return self.proof("POST", unverified.iss + path, token)

    def proof(self, method: str, url: str, token: str) -> str:
        """Return the value of the header `DPoP` for one request; it is good for a minute, and once.

        To a gRPC service it is `POST` to `ORIGIN/package.Service/Method`, in the metadata entry `dpop`.
        """
        return make_dpop(
            self._jwk,
            lambda message: raw_signature(self._key.sign(message, _ES256)),
            method=method,
            url=url,
            token=token,
            jti=secrets.token_urlsafe(16),
            now_s=int(time.time()),
        )
