"""Keys: their names, the certificates by which a root vouches for them, and what a verifier pins."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from broker.errors import Invalid, Malformed, Untrusted
from broker.token.claims import ISSUER
from broker.token.identifiers import identifier
from broker.token.jws import assemble, b64url, parse_jws, signing_input, strict_json, unb64url

CERTIFICATE_TYP = "key-certificate+jwt"
P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
COORDINATE_BYTES = 32
SIGNATURE_BYTES = 64

_ES256 = ec.ECDSA(hashes.SHA256())

Jwk = Mapping[str, str]


class Purpose(StrEnum):
    """What a key may sign. One key, one purpose."""

    TOKEN = "token"  # noqa: S105 - a word, not a secret
    FEED = "feed"
    COMPLETION = "completion"


@dataclass(frozen=True, slots=True)
class RealmTrust:
    """What a verifier of a realm pins: its issuer, its audience, its root keys."""

    realm: str
    issuer: str
    audience: str
    roots: tuple[Jwk, ...]

    def root(self, kid: str) -> ec.EllipticCurvePublicKey | None:
        """Return the pinned root with this thumbprint, or None."""
        for jwk in self.roots:
            if thumbprint(jwk) == kid:
                return load_jwk(jwk)
        return None


@dataclass(frozen=True, slots=True)
class LogTrust:
    """What a stranger pins to check the ledger: the log's origin, its keys and its witnesses', as vkeys."""

    origin: str
    keys: tuple[str, ...]
    witnesses: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TrustedKey:
    """A key that a root certified. Times are Unix seconds.

    It vouches for what it signed with `not_before` <= iat <= `signs_until`, and for nothing that lives
    beyond `expires`.
    """

    kid: str
    realm: str
    purpose: Purpose
    public_key: ec.EllipticCurvePublicKey
    not_before: int
    signs_until: int
    expires: int


def thumbprint(jwk: Jwk) -> str:
    """Return the RFC 7638 SHA-256 thumbprint of a P-256 key, base64url."""
    return thumbprint_of({name: jwk[name] for name in ("crv", "kty", "x", "y")})


def thumbprint_of(required: Jwk) -> str:
    """Return the thumbprint of a key of any kind, given its required members and no other (RFC 7638 §3)."""
    spelled = json.dumps(dict(required), sort_keys=True, separators=(",", ":"))
    return b64url(hashlib.sha256(spelled.encode("ascii")).digest())


def public_jwk(key: ec.EllipticCurvePublicKey) -> dict[str, str]:
    """Return the key as a JWK with exactly kty, crv, x and y."""
    numbers = key.public_numbers()
    return {
        "kty": "EC",
        "crv": "P-256",
        "x": b64url(numbers.x.to_bytes(COORDINATE_BYTES, "big")),
        "y": b64url(numbers.y.to_bytes(COORDINATE_BYTES, "big")),
    }


def load_jwk(jwk: object) -> ec.EllipticCurvePublicKey:
    """Return the P-256 public key of a JWK that has exactly kty, crv, x and y.

    Raises:
        Malformed: Anything else, private members and points off the curve included.
    """
    if not isinstance(jwk, Mapping) or set(jwk) != {"kty", "crv", "x", "y"}:
        raise Malformed("a key must have exactly kty, crv, x and y")
    if jwk["kty"] != "EC" or jwk["crv"] != "P-256":
        raise Malformed("a key must be EC P-256")
    if not isinstance(jwk["x"], str) or not isinstance(jwk["y"], str):
        raise Malformed("a key's coordinates must be strings")
    x, y = unb64url(jwk["x"]), unb64url(jwk["y"])
    if len(x) != COORDINATE_BYTES or len(y) != COORDINATE_BYTES:
        raise Malformed("a key's coordinates must have 32 bytes")
    try:
        numbers = ec.EllipticCurvePublicNumbers(int.from_bytes(x, "big"), int.from_bytes(y, "big"), ec.SECP256R1())
        key = numbers.public_key()
    except ValueError as bad:
        raise Malformed("a key is not a point on P-256") from bad
    # OpenSSL takes x + p for x, and one key with two names would pass for two keys (P8).
    if public_jwk(key) != dict(jwk):
        raise Malformed("a key's coordinates must be below p")
    return key


def verify_es256(key: ec.EllipticCurvePublicKey, signature: bytes, message: bytes) -> bool:
    """Tell whether `signature`, r || s in 64 bytes with the smaller s, is the key's over `message` (RFC 7518 §3.4)."""
    if len(signature) != SIGNATURE_BYTES:
        return False
    r = int.from_bytes(signature[:COORDINATE_BYTES], "big")
    s = int.from_bytes(signature[COORDINATE_BYTES:], "big")
    # CVE-2022-21449: zero must be refused; OpenSSL does, and the rule does not depend on it.
    # Of s and n - s, which both verify, only the smaller is let in, or anyone could respell a token.
    if not (0 < r < P256_ORDER and 0 < s <= P256_ORDER // 2):
        return False
    try:
        key.verify(encode_dss_signature(r, s), message, _ES256)
    except InvalidSignature:
        return False
    return True


def raw_signature(der: bytes) -> bytes:
    """Turn a DER signature into r || s, with the smaller of the two values that s can have."""
    r, s = decode_dss_signature(der)
    return r.to_bytes(COORDINATE_BYTES, "big") + min(s, P256_ORDER - s).to_bytes(COORDINATE_BYTES, "big")


def respelled(signature: bytes) -> bytes:
    """Return somebody else's r || s with the smaller s; what is no signature stays as it is."""
    s = int.from_bytes(signature[COORDINATE_BYTES:], "big")
    if len(signature) != SIGNATURE_BYTES or not 0 < s < P256_ORDER:
        return signature
    return signature[:COORDINATE_BYTES] + min(s, P256_ORDER - s).to_bytes(COORDINATE_BYTES, "big")


def certificate_payload(
    trust: RealmTrust, purpose: Purpose, jwk: Jwk, *, not_before: int, signs_until: int, expires: int
) -> bytes:
    """Return the claims by which a root of `trust` certifies `jwk`."""
    claims = {
        "exp": expires,
        "iat": not_before,
        "iss": trust.issuer,
        "jwk": dict(jwk),
        "nbf": not_before,
        "purpose": purpose.value,
        "realm": trust.realm,
        "signs_until": signs_until,
        "sub": thumbprint(jwk),
    }
    return json.dumps(claims, sort_keys=True, separators=(",", ":")).encode("ascii")


def certificate_signing_input(root_kid: str, payload: bytes) -> bytes:
    """Return what the root signs."""
    return signing_input(typ=CERTIFICATE_TYP, kid=root_kid, payload=payload)


def check_certificate(text: str, trust: RealmTrust, purpose: Purpose) -> TrustedKey:
    """Return the key that a pinned root certified for this realm and purpose. Does not judge time.

    Raises:
        Malformed: Not a certificate of the only form there is.
        Untrusted: Not signed by a root of `trust`, or for another realm or purpose (P8, P9).
    """
    # 1. The form.
    jws = parse_jws(text, typ=CERTIFICATE_TYP)
    # 2. A pinned root signed it.
    root = trust.root(jws.kid)
    if root is None or not verify_es256(root, jws.signature, jws.signing_input):
        raise Untrusted("the certificate is not signed by a pinned root")
    # 3. Exactly our claims.
    claims = strict_json(jws.payload)
    names = {"exp", "iat", "iss", "jwk", "nbf", "purpose", "realm", "signs_until", "sub"}
    if not isinstance(claims, dict) or set(claims) != names:
        raise Malformed("a certificate must have exactly our claims")
    times = [claims[name] for name in ("nbf", "signs_until", "exp")]
    if not all(type(time) is int and time > 0 for time in (*times, claims["iat"])) or times != sorted(times):
        raise Malformed("a certificate's times must be whole seconds in order")
    # 4. For this realm and this purpose.
    if claims["iss"] != trust.issuer or claims["realm"] != trust.realm or claims["purpose"] != purpose.value:
        raise Untrusted("the certificate is for another realm or purpose")
    # 5. The key is the one that it names.
    key = load_jwk(claims["jwk"])
    if thumbprint(claims["jwk"]) != claims["sub"]:
        raise Untrusted("the certificate names another key")
    return TrustedKey(claims["sub"], trust.realm, purpose, key, *times)


def plain_certificate(text: str) -> dict[str, str]:
    """Return a certificate's parts as records keep them; `compact_certificate` is the inverse.

    Kept in plain, so that no record holds text that looks like a piece of a token (P12): a search for
    leaked tokens must find nothing at all.
    """
    jws = parse_jws(text, typ=CERTIFICATE_TYP)
    return {"kid": jws.kid, "payload": jws.payload.decode("utf-8"), "signature": jws.signature.hex()}


def compact_certificate(plain: Mapping[str, str]) -> str:
    """Return the compact JWS of a certificate's parts."""
    message = certificate_signing_input(plain["kid"], plain["payload"].encode("utf-8"))
    return assemble(message, bytes.fromhex(plain["signature"]))


def parse_trust(document: str) -> dict[str, RealmTrust]:
    """Read a trust file: `{"realms": {NAME: {"issuer", "audience", "roots": [JWK, ...]}}}`, perhaps with a `log`.

    Raises:
        Malformed: Anything else; a realm without roots, a key twice, two realms that share an issuer,
            an audience or a root (P8).
    """
    outer = _outer(document)
    trusts: dict[str, RealmTrust] = {}
    seen: set[str] = set()
    realms = outer["realms"]
    assert isinstance(realms, dict)  # noqa: S101 - just looked
    for name, inner in realms.items():
        trust = _realm_trust(name, inner)
        marks = {f"iss {trust.issuer}", f"aud {trust.audience}", *(thumbprint(jwk) for jwk in trust.roots)}
        if len(marks) != len(trust.roots) + 2 or marks & seen:
            raise Malformed(f"realm {name} shares an issuer, an audience or a root")
        seen |= marks
        trusts[name] = trust
    return trusts


def parse_log_trust(document: str) -> LogTrust | None:
    """Return what a trust file says of the log, or None: nothing. Raises Malformed as `parse_trust`."""
    outer = _outer(document)
    if "log" not in outer:
        return None
    inner = outer["log"]
    if not isinstance(inner, dict) or set(inner) != {"origin", "keys", "witnesses"}:
        raise Malformed("the log must have exactly origin, keys and witnesses")
    lists = (inner["keys"], inner["witnesses"])
    if not isinstance(inner["origin"], str) or not all(
        isinstance(keys, list) and all(isinstance(key, str) for key in keys) for keys in lists
    ):
        raise Malformed("the log's origin must be text, its keys and witnesses lists of text")
    if not inner["origin"] or not inner["keys"]:
        raise Malformed("the log must have an origin and at least one key")
    return LogTrust(inner["origin"], tuple(inner["keys"]), tuple(inner["witnesses"]))


def _outer(document: str) -> dict[str, object]:
    # A lone surrogate goes in, for the strict decoder to refuse.
    outer = strict_json(document.encode("utf-8", "surrogatepass"))
    if not isinstance(outer, dict) or not {"realms"} <= set(outer) <= {"realms", "log"}:
        raise Malformed("a trust file must hold `realms`")
    if not isinstance(outer["realms"], dict):
        raise Malformed("a trust file's `realms` must be an object")
    return outer


def _realm_trust(name: str, inner: object) -> RealmTrust:
    if not isinstance(inner, dict) or set(inner) != {"issuer", "audience", "roots"}:
        raise Malformed(f"realm {name} must have exactly issuer, audience and roots")
    issuer, audience, roots = inner["issuer"], inner["audience"], inner["roots"]
    try:
        identifier("realm", name)
        identifier("audience", audience if isinstance(audience, str) else "")
    except Invalid as bad:
        raise Malformed(f"realm {name!r}: {bad}") from bad
    # What no token can say would be a realm in which nothing is ever accepted.
    if not isinstance(issuer, str) or not re.fullmatch(ISSUER, issuer, re.ASCII):
        raise Malformed(f"realm {name} must have an issuer that is a plain https URL")
    if not isinstance(roots, list) or not roots:
        raise Malformed(f"realm {name} must have at least one root")
    for jwk in roots:
        load_jwk(jwk)
    return RealmTrust(name, issuer, audience, tuple(roots))


def render_trust(trusts: Iterable[RealmTrust], log: LogTrust | None = None) -> str:
    """Write a trust file; `parse_trust` and `parse_log_trust` are its inverse."""
    realms = {
        trust.realm: {
            "issuer": trust.issuer,
            "audience": trust.audience,
            "roots": [dict(jwk) for jwk in trust.roots],
        }
        for trust in trusts
    }
    outer: dict[str, object] = {"realms": realms}
    if log is not None:
        outer["log"] = {"origin": log.origin, "keys": list(log.keys), "witnesses": list(log.witnesses)}
    return json.dumps(outer, indent=2, sort_keys=True) + "\n"
