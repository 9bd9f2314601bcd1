"""The proof that a caller holds a run's key: a compact JWS over one request, strict like a token (RFC 7515).

A run is opened with a P-256 key of the harness's own. Each later call in the run carries a proof in the
metadata entry `run-proof`, made for exactly this request: whoever took the run's id, or a proof, has nothing.
"""

import hashlib
import re
from dataclasses import dataclass

from broker.errors import Malformed, RunProofRefused
from broker.token.identifiers import OPAQUE_ID, opaque_id
from broker.token.jws import ParsedJws, b64url, parse_jws, signing_input
from broker.token.keys import Jwk, load_jwk, thumbprint, verify_es256

RUN_PROOF_TYP = "run-proof+jwt"
RUN_PROOF_KEY = "run-proof"
"""The metadata entry that carries it."""
MAX_PROOF_BYTES = 1024
# How long ago a proof may have been made, and how far ahead the harness's clock may be.
MAX_AGE_S = 120
MAX_AHEAD_S = 30
REMEMBER_S = MAX_AGE_S + MAX_AHEAD_S + 10
"""How long a proof's id must be remembered, so that it is accepted once."""

METHOD = r"[A-Z][A-Za-z]{1,63}/[A-Z][A-Za-z]{1,63}"
_PAYLOAD = re.compile(
    rb'\{"iat":([1-9][0-9]{0,11}),"jti":"(%b)","method":"(%b)",(?:"run":"(%b)",)?"sha256":"([A-Za-z0-9_-]{43})"\}'
    % (OPAQUE_ID.encode("ascii"), METHOD.encode("ascii"), OPAQUE_ID.encode("ascii"))
)
_METHOD = re.compile(METHOD, re.ASCII)


@dataclass(frozen=True, slots=True)
class ProofClaims:
    """What a proof says: at `iat` (Unix seconds), under the id `jti`, this request of `method`, in `run`.

    `run` is None in the call that opens one. `sha256` is that of the serialized request, base64url.

    Raises:
        Malformed: A claim breaks its rule.
    """

    method: str
    run: str | None
    sha256: str
    jti: str
    iat: int

    def __post_init__(self) -> None:
        if not _METHOD.fullmatch(self.method) or type(self.iat) is not int:
            raise Malformed("a run proof needs a method and an instant")
        opaque_id("jti", self.jti)
        if self.run is not None:
            opaque_id("run", self.run)


@dataclass(frozen=True, slots=True)
class UnverifiedProof:
    """A proof of the right form, whose signature nobody has looked at: it says which run's key is to be asked for."""

    claims: ProofClaims
    jws: ParsedJws


def request_hash(request: bytes) -> str:
    """Return what a proof says of a request: the SHA-256 of its serialization, base64url.

    Serialized deterministically, fields by number, as Protocol Buffers' libraries do when they are told so.
    """
    return b64url(hashlib.sha256(request).digest())


def proof_signing_input(kid: str, claims: ProofClaims) -> bytes:
    """Return what the run's key signs; `broker.token.jws.assemble` makes the proof of it."""
    run = "" if claims.run is None else f'"run":"{claims.run}",'
    payload = f'{{"iat":{claims.iat},"jti":"{claims.jti}","method":"{claims.method}",{run}"sha256":"{claims.sha256}"}}'
    return signing_input(typ=RUN_PROOF_TYP, kid=kid, payload=payload.encode("ascii"))


def parse_run_proof(text: str) -> UnverifiedProof:
    """Take a proof apart without believing it.

    Raises:
        RunProofRefused: Not exactly the one form there is.
    """
    try:
        jws = parse_jws(text, typ=RUN_PROOF_TYP, max_bytes=MAX_PROOF_BYTES)
    except Malformed as bad:
        raise RunProofRefused(f"the run proof is malformed: {bad.message}") from bad
    found = _PAYLOAD.fullmatch(jws.payload)
    if found is None:
        raise RunProofRefused("the run proof is malformed: not exactly its claims, spelled as they must be")
    iat, jti, method, run, sha256 = (None if part is None else part.decode("ascii") for part in found.groups())
    assert iat is not None and jti is not None and method is not None and sha256 is not None  # noqa: S101, PT018 - the pattern demands them
    return UnverifiedProof(ProofClaims(method, run, sha256, jti, int(iat)), jws)


def check_run_proof(
    proof: UnverifiedProof, key: Jwk, *, method: str, run: str | None, request: bytes, now_s: float
) -> ProofClaims:
    """Return the claims of a proof by `key`, for exactly this request of this method in this run, made just now.

    Whether it was used before is the caller's to look up, by `jti`, after this.

    Raises:
        RunProofRefused: Refused; says why.
    """
    # 1. The run's own key, by its thumbprint, and its signature.
    if proof.jws.kid != thumbprint(key):
        raise RunProofRefused(
            "the run proof is by another key than the one the run was opened with",
            hint="resume a run with the key file that was written when it was opened, or open a new run",
        )
    if not verify_es256(load_jwk(key), proof.jws.signature, proof.jws.signing_input):
        raise RunProofRefused("the run proof has a wrong signature")
    claims = proof.claims
    # 2. This method and this run: what was signed for one call is no proof for another.
    if claims.method != method:
        raise RunProofRefused(f"the run proof is for {claims.method}, not for {method}")
    if claims.run != run:
        raise RunProofRefused("the run proof is for another run")
    # 3. This very request.
    if claims.sha256 != request_hash(request):
        raise RunProofRefused(
            "the run proof is for another request", hint="hash the request's deterministic serialization"
        )
    # 4. Made just now, by the broker's clock, which is told so that the caller can correct its own.
    clock = {"now": str(int(now_s))}
    if claims.iat > now_s + MAX_AHEAD_S:
        raise RunProofRefused("the run proof is from the future", hint="set the caller's clock right", metadata=clock)
    if claims.iat < now_s - MAX_AGE_S:
        raise RunProofRefused("the run proof is too old", hint="make one for each attempt", metadata=clock)
    return claims
