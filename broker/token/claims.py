"""What a token says: exactly these claims, each with its one type (RFC 7519, RFC 9068)."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields

from broker.errors import Invalid, Malformed
from broker.token.identifiers import (
    IDENTIFIER,
    KEY_ID,
    LABEL,
    MAX_URI_BYTES,
    MODEL,
    OPAQUE_ID,
    PRINCIPAL,
    client_id,
    identifier,
    key_id,
    label,
    model_name,
    opaque_id,
)
from broker.token.jws import MAX_SAFE_INT, strict_json

TOKEN_TYP = "at+jwt"  # noqa: S105 - a media type
MAX_LIFETIME_S = 7 * 86_400
MAX_MODELS = 16
MAX_LABELS = 16
MAX_PARENTS = 8

# RFC 8705 §3.1 and RFC 9449 §6.1: the one or the other, and nothing beside it that nobody would check.
CNF = r'\{"(?:jkt|x5t#S256)":"[A-Za-z0-9_-]{43}"\}'
ISSUER = r"https://[a-z0-9.-]+(?::[0-9]{1,5})?(?:/[A-Za-z0-9._~-]+)*"
_ISSUER = re.compile(ISSUER, re.ASCII)
_CNF = re.compile(CNF, re.ASCII)


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
    # How often each verifier accepts it; None: as often as it is shown.
    uses: int | None = None
    # Of a child: models of its ancestors that it does not have itself, and keys that signed them. What kills by one of
    # these kills it, too.
    parent_models: tuple[str, ...] | None = None
    parent_keys: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        try:
            _check_each(self)
            _check_together(self)
        except Invalid as bad:
            raise Malformed(f"claim {bad.message}") from bad


def numbered(claims: Claims, idx: int) -> Claims:
    """Return `claims` at another index. Raises Malformed."""
    copy = object.__new__(Claims)
    # Past the constructor: only the index is new, and only it has to be judged.
    for name, put in zip(_NAMES, _PUT, strict=True):
        put(copy, getattr(claims, name))
    _PUT_IDX(copy, idx)
    if not 1 <= idx <= MAX_SAFE_INT:
        raise Malformed("claim idx is not the index of a token; 0 is the ledger's own")
    return copy


def encode_claims(claims: Claims) -> bytes:
    """Return the one JSON spelling of `claims`: names sorted, no spaces, absent claims left out."""
    named = {name: value for name in _NAMES if (value := getattr(claims, name)) is not None}
    return _ENCODER.encode(named).encode("ascii")


def decode_claims(payload: bytes) -> Claims:
    """Read claims in the one spelling that `encode_claims` writes.

    One pattern takes the payload apart and holds the rule of each claim, so there is no JSON with two
    meanings: no duplicate or unknown name, no escape, float, other type, order, space or encoding. It also
    takes a quarter of the time of a JSON parser and the constructor, which a token's first sight has to bear.

    Raises:
        Malformed: The payload is not what `encode_claims` could have written.
    """
    try:
        found = _PAYLOAD.fullmatch(payload.decode("ascii"))
    except UnicodeDecodeError as bad:
        raise Malformed("payload is not ASCII") from bad
    if found is None:
        raise Malformed("payload is not exactly our claims, spelled as we spell them")
    # fmt: off
    (act, aud, client_id, cnf, env, exp, iat, idx, iss, jti, labels, models, nbf, parent_keys, parent_models, parents,
     partner, realm, run, scope, sub, test, user, uses, workload) = found.groups()
    values = (act and _opaque(act), aud, client_id, cnf and _opaque(cnf), env, int(exp), int(iat), int(idx), iss, jti,
              _items(labels), _items(models), int(nbf),
              parent_keys and _items(parent_keys), parent_models and _items(parent_models), _items(parents),
              partner, realm, run, scope, sub, test, user, uses and int(uses), workload)
    # fmt: on
    # Past the constructor, which would judge each value again; what the pattern cannot judge is next.
    claims = object.__new__(Claims)
    for put, value in zip(_PUT, values, strict=True):
        put(claims, value)
    try:
        _check_together(claims)
    except Invalid as bad:
        raise Malformed(f"claim {bad.message}") from bad
    return claims


def _items(inner: str) -> tuple[str, ...]:
    # No string holds a quotation mark, so this is where one ends and the next begins.
    return tuple(inner[1:-1].split('","')) if inner else ()


def _opaque(text: str) -> Mapping[str, object]:
    value = strict_json(text.encode("ascii"))
    if not isinstance(value, dict) or _ENCODER.encode(value) != text:
        raise Malformed("claims cnf and act must be objects, spelled as we spell them")
    return value


def _check_each(c: Claims) -> None:
    """Judge each claim by itself, as `_PAYLOAD` does."""
    uses = 1 if c.uses is None else c.uses
    for name, number in (("iat", c.iat), ("nbf", c.nbf), ("exp", c.exp), ("idx", c.idx), ("uses", uses)):
        # `True` and `1.0` count as 1 in Python, and are something else on the wire.
        if type(number) is not int:
            raise Invalid(name, "is not a whole number")
    if not _ISSUER.fullmatch(c.iss):
        raise Invalid("iss", "is not a plain https URL")
    for name, value in (("aud", c.aud), ("realm", c.realm), ("partner", c.partner), ("env", c.env)):
        identifier(name, value)
    client_id("client_id", c.client_id)
    opaque_id("jti", c.jti)
    for name, who in (("user", c.user), ("workload", c.workload), ("test", c.test)):
        if who is not None:
            identifier(name, who)
    if c.run is not None:
        opaque_id("run", c.run)
    for rule, name, items in (
        (model_name, "models", c.models),
        (label, "labels", c.labels),
        (opaque_id, "parents", c.parents),
        (model_name, "parent_models", c.parent_models or ()),
        (key_id, "parent_keys", c.parent_keys or ()),
    ):
        for item in items:
            rule(name, item)
    for name, opaque in (("cnf", c.cnf), ("act", c.act)):
        if opaque is not None:
            _check_opaque(name, opaque)


def _check_together(c: Claims) -> None:
    """Judge what claims say together, and how many and how large they may be."""
    if c.user is None and c.workload is None:
        raise Invalid("user", "a user or a workload is needed")
    principal = f"workload/{c.workload}" if c.user is None else f"user/{c.user}"
    # RFC 8693 §4.1: who acts for the subject is named by the outermost `act`.
    if (
        c.user is not None
        and c.workload is not None
        and (c.act or {}).get("sub") != f"{c.partner}/workload/{c.workload}"
    ):
        raise Invalid("act", "does not say which workload acts for the user")
    if c.sub != f"{c.partner}/{principal}":
        raise Invalid("sub", "does not say who the token is for")
    if len(c.client_id) > MAX_URI_BYTES:
        raise Invalid("client_id", "is too long")
    if c.test is not None and c.run is None:
        raise Invalid("test", "needs a run")
    if not 0 < c.nbf <= c.iat < c.exp <= c.iat + MAX_LIFETIME_S or c.exp > MAX_SAFE_INT:
        raise Invalid("exp", "nbf <= iat < exp <= iat + 7 days does not hold")
    if not 1 <= c.idx <= MAX_SAFE_INT:
        raise Invalid("idx", "is not the index of a token; 0 is the ledger's own")
    _check_uses(c.uses)
    if not 1 <= len(c.models) <= MAX_MODELS or _has_twice(c.models):
        raise Invalid("models", f"1 to {MAX_MODELS} different models are needed")
    if c.scope != "model:" + " model:".join(c.models):
        raise Invalid("scope", "does not say what models does")
    if len(c.labels) > MAX_LABELS or _has_twice(c.labels) or list(c.labels) != sorted(c.labels):
        raise Invalid("labels", f"at most {MAX_LABELS}, sorted and different, are allowed")
    if len(c.parents) > MAX_PARENTS or _has_twice(c.parents):
        raise Invalid("parents", f"at most {MAX_PARENTS} different ones are allowed")
    _check_ancestors(c)


def _check_ancestors(c: Claims) -> None:
    for name, items, most in (
        ("parent_models", c.parent_models, MAX_PARENTS * MAX_MODELS),
        ("parent_keys", c.parent_keys, MAX_PARENTS),
    ):
        if items is not None and (not c.parents or not 1 <= len(items) <= most or _has_twice(items)):
            raise Invalid(name, f"1 to {most} different ones are allowed, of a token that has parents")


def _check_uses(uses: int | None) -> None:
    if uses is not None and not 1 <= uses <= MAX_SAFE_INT:
        raise Invalid("uses", "is not a number of uses, from 1")


def _has_twice(items: tuple[str, ...]) -> bool:
    return len(items) > 1 and len(set(items)) != len(items)


def _check_opaque(name: str, value: Mapping[str, object]) -> None:
    """Let in only what comes back from the wire as it went."""
    try:
        is_same = isinstance(value, dict) and strict_json(_ENCODER.encode(value).encode("ascii")) == value
    except (TypeError, ValueError, RecursionError, Malformed) as bad:
        raise Invalid(name, "is not plain JSON") from bad
    if not is_same:
        raise Invalid(name, "is not a plain JSON object")
    if name == "cnf" and not _CNF.fullmatch(_ENCODER.encode(value)):
        raise Invalid(name, "is not exactly one thumbprint, jkt or x5t#S256")


def _pattern() -> str:
    """Return the pattern of a payload; its groups are the claims' values, in the order of their names."""
    rules = {
        **dict.fromkeys(("iat", "nbf", "exp", "idx", "uses"), r"([1-9][0-9]{0,15})"),
        "act": r"(\{.*\})",
        "cnf": f"({CNF})",
        **dict.fromkeys(("jti", "run"), f'"({OPAQUE_ID})"'),
        "iss": f'"({ISSUER})"',
        "client_id": f'"({PRINCIPAL}|{IDENTIFIER})"',
        "models": _list_of(MODEL),
        "labels": _list_of(LABEL),
        "parents": _list_of(OPAQUE_ID),
        "parent_models": _some_of(MODEL),
        "parent_keys": _some_of(KEY_ID),
        # Compared with what they must say.
        **dict.fromkeys(("scope", "sub"), r'"([^"\\]*)"'),
    }
    members = [f'"{name}":' + rules.get(name, f'"({IDENTIFIER})"') for name in _NAMES]
    # `aud` is the first that each token has: `act` before it brings its comma after it.
    act, aud = f"(?:{members[0]},)?", members[1]
    rest = (
        f"(?:,{member})?" if name in _OPTIONAL else f",{member}"
        for name, member in zip(_NAMES[2:], members[2:], strict=True)
    )
    return rf"\{{{act}{aud}{''.join(rest)}\}}"


def _list_of(item: str) -> str:
    return rf'\[((?:"{item}"(?:,"{item}")*)?)\]'


def _some_of(item: str) -> str:
    return rf'\[("{item}"(?:,"{item}")*)\]'


_NAMES = tuple(sorted(field.name for field in fields(Claims)))
_OPTIONAL = frozenset({"user", "workload", "run", "test", "cnf", "act", "uses", "parent_models", "parent_keys"})
_PAYLOAD = re.compile(_pattern(), re.ASCII)
_PUT = tuple(getattr(Claims, name).__set__ for name in _NAMES)
_PUT_IDX = _PUT[_NAMES.index("idx")]
_ENCODER = json.JSONEncoder(separators=(",", ":"), ensure_ascii=True, check_circular=False)
