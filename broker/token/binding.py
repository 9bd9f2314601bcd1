"""What a token is bound to, and the check that whoever shows it holds that (RFC 7800, RFC 8705 §3, RFC 9449 §6)."""

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from broker.errors import Invalid, NotHolder
from broker.token.claims import Claims
from broker.token.dpop import DpopProof, check_dpop
from broker.token.jws import b64url

SHA256_BYTES = 32

_THUMBPRINT = re.compile(r"[A-Za-z0-9_-]{43}", re.ASCII)


class Method(StrEnum):
    """By what a holder is known; the value is the name in `cnf`."""

    MTLS = "x5t#S256"
    DPOP = "jkt"


@dataclass(frozen=True, slots=True)
class Bound:
    """A token is good only for the holder of this certificate (its SHA-256) or key (its RFC 7638 thumbprint).

    `thumbprint` is base64url, 43 characters.

    Raises:
        Invalid: It is not.
    """

    method: Method
    thumbprint: str

    def __post_init__(self) -> None:
        if not _THUMBPRINT.fullmatch(self.thumbprint):
            raise Invalid("binding", "is not a SHA-256 thumbprint", hint="use 43 characters of base64url")

    @classmethod
    def to_certificate(cls, sha256: bytes) -> "Bound":
        """Bind to the certificate whose DER has this hash. Raises Invalid."""
        if len(sha256) != SHA256_BYTES:
            raise Invalid("binding", "is not the SHA-256 of a certificate", hint="use 32 bytes, of the DER form")
        return cls(Method.MTLS, b64url(sha256))

    @property
    def cnf(self) -> dict[str, object]:
        """What the token says."""
        return {self.method.value: self.thumbprint}


def bound_of(claims: Claims) -> Bound | None:
    """Return what a token is bound to, or None: whoever has it may use it."""
    if claims.cnf is None:
        return None
    # Exactly one, or they would not be claims.
    [(method, thumbprint)] = claims.cnf.items()
    return Bound(Method(method), str(thumbprint))


@dataclass(frozen=True, slots=True)
class ShownCertificate:
    """The client certificate of the connection, as the TLS layer verified it: the SHA-256 of its DER form."""

    sha256: bytes

    @classmethod
    def of_der(cls, der: bytes) -> "ShownCertificate":
        """Take the certificate itself."""
        return cls(hashlib.sha256(der).digest())


@dataclass(frozen=True, slots=True)
class ShownProof:
    """The DPoP proof of one request of `method` to `url`, which is what was called and not what the proof says."""

    text: str
    method: str
    url: str


Shown = ShownCertificate | ShownProof
"""By what a client shows that a token is its own."""


def check_holder(
    token: str,
    cnf: Mapping[str, object] | None,
    shown: Shown | None,
    *,
    earliest_s: int,
    latest_s: int,
    remember: Callable[[DpopProof], None],
) -> None:
    """Step 9 of accepting a token: it is bound to nothing, or to what is shown.

    `earliest_s` and `latest_s` are two bounds of now. A DPoP proof is accepted once: `remember` raises at the second.

    Raises:
        NotHolder: Refused.
    """
    match shown:
        case ShownProof(text, method, url):
            if cnf is None or Method.DPOP not in cnf:
                # RFC 9449 §7.1: what looks bound, and is not, must not pass for it.
                raise NotHolder("a DPoP proof came with a token that is bound to no key", hint="send it as a bearer")
            key = str(cnf[Method.DPOP])
            remember(
                check_dpop(text, token=token, method=method, url=url, key=key, earliest_s=earliest_s, latest_s=latest_s)
            )
        case ShownCertificate(sha256) if cnf is not None and Method.MTLS in cnf:
            if b64url(sha256) != cnf[Method.MTLS]:
                raise NotHolder("the token is bound to another client certificate")
        case _ if cnf is not None:
            needs = "a DPoP proof" if Method.DPOP in cnf else "its client certificate"
            raise NotHolder(f"the token is bound to a key: {needs} must come with it", hint=_HINT)


_HINT = "use it where it was minted for; a service must be set up to check bindings"
