"""The strict JWS codec: compact form, one algorithm, one header, one spelling (RFC 7515)."""

import binascii
import json
import re
from dataclasses import dataclass
from typing import Any, NoReturn

from broker.errors import Malformed

MAX_TOKEN_BYTES = 8192
MAX_SAFE_INT = 2**53 - 1
MAX_JSON_DEPTH = 8
SEGMENTS = 3
SIGNATURE_CHARS = 86  # 64 bytes

_HEADER = re.compile(rb'\{"alg":"ES256","kid":"([A-Za-z0-9_-]{43})","typ":"([a-z+-]+)"\}')
_DEPTH = re.compile(rb'"[^"]*"|[\[{]|[\]}]')


@dataclass(frozen=True, slots=True)
class ParsedJws:
    """A JWS of the right form. Nothing in it is verified."""

    kid: str
    payload: bytes
    signing_input: bytes
    signature: bytes


def parse_jws(text: str, *, typ: str, max_bytes: int = MAX_TOKEN_BYTES) -> ParsedJws:
    """Take a compact JWS apart without believing it.

    The header is compared with the only one that is accepted, byte for byte, so no name in it is ever
    obeyed: no `alg` to choose, no `jwk`, `jku`, `x5u`, `crit`, `b64` or `zip`, no duplicate, no other
    spelling.

    Raises:
        Malformed: Anything else than exactly that form.
    """
    if len(text) > max_bytes:
        raise Malformed(f"longer than {max_bytes} bytes")
    # RFC 8725bis §3.14: letters, digits, `-`, `_` and two dots; anything else is not a JWT.
    data = _ascii(text)
    segments = data.split(b".", 3)
    if len(segments) != SEGMENTS or not segments[1] or len(segments[2]) != SIGNATURE_CHARS:
        raise Malformed("not three base64url segments with a 64-byte signature")
    kid = _kid(_decoded(segments[0]), typ)
    return ParsedJws(kid, _decoded(segments[1]), data[: -SIGNATURE_CHARS - 1], _decoded(segments[2]))


def _kid(unverified: bytes, typ: str) -> str:
    # base64url has one spelling here, so comparing what it decodes to compares the header itself.
    match = _HEADER.fullmatch(unverified)
    # RFC 9068 §4 and RFC 8725 §3.11: another `typ` is another kind of token, before a claim is read.
    if match is None or match[2] != typ.encode("ascii"):
        raise Malformed(f"header is not exactly alg ES256, kid and typ {typ}")
    return match[1].decode("ascii")


def signing_input(*, typ: str, kid: str, payload: bytes) -> bytes:
    """Return what is signed: header and payload segments joined by a dot."""
    header = f'{{"alg":"ES256","kid":"{kid}","typ":"{typ}"}}'.encode("ascii")
    return f"{b64url(header)}.{b64url(payload)}".encode("ascii")


def assemble(signing_input: bytes, signature: bytes) -> str:
    """Return the compact JWS. `signature` is r || s, 64 bytes."""
    return f"{signing_input.decode('ascii')}.{b64url(signature)}"


def b64url(data: bytes) -> str:
    """Encode without padding (RFC 7515 §2)."""
    return binascii.b2a_base64(data, newline=False).rstrip(b"=").translate(_TO_URL).decode("ascii")


def unb64url(text: str) -> bytes:
    """Decode the one spelling that `b64url` makes. Raises Malformed."""
    return _decoded(_ascii(text))


def _ascii(text: str) -> bytes:
    try:
        return text.encode("ascii")
    except UnicodeEncodeError:
        # Without the cause: it would hold the whole text (P12).
        raise Malformed("not base64url") from None


def _decoded(text: bytes) -> bytes:
    over = len(text) % 4
    # The bits that the last character has too many must be zero, or one token would have many spellings.
    if over and (over == 1 or text[-1] not in _LAST[over]):
        raise Malformed("not the canonical base64url")
    try:
        # Strict: what `_FROM_URL` leaves outside the standard alphabet is refused and not passed over.
        return binascii.a2b_base64(text.translate(_FROM_URL) + _PADDING[over], strict_mode=True)
    except binascii.Error:
        raise Malformed("not base64url") from None


def strict_json(data: bytes) -> Any:
    """Parse JSON that has one meaning: no duplicate names, floats or huge integers, in plain UTF-8.

    Raises:
        Malformed: Anything else.
    """
    # Nothing we write needs an escape, and without them a name has one spelling and no lone surrogate.
    if b"\\" in data:
        raise Malformed("payload has an escape")
    _must_be_shallow(data)
    try:
        # `decode` first: json.loads of bytes would guess UTF-16 and UTF-32 and skip a BOM.
        value = _DECODER.decode(data.decode("utf-8"))
    except (ValueError, RecursionError) as bad:
        raise Malformed("payload is not strict JSON") from bad
    return value


def _must_be_shallow(data: bytes) -> None:
    if data.count(b"{") + data.count(b"[") <= MAX_JSON_DEPTH:
        return
    depth = 0
    for found in _DEPTH.finditer(data):
        mark = found.group()
        if mark in (b"{", b"["):
            depth += 1
            if depth > MAX_JSON_DEPTH:
                raise Malformed("payload is nested too deeply")
        elif mark in (b"}", b"]"):
            depth -= 1


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = dict(pairs)
    if len(names) != len(pairs):
        raise Malformed("payload has a name twice")
    return names


def _integer(text: str) -> int:
    # Leading zeros are refused by the parser; `-0` would be a second spelling of 0.
    if len(text) > 17 or text == "-0" or abs(int(text)) > MAX_SAFE_INT:  # noqa: PLR2004 - digits of 2^53, sign
        raise Malformed("payload has a number beyond 2^53")
    return int(text)


def _no_number(_text: str) -> NoReturn:
    raise Malformed("payload has a number that is not an integer")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_object, parse_float=_no_number, parse_int=_integer, parse_constant=_no_number
)
_TO_URL = bytes.maketrans(b"+/", b"-_")
# The standard alphabet's own `+` and `/`, and padding, become what the decoder refuses.
_FROM_URL = bytes.maketrans(b"-_+/=", b"+/\0\0\0")
_PADDING = (b"", b"", b"==", b"=")
_LAST = (b"", b"", b"AQgw", b"AEIMQUYcgkosw048")
