"""What a token says: exactly these claims, each with its one type (RFC 7519, RFC 9068)."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from broker.errors import Invalid, Malformed
from broker.token.identifiers import identifier, label, model_name, opaque_id, principal_uri
from broker.token.jws import strict_json

TOKEN_TYP = "at+jwt"  # noqa: S105 - a media type
MAX_LIFETIME_S = 7 * 86_400
MAX_MODELS = 16
MAX_LABELS = 16
MAX_PARENTS = 8

_ISSUER = re.compile(r"https://[a-z0-9.-]+(?::[0-9]{1,5})?(?:/[A-Za-z0-9._~-]+)*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Claims:
    """The claims of a token, valid from the constructor. Times are Unix seconds; `idx` is its ledger index.

    Raises:
        Malformed: A claim breaks its rule.
    """

    iss: str
    sub: str
    aud: str
    client_id: str
    iat: int
    nbf: int
    exp: int
    jti: str
    scope: str
    realm: str
    partner: str
    user: str | None
    workload: str | None
    run: str | None
    test: str | None
    models: tuple[str, ...]
    env: str
    labels: tuple[str, ...]
    parents: tuple[str, ...]
    idx: int
    cnf: Mapping[str, object] | None = None
    act: Mapping[str, object] | None = None

    def __post_init__(self) -> None:
        try:
            _check(self)
        except Invalid as bad:
            raise Malformed(f"claim {bad.message}") from bad


def encode_claims(claims: Claims) -> bytes:
    """Return the one JSON spelling of `claims`: names sorted, no spaces, absent claims left out."""
    named = {name: value for name in _NAMES if (value := getattr(claims, name)) is not None}
    return _ENCODER.encode(named).encode("ascii")


def decode_claims(payload: bytes) -> Claims:
    """Read claims strictly: unknown names, other types and values that break a rule are refused.

    Raises:
        Malformed: The payload is not what `encode_claims` could have meant.
    """
    unverified = strict_json(payload)
    if not isinstance(unverified, dict):
        raise Malformed("payload is not an object")
    if not unverified.keys() >= _REQUIRED or not unverified.keys() <= _KNOWN:
        raise Malformed("payload must have exactly our claims")
    for name, value in unverified.items():
        # `type is`: True is an int to isinstance, and not to us.
        if type(value) is not _TYPES[name]:
            raise Malformed(f"claim {name} has the wrong type")
    for name in _LISTS:
        if not all(type(item) is str for item in unverified[name]):
            raise Malformed(f"claim {name} must hold strings")
        unverified[name] = tuple(unverified[name])
    for name in _OPTIONAL:
        unverified.setdefault(name, None)
    return Claims(**unverified)


def _check(c: Claims) -> None:
    if not _ISSUER.fullmatch(c.iss):
        raise Invalid("iss", "is not a plain https URL")
    for name, value in (("aud", c.aud), ("realm", c.realm), ("partner", c.partner), ("env", c.env)):
        identifier(name, value)
    principal_uri("client_id", c.client_id)
    opaque_id("jti", c.jti)
    if (c.user is None) == (c.workload is None):
        raise Invalid("user", "exactly one of user and workload is needed")
    kind, who = ("user", c.user) if c.user is not None else ("workload", c.workload)
    if c.sub != f"{c.partner}/{kind}/{identifier(kind, who or '')}":
        raise Invalid("sub", "does not say who the token is for")
    if c.run is not None:
        opaque_id("run", c.run)
    if c.test is not None and (c.run is None or not identifier("test", c.test)):
        raise Invalid("test", "needs a run")
    if not 0 < c.nbf <= c.iat < c.exp <= c.iat + MAX_LIFETIME_S:
        raise Invalid("exp", "nbf <= iat < exp <= iat + 7 days does not hold")
    if c.idx < 1:
        raise Invalid("idx", "index 0 is the ledger's own")
    _check_lists(c)


def _check_lists(c: Claims) -> None:
    if not 1 <= len(c.models) <= MAX_MODELS or len(set(c.models)) != len(c.models):
        raise Invalid("models", f"1 to {MAX_MODELS} different models are needed")
    for model in c.models:
        model_name("models", model)
    if c.scope != " ".join(f"model:{model}" for model in c.models):
        raise Invalid("scope", "does not say what models does")
    if len(c.labels) > MAX_LABELS or list(c.labels) != sorted(set(c.labels)):
        raise Invalid("labels", "must be sorted and unique")
    for text in c.labels:
        label("labels", text)
    if len(c.parents) > MAX_PARENTS or len(set(c.parents)) != len(c.parents):
        raise Invalid("parents", "too many or repeated")
    for parent in c.parents:
        opaque_id("parents", parent)


_NAMES = tuple(sorted(field.name for field in fields(Claims)))
_KNOWN = frozenset(_NAMES)
_OPTIONAL = frozenset({"user", "workload", "run", "test", "cnf", "act"})
_REQUIRED = _KNOWN - _OPTIONAL
_LISTS = ("models", "labels", "parents")
_TYPES: Mapping[str, type[Any]] = {
    **dict.fromkeys(_KNOWN, str),
    **dict.fromkeys(("iat", "nbf", "exp", "idx"), int),
    **dict.fromkeys(_LISTS, list),
    **dict.fromkeys(("cnf", "act"), dict),
}
_ENCODER = json.JSONEncoder(separators=(",", ":"), ensure_ascii=True, check_circular=False)
