"""What people approve: the one spelling of a request, and the statement by which an approver signs its hash."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from broker.errors import Invalid, Malformed, Untrusted
from broker.token.claims import MAX_LIFETIME_S, MAX_MODELS
from broker.token.identifiers import client_id, identifier, model_name, opaque_id
from broker.token.jws import MAX_SAFE_INT, parse_jws, signing_input, strict_json
from broker.token.keys import Jwk, load_jwk, thumbprint, verify_es256

APPROVAL_TYP = "approval+jwt"
MAX_REQUEST_BYTES = 8192
MAX_NEEDED = 100

_INSTANT = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3}Z", re.ASCII)
_HASH = re.compile(r"[0-9a-f]{64}", re.ASCII)
_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


class Wanted(StrEnum):
    """What an approval is asked for."""

    RUN = "run"
    TOKEN = "token"  # noqa: S105 - a word, not a secret


class Decision(StrEnum):
    """What an approver says."""

    APPROVE = "approve"
    DENY = "deny"


@dataclass(frozen=True, slots=True)
class ApprovalRequest:
    """One wish, with all that is approved by approving it, and what its grant demanded when it was made.

    `lifetime_s`: of the token, or the lease of the run. `person`: the human who asked; None for a program.
    `needed` people of `group` must approve within `window_s` of `created_at`, each having logged in at most
    `login_s` before; it can then be used for `valid_s`. `nonce`: random, so that nobody can make the hash of
    a request before it exists. `models` are sorted; `created_at` is in whole milliseconds of UTC.

    Raises:
        Invalid: A field is missing or malformed; names the field.
    """

    id: str
    nonce: str
    created_at: datetime
    purpose: Wanted
    realm: str
    partner: str
    user: str | None
    workload: str | None
    environment: str
    models: tuple[str, ...]
    lifetime_s: int
    grant: str
    requester: str
    person: str | None
    needed: int
    group: str
    window_s: int
    valid_s: int
    login_s: int
    binding: str
    delegation: int

    def __post_init__(self) -> None:
        opaque_id("id", self.id)
        opaque_id("nonce", self.nonce)
        for name in ("realm", "partner", "environment", "grant", "group", "binding"):
            identifier(name, _text(name, getattr(self, name)))
        for name in ("user", "workload"):
            if (value := getattr(self, name)) is not None:
                identifier(name, _text(name, value))
        if self.user is None and self.workload is None:
            raise Invalid("user", "a user or a workload is needed")
        client_id("requester", _text("requester", self.requester))
        if self.person is not None:
            client_id("person", _text("person", self.person))
        for model in self.models:
            model_name("models", _text("models", model))
        if not 1 <= len(self.models) <= MAX_MODELS or list(self.models) != sorted(set(self.models)):
            raise Invalid("models", f"1 to {MAX_MODELS} different ones are needed, sorted")
        for name, least, most in _RANGES:
            value = getattr(self, name)
            # `True` counts as 1 in Python, and is something else on the wire.
            if type(value) is not int or not least <= value <= most:
                raise Invalid(name, f"is not a whole number from {least} to {most}")
        if self.created_at.utcoffset() is None or self.created_at.microsecond % 1000:
            raise Invalid("created_at", "is not in whole milliseconds of UTC")


_RANGES = (
    ("lifetime_s", 1, MAX_LIFETIME_S),
    ("needed", 1, MAX_NEEDED),
    ("window_s", 1, MAX_SAFE_INT),
    ("valid_s", 1, MAX_SAFE_INT),
    ("login_s", 1, MAX_SAFE_INT),
    ("delegation", 0, MAX_SAFE_INT),
)


def encode_request(request: ApprovalRequest) -> bytes:
    """Return the one JSON spelling of a request: every name, sorted, no spaces, ASCII."""
    named: dict[str, Any] = {field.name: getattr(request, field.name) for field in fields(request)}
    named["created_at"] = spelled(request.created_at)
    return _ENCODER.encode(named).encode("ascii")


def decode_request(data: bytes) -> ApprovalRequest:
    """Read what `encode_request` wrote. Raises Malformed for any other bytes."""
    if len(data) > MAX_REQUEST_BYTES:
        raise Malformed("an approval request is too long")
    named = strict_json(data)
    if not isinstance(named, dict) or set(named) != {field.name for field in fields(ApprovalRequest)}:
        raise Malformed("an approval request must have exactly our names")
    try:
        request = ApprovalRequest(
            **{
                **named,
                "created_at": _instant(named["created_at"]),
                "purpose": Wanted(named["purpose"]),
                "models": tuple(named["models"]),
            }
        )
    except (Invalid, ValueError, TypeError) as bad:
        raise Malformed("an approval request has a value that cannot be") from bad
    if encode_request(request) != data:
        raise Malformed("an approval request is not in its one spelling")
    return request


def request_hash(data: bytes) -> str:
    """Return the SHA-256 of a request's exact bytes, in hexadecimal: what approvers sign."""
    return hashlib.sha256(data).hexdigest()


