"""DPoP proofs: that the sender of one request holds the key that its token is bound to (RFC 9449)."""

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field

from broker.errors import Malformed, NotHolder
from broker.token.jws import SIGNATURE_CHARS, b64url, strict_json, unb64url
from broker.token.keys import Jwk, load_jwk, respelled, thumbprint, verify_es256

DPOP_TYP = "dpop+jwt"
MAX_PROOF_BYTES = 4096
MAX_URL_CHARS = 2048
# How long ago a proof may have been made, and how far ahead its maker's clock may be.
MAX_AGE_S = 60
MAX_AHEAD_S = 15
# Kept longer than it is accepted, for brokers whose clocks a verifier follows one after the other.
KEPT_S = MAX_AGE_S + 60
MAX_REMEMBERED = 131_072
# One holder alone cannot use up the room of all.
MAX_REMEMBERED_OF_ONE = 16_384

_SEGMENTS = 3
_PRIVATE = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})
_CLAIMS = frozenset({"jti", "htm", "htu", "iat", "ath"})
_JTI = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]{8,256}", re.ASCII)
_HASH = re.compile(r"[A-Za-z0-9_-]{43}", re.ASCII)
_METHOD = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}", re.ASCII)
_URL = re.compile(
    r"(?P<scheme>[Hh][Tt][Tt][Pp][Ss]?)://(?P<host>[A-Za-z0-9.-]{1,255}|\[[0-9A-Fa-f:.]{2,45}\])"
    r"(?::(?P<port>[0-9]{1,5}))?(?P<path>/[\x21\x24-\x3b\x3d\x40-\x5b\x5d-\x7e]*)?",
    re.ASCII,
)
_DEFAULT_PORTS = {"https": "443", "http": "80"}


@dataclass(frozen=True, slots=True)
class DpopProof:
    """A proof that was found good: by which key, under which id, made when (Unix seconds, of its maker)."""

    key: str
    jti: str
    iat: int


def make_dpop(
    jwk: Jwk, sign: Callable[[bytes], bytes], *, method: str, url: str, token: str, jti: str, now_s: int
) -> str:
    """Return a proof for one request with `token`; `sign` makes r || s, 64 bytes. Raises Malformed for a bad URL."""
    header = {"typ": DPOP_TYP, "alg": "ES256", "jwk": {name: jwk[name] for name in ("kty", "crv", "x", "y")}}
    htu = normal_url(url.partition("#")[0].partition("?")[0])
    claims = {"jti": jti, "htm": method, "htu": htu, "iat": now_s, "ath": token_hash(token)}
    signed = f"{_spelled(header)}.{_spelled(claims)}".encode("ascii")
    return f"{signed.decode('ascii')}.{b64url(sign(signed))}"


def check_dpop(text: str, *, token: str, method: str, url: str, key: str, earliest_s: int, latest_s: int) -> DpopProof:
    """Check a proof for one request of `method` to `url` with `token`, which is bound to `key`, a thumbprint.

    `earliest_s` and `latest_s` are two bounds of now. Whether the proof was shown before is `Replays`' to say.

    Raises:
        NotHolder: Refused; says why, and nothing of what the proof holds.
    """
    try:
        proof = _taken_apart(text)
        own = load_jwk(proof.jwk)
        here = normal_url(url.partition("#")[0].partition("?")[0])
    except Malformed as bad:
        raise NotHolder(f"the DPoP proof is refused: {bad.message}") from None
    # §4.3 (6), and that the key is the token's own (12). Who wrote the proof chose which of two s it has.
    if thumbprint(proof.jwk) != key:
        raise NotHolder("the DPoP proof is by another key than the token is bound to")
    if not verify_es256(own, respelled(proof.signature), proof.signed):
        raise NotHolder("the DPoP proof has a wrong signature")
    # (8), (9): for this very request. Methods are case-sensitive.
    if proof.htm != method:
        raise NotHolder("the DPoP proof is for another method")
    if proof.htu != here:
        raise NotHolder("the DPoP proof is for another URL", hint="make it for the URL that is called")
    # (12): with this very token.
    if proof.ath != token_hash(token):
        raise NotHolder("the DPoP proof is for another token")
    # (11): made just now.
    if proof.iat > latest_s + MAX_AHEAD_S:
        raise NotHolder("the DPoP proof is from the future", hint="set the client's clock right")
    if proof.iat < earliest_s - MAX_AGE_S:
        raise NotHolder("the DPoP proof is too old", hint="make one for each request")
    return DpopProof(key, proof.jti, proof.iat)


def token_hash(token: str) -> str:
    """Return `ath`: the SHA-256 of the token's text, base64url."""
    return b64url(hashlib.sha256(token.encode("ascii", "replace")).digest())


