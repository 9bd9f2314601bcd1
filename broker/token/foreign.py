"""JWTs of other issuers: taken apart strictly, and checked with a key of their issuer's set."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NoReturn

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from broker.errors import Malformed, Unauthenticated
from broker.token.jws import MAX_SAFE_INT, unb64url
from broker.token.keys import thumbprint_of

MAX_FOREIGN_BYTES = 16_384
MAX_KEYS = 100
LEEWAY_S = 30
# OpenBao's default; whatever lives for longer is not what this door is for.
MAX_LIFE_S = 86_400
MAX_CLAIM_CHARS = 512
SEGMENTS = 3
RSA_BITS = range(2048, 8193)
MAX_EXPONENT = 1 << 32

# Names that are read or harmless. `jwk`, `jku`, `x5u` and `x5c` would let a token bring its own key, `crit` and `b64`
# change what is signed, `zip` and `cty` what is in it: with any other name it is refused.
HEADER_NAMES = frozenset({"alg", "kid", "typ", "x5t", "x5t#S256"})

_HASHES: Mapping[str, hashes.HashAlgorithm] = {
    "256": hashes.SHA256(),
    "384": hashes.SHA384(),
    "512": hashes.SHA512(),
}
_CURVES: Mapping[str, tuple[str, ec.EllipticCurve, int]] = {
    "P-256": ("ES256", ec.SECP256R1(), 32),
    "P-384": ("ES384", ec.SECP384R1(), 48),
    "P-521": ("ES512", ec.SECP521R1(), 66),
}
_RSA_ALGORITHMS = frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"})
_ED_ALGORITHMS = frozenset({"EdDSA", "Ed25519"})
# An allow-list (RFC 8725bis §3.1): no `none` in any spelling, and nothing symmetric.
ALGORITHMS = _RSA_ALGORITHMS | _ED_ALGORITHMS | {algorithm for algorithm, _, _ in _CURVES.values()}

_KID = re.compile(r"[!-~]{1,256}", re.ASCII)
_THUMBPRINT = re.compile(r"[A-Za-z0-9_-]{43}", re.ASCII)

PublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey


@dataclass(frozen=True, slots=True)
class UnverifiedToken:
    """A JWT of the right form. Nothing in it is verified."""

    alg: str
    kid: str
    claims: Mapping[str, Any]
    signing_input: bytes
    signature: bytes


@dataclass(frozen=True, slots=True)
class ForeignKey:
    """A key that an issuer publishes, for exactly one algorithm. `name` is its thumbprint: the same key or another."""

    kid: str
    alg: str
    name: str
    public_key: PublicKey


def parse_foreign(text: str) -> UnverifiedToken:
    """Take a compact JWT apart without believing it.

    Raises:
        Malformed: It is not exactly three canonical base64url segments, its header has a name that is not
            needed, or its JSON has more than one meaning.
    """
    if len(text) > MAX_FOREIGN_BYTES:
        raise Malformed(f"longer than {MAX_FOREIGN_BYTES} bytes")
    segments = text.split(".", SEGMENTS)
    if len(segments) != SEGMENTS or not all(segments):
        raise Malformed("not three base64url segments")
    header, claims = (_object_of(unb64url(segment)) for segment in segments[:2])
    unknown = sorted(set(header) - HEADER_NAMES)
    if unknown:
        raise Malformed(f"its header has {_shown(unknown[0])}, which nobody needs who is honest")
    # RFC 8725 §3.11: an access token, a DPoP proof or a list of revocations is no identity.
    if header.get("typ", "JWT") != "JWT":
        raise Malformed("its typ is not JWT")
    alg, kid = header.get("alg"), header.get("kid")
    if not isinstance(alg, str) or alg not in ALGORITHMS:
        raise Malformed("its alg is not one of " + ", ".join(sorted(ALGORITHMS)))
    if not isinstance(kid, str) or not _KID.fullmatch(kid):
        raise Malformed("it does not say which key it is signed with (kid)")
    signing_input = f"{segments[0]}.{segments[1]}".encode("ascii")
    return UnverifiedToken(alg, kid, claims, signing_input, unb64url(segments[2]))


def read_key_set(data: bytes) -> dict[str, ForeignKey]:
    """Return the keys of a JWK Set by `kid`; keys of unknown kinds or for another use are left out (RFC 7517 §5).

    Raises:
        Malformed: It is no key set, or names a key twice, so that it is unclear which one is meant.
    """
    members = _object_of(data).get("keys")
    if not isinstance(members, list) or len(members) > MAX_KEYS:
        raise Malformed(f"it is not a set of at most {MAX_KEYS} keys")
    keys: dict[str, ForeignKey] = {}
    named: set[str] = set()
    for member in members:
        kid = member.get("kid") if isinstance(member, dict) else None
        if not isinstance(kid, str) or not _KID.fullmatch(kid):
            continue
        if kid in named:
            raise Malformed(f"it has the key {_shown(kid)} twice")
        named.add(kid)
        key = _key(kid, member)
        if key is not None:
            keys[kid] = key
    return keys


def is_signed_by(token: UnverifiedToken, key: ForeignKey) -> bool:
    """Tell whether `key` signed `token`, with the one algorithm that the key is for."""
    if token.alg != key.alg or token.kid != key.kid:
        return False
    signature, message = token.signature, token.signing_input
    try:
        match key.public_key:
            case rsa.RSAPublicKey() as public:
                algorithm = _HASHES[key.alg[2:]]
                filling: padding.AsymmetricPadding = padding.PKCS1v15()
                if key.alg.startswith("PS"):
                    # RFC 7518 §3.5: the salt is as long as the hash.
                    filling = padding.PSS(padding.MGF1(algorithm), padding.PSS.DIGEST_LENGTH)
                public.verify(signature, message, filling, algorithm)
            case ec.EllipticCurvePublicKey() as public:
                public.verify(_der(signature, public), message, ec.ECDSA(_HASHES[key.alg[2:]]))
            case _:
                key.public_key.verify(signature, message)
    except (InvalidSignature, UnsupportedAlgorithm, ValueError):
        return False
    return True


def check_claims(claims: Mapping[str, Any], *, issuer: str, audience: str, now: datetime) -> int:
    """Check who issued a token, for whom and when; return the second in which it ends.

    Raises:
        Unauthenticated: It is another issuer's, for another audience, for several, over, or not yet begun.
    """
    if claims.get("iss") != issuer:
        raise refused("it is of another issuer")
    aud = claims.get("aud")
    # One that is for others, too, could be replayed by each of them.
    if aud not in (audience, [audience]):
        raise refused("it is not for this broker alone", hint=f"ask the issuer for a token with aud {audience!r}")
    if not isinstance(claims.get("sub"), str) or not 0 < len(claims["sub"]) <= MAX_CLAIM_CHARS:
        raise refused("it has no subject (sub)")
    now_s = int(now.timestamp())
    ends, issued, begins = (_instant(claims, name) for name in ("exp", "iat", "nbf"))
    if ends is None or issued is None:
        raise refused("it lacks exp or iat")
    if ends - issued > MAX_LIFE_S:
        raise refused("it lives for more than a day", hint="ask the issuer for a shorter one")
    if now_s >= ends + LEEWAY_S:
        raise refused("it has ended", hint="get a new one, and retry")
    if max(issued, begins or 0) > now_s + LEEWAY_S:
        raise refused("it is from the future", hint="compare the clocks of issuer and broker")
    return ends


def authentication_instant(claims: Mapping[str, Any]) -> int | None:
    """Return the second in which the human gave proof of themselves, if the issuer says so.

    Raises:
        Unauthenticated: It lies after the token was issued: a login in the future would stay a recent one.
    """
    at, issued = _instant(claims, "auth_time"), _instant(claims, "iat")
    if at is not None and (issued is None or at > issued + LEEWAY_S):
        raise refused("its login (auth_time) is from the future")
    return at


def key_of_nonce(claims: Mapping[str, Any]) -> str | None:
    """Return the thumbprint of the key that a token is bound to by its nonce, or None: it is bound to none."""
    nonce = claims.get("nonce")
    return nonce if isinstance(nonce, str) and _THUMBPRINT.fullmatch(nonce) else None


def refused(why: str, *, hint: str = "") -> Unauthenticated:
    """Return what is raised when an identity token is not accepted."""
    return Unauthenticated(
        f"the identity token is not accepted: {why}", hint=hint or "present a token of a provider in the policy"
    )


def foreign_json(data: bytes) -> Any:
    """Parse somebody's JSON: no name twice, no NaN, no huge number, UTF-8, no half of a character.

    Raises:
        Malformed: Anything else.
    """
    try:
        # `decode` first: json.loads of bytes would guess UTF-16 and UTF-32 and skip a BOM.
        value = _DECODER.decode(data.decode("utf-8"))
        if b"\\" in data:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as bad:
        raise Malformed("it is not JSON with one meaning") from bad
    return value


def _object_of(data: bytes) -> dict[str, Any]:
    value = foreign_json(data)
    if not isinstance(value, dict):
        raise Malformed("it is not a JSON object")
    return value


def _instant(claims: Mapping[str, Any], name: str) -> int | None:
    value = claims.get(name)
    if value is None:
        return None
    # `true` is a number to Python.
    if type(value) is not int or not 0 <= value <= MAX_SAFE_INT:
        raise refused(f"its {name} is not a whole number of seconds")
    return value


def _key(kid: str, jwk: Mapping[str, Any]) -> ForeignKey | None:
    operations = jwk.get("key_ops", ["verify"])
    if jwk.get("use", "sig") != "sig" or not isinstance(operations, list) or "verify" not in operations:
        return None
    # Whose private half is published is nobody's key any more.
    if {"d", "k", "p", "q"} & set(jwk):
        return None
    try:
        match jwk.get("kty"):
            case "RSA":
                return _rsa_key(kid, jwk)
            case "EC":
                return _ec_key(kid, jwk)
            case "OKP":
                return _ed_key(kid, jwk)
    except (Malformed, ValueError, UnsupportedAlgorithm):
        return None
    return None


def _rsa_key(kid: str, jwk: Mapping[str, Any]) -> ForeignKey | None:
    alg = jwk.get("alg", "RS256")
    n, e = (int.from_bytes(unb64url(_text(jwk, name)), "big") for name in ("n", "e"))
    if alg not in _RSA_ALGORITHMS or n.bit_length() not in RSA_BITS or not 3 <= e < MAX_EXPONENT:  # noqa: PLR2004 - as RFC 8017
        return None
    name = thumbprint_of({"kty": "RSA", "n": jwk["n"], "e": jwk["e"]})
    return ForeignKey(kid, alg, name, rsa.RSAPublicNumbers(e, n).public_key())


def _ec_key(kid: str, jwk: Mapping[str, Any]) -> ForeignKey | None:
    alg, curve, size = _CURVES.get(_text(jwk, "crv"), ("", ec.SECP256R1(), 0))
    x, y = unb64url(_text(jwk, "x")), unb64url(_text(jwk, "y"))
    if not alg or jwk.get("alg", alg) != alg or len(x) != size or len(y) != size:
        return None
    numbers = ec.EllipticCurvePublicNumbers(int.from_bytes(x, "big"), int.from_bytes(y, "big"), curve)
    name = thumbprint_of({"kty": "EC", "crv": jwk["crv"], "x": jwk["x"], "y": jwk["y"]})
    return ForeignKey(kid, alg, name, numbers.public_key())


def _ed_key(kid: str, jwk: Mapping[str, Any]) -> ForeignKey | None:
    alg = jwk.get("alg", "EdDSA")
    if jwk.get("crv") != "Ed25519" or alg not in _ED_ALGORITHMS:
        return None
    public = ed25519.Ed25519PublicKey.from_public_bytes(unb64url(_text(jwk, "x")))
    return ForeignKey(kid, alg, thumbprint_of({"kty": "OKP", "crv": "Ed25519", "x": jwk["x"]}), public)


def _text(jwk: Mapping[str, Any], name: str) -> str:
    value = jwk.get(name)
    if not isinstance(value, str):
        raise Malformed("a key lacks a part")
    return value


def _der(signature: bytes, key: ec.EllipticCurvePublicKey) -> bytes:
    size = (key.curve.key_size + 7) // 8
    if len(signature) != 2 * size:
        raise ValueError("not r || s")
    r, s = int.from_bytes(signature[:size], "big"), int.from_bytes(signature[size:], "big")
    # CVE-2022-21449: OpenSSL refuses zero, and the rule does not depend on it.
    if not r or not s:
        raise ValueError("zero")
    return encode_dss_signature(r, s)


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = dict(pairs)
    if len(names) != len(pairs):
        raise Malformed("it has a name twice")
    return names


def _integer(text: str) -> int:
    if len(text) > 17 or abs(int(text)) > MAX_SAFE_INT:  # noqa: PLR2004 - digits of 2^53, sign
        raise Malformed("it has a number beyond 2^53")
    return int(text)


def _fraction(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise Malformed("it has a number that is none")
    return value


def _no_number(_text: str) -> NoReturn:
    raise Malformed("it has a number that is none")


def _shown(text: str) -> str:
    return ascii(text if len(text) <= 40 else text[:40] + "...")  # noqa: PLR2004 - the sum of it


_DECODER = json.JSONDecoder(
    object_pairs_hook=_pairs, parse_float=_fraction, parse_int=_integer, parse_constant=_no_number
)