@dataclass(frozen=True, slots=True)
class ApprovalStatement:
    """`approver`, a principal, says `decision` of the request with this hash. `iat`: Unix seconds, of their clock.

    Raises:
        Malformed: A part breaks its rule.
    """

    request: str
    decision: Decision
    approver: str
    iat: int

    def __post_init__(self) -> None:
        if not isinstance(self.request, str) or not _HASH.fullmatch(self.request):
            raise Malformed("an approval must name the hash of a request")
        if type(self.iat) is not int or not 0 < self.iat <= MAX_SAFE_INT:
            raise Malformed("an approval's time must be whole seconds")
        try:
            client_id("sub", _text("sub", self.approver))
        except Invalid as bad:
            raise Malformed(f"an approval: {bad.message}") from bad


def statement_signing_input(jwk: Jwk, statement: ApprovalStatement) -> bytes:
    """Return what the approver signs with the key of `jwk`."""
    payload = {
        "decision": statement.decision.value,
        "iat": statement.iat,
        "request": statement.request,
        "sub": statement.approver,
    }
    return signing_input(typ=APPROVAL_TYP, kid=thumbprint(jwk), payload=_ENCODER.encode(payload).encode("ascii"))


def check_statement(text: str, jwk: Jwk) -> ApprovalStatement:
    """Return what the holder of the key of `jwk` states. Does not judge time, nor which request it is about.

    Raises:
        Malformed: Not a statement of the only form there is: no token, proof or certificate passes for one (T12).
        Untrusted: Signed by another key.
    """
    key = load_jwk(jwk)
    jws = parse_jws(text, typ=APPROVAL_TYP)
    if jws.kid != thumbprint(jwk) or not verify_es256(key, jws.signature, jws.signing_input):
        raise Untrusted("the approval is not signed by the approver's key")
    claims = strict_json(jws.payload)
    if not isinstance(claims, dict) or set(claims) != {"decision", "iat", "request", "sub"}:
        raise Malformed("an approval must have exactly our claims")
    try:
        decision = Decision(claims["decision"])
    except ValueError as bad:
        raise Malformed("an approval either approves or denies") from bad
    statement = ApprovalStatement(claims["request"], decision, claims["sub"], claims["iat"])
    if statement_signing_input(jwk, statement) != jws.signing_input:
        raise Malformed("an approval is not in its one spelling")
    return statement


def plain_statement(text: str, jwk: Jwk) -> Mapping[str, object]:
    """Return a checked statement's parts as records keep them, so that none looks like a piece of a token (P12)."""
    jws = parse_jws(text, typ=APPROVAL_TYP)
    return {
        "key": {name: jwk[name] for name in ("crv", "kty", "x", "y")},
        "payload": jws.payload.decode("ascii"),
        "signature": jws.signature.hex(),
    }


def spelled(at: datetime) -> str:
    """Return an instant in milliseconds of UTC."""
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _instant(text: object) -> datetime:
    if not isinstance(text, str) or not _INSTANT.fullmatch(text):
        raise Malformed("an instant is not in milliseconds of UTC")
    return datetime.fromisoformat(text)


def _text(field: str, value: object) -> str:
    if not isinstance(value, str):
        raise Invalid(field, "is not a text")
    return value