def normal_url(text: str) -> str:
    """Return the one spelling of a URL without query and fragment: scheme and host in small letters, no default port.

    Raises:
        Malformed: It is not an http(s) URL of that kind.
    """
    match = _URL.fullmatch(text) if len(text) <= MAX_URL_CHARS else None
    if match is None:
        raise Malformed("not a plain http or https URL, without query and fragment")
    scheme, host = match["scheme"].lower(), match["host"].lower()
    port = "" if match["port"] in (None, _DEFAULT_PORTS[scheme]) else f":{match['port']}"
    return f"{scheme}://{host}{port}{match['path'] or '/'}"


@dataclass(slots=True)
class Replays:
    """The proofs that were accepted within the window, so that each is accepted once. For one thread at a time.

    Bounded: with no room to remember another one, it is refused.
    """

    most: int = MAX_REMEMBERED
    most_of_one: int = MAX_REMEMBERED_OF_ONE
    _seen: dict[str, dict[str, int]] = field(default_factory=dict)
    _count: int = 0
    _swept_s: int = 0

    def __len__(self) -> int:
        return self._count

    def add(self, proof: DpopProof, now_s: int) -> None:
        """Remember a proof that was found good. Raises NotHolder: it was accepted before, or there is no room."""
        if self._count >= self.most or len(self._seen.get(proof.key, ())) >= self.most_of_one:
            self._sweep(now_s)
            if self._count >= self.most or len(self._seen.get(proof.key, ())) >= self.most_of_one:
                raise NotHolder("too many DPoP proofs were made within a minute", hint="send fewer, and retry later")
        of_one = self._seen.setdefault(proof.key, {})
        if proof.jti in of_one:
            raise NotHolder("the DPoP proof was used before", hint="make one for each request")
        of_one[proof.jti] = proof.iat + KEPT_S
        self._count += 1

    def _sweep(self, now_s: int) -> None:
        # At most once a second: a flood must not make each refusal dear.
        if now_s == self._swept_s:
            return
        self._swept_s = now_s
        kept = {
            key: left for key, of_one in self._seen.items() if (left := {j: t for j, t in of_one.items() if t >= now_s})
        }
        self._seen = kept
        self._count = sum(len(of_one) for of_one in kept.values())


@dataclass(frozen=True, slots=True)
class _Unverified:
    """A proof of the right form (§4.3 (2) to (7)); nobody has looked at its signature."""

    jwk: Jwk
    htm: str
    htu: str
    jti: str
    iat: int
    ath: str
    signed: bytes
    signature: bytes


def _taken_apart(text: str) -> _Unverified:
    """Raise Malformed unless it is a proof of the one form that is accepted."""
    if not isinstance(text, str) or len(text) > MAX_PROOF_BYTES:
        raise Malformed(f"longer than {MAX_PROOF_BYTES} bytes")
    segments = text.split(".", _SEGMENTS)
    if len(segments) != _SEGMENTS or len(segments[2]) != SIGNATURE_CHARS:
        raise Malformed("not three base64url segments with a 64-byte signature")
    header, claims = (strict_json(unb64url(segment)) for segment in segments[:2])
    # Nothing in the header chooses how it is checked: no `kid`, `jku`, `x5c`, `crit`, and one algorithm.
    if not isinstance(header, dict) or set(header) != {"typ", "alg", "jwk"}:
        raise Malformed("its header is not exactly typ, alg and jwk")
    if header["typ"] != DPOP_TYP or header["alg"] != "ES256":
        raise Malformed(f"its typ is not {DPOP_TYP}, or its alg not ES256")
    jwk = header["jwk"]
    if isinstance(jwk, dict) and _PRIVATE & set(jwk):
        raise Malformed("it holds a private key, which is to be thrown away now")
    if not isinstance(claims, dict) or set(claims) != _CLAIMS or type(claims["iat"]) is not int:
        raise Malformed("its claims are not exactly jti, htm, htu, iat and ath")
    for name, rule in (("jti", _JTI), ("htm", _METHOD), ("ath", _HASH)):
        if not isinstance(claims[name], str) or not rule.fullmatch(claims[name]):
            raise Malformed(f"its {name} is not one")
    if not isinstance(claims["htu"], str):
        raise Malformed("its htu is not a URL")
    signed = f"{segments[0]}.{segments[1]}".encode("ascii")
    return _Unverified(
        jwk,
        claims["htm"],
        normal_url(claims["htu"]),
        claims["jti"],
        claims["iat"],
        claims["ath"],
        signed,
        unb64url(segments[2]),
    )


def _spelled(value: object) -> str:
    return b64url(json.dumps(value, separators=(",", ":")).encode("ascii"))
