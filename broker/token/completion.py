"""The completion of a revocation: what it states for one realm, and how a stranger checks it offline."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from typing import Any

from broker.errors import Invalid, Malformed, Untrusted
from broker.token.identifiers import identifier, principal_uri
from broker.token.jws import MAX_SAFE_INT, parse_jws, signing_input
from broker.token.keys import Purpose, RealmTrust, TrustedKey, check_certificate, verify_es256
from broker.token.revocation import Dimension, Selector

COMPLETION_TYP = "revocation-completion+jwt"
# Ten thousand verifiers take about two.
MAX_COMPLETION_BYTES = 4 << 20
MAX_DOCUMENT_BYTES = 64 << 20
MAX_REASON_CHARS = 500
ACKNOWLEDGED, LAPSED, LEFT = "acknowledged", "lapsed", "left"
STATES = (ACKNOWLEDGED, LAPSED, LEFT)
# Stands for the broker itself where a principal asked.
BROKER = "broker"

_INCARNATION = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
_INSTANT = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3}Z", re.ASCII)
_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


@dataclass(frozen=True, slots=True)
class VerifierStop:
    """How one verifier stopped accepting, whole milliseconds after the commit, rounded up.

    `state`: `acknowledged`, `lapsed` (its lease ran out), or `left` (it said that it accepts nothing any more).

    Raises:
        Malformed: A part breaks its rule.
    """

    verifier: str
    realm: str
    state: str
    after_ms: int
    uses_cut: int

    def __post_init__(self) -> None:
        try:
            principal_uri("verifier", _text(self.verifier))
            identifier("realm", _text(self.realm))
        except Invalid as bad:
            raise Malformed(f"a verifier of the completion: {bad.message}") from bad
        if self.state not in STATES:
            raise Malformed("a verifier of the completion has a state that there is not")
        _count("after_ms of a verifier", self.after_ms)
        _count("uses_cut of a verifier", self.uses_cut)


@dataclass(frozen=True, slots=True)
class Statement:
    """What a completion states for one realm: since `in_force_at` nobody there accepts a matching token.

    The revocation has `entries` ledger entries, of which `index` is the last; of many single tokens, the
    selector names their realm alone. `realms`: all that it concerned, each of which has a statement of its
    own. `selector`: by the name of the dimension. `verifiers` are `in_order`; a name may come twice, because
    each stream counts.
    `waited_ms`: how long it waited for verifiers that nobody could know of. `tokens`: live tokens that it
    hit; None when they were not counted. `iat` is in Unix seconds, and is compared with no other instant of
    the statement: clocks are set back. Instants are aware UTC, whole milliseconds.

    Raises:
        Malformed: A part breaks its rule, or the parts contradict each other.
    """

    iss: str
    iat: int
    realm: str
    realms: tuple[str, ...]
    incarnation: str
    index: int
    entries: int
    selector: tuple[tuple[str, str], ...]
    reason: str
    by: str
    blocks: bool
    committed_at: datetime
    in_force_at: datetime
    waited_ms: int
    verifiers: tuple[VerifierStop, ...]
    tokens: int | None
    uses_cut: int
    certificate: str

    def __post_init__(self) -> None:
        _check_each(self)
        _check_together(self)

    @property
    def took_ms(self) -> int:
        """Whole milliseconds from the commit until nobody in this realm could accept any more."""
        return max(self.waited_ms, *(stop.after_ms for stop in self.verifiers), 0)

    @property
    def slowest(self) -> VerifierStop | None:
        """The verifier that stopped last, or None: nobody listened."""
        return self.verifiers[0] if self.verifiers else None

    @property
    def listening(self) -> int:
        """How many were waited for."""
        return len(self.verifiers)

    @property
    def acknowledged(self) -> int:
        """Of these, how many said that they had applied it."""
        return self._in(ACKNOWLEDGED)

    @property
    def lapsed(self) -> int:
        """Of these, how many leases ran out."""
        return self._in(LAPSED)

    @property
    def left(self) -> int:
        """Of these, how many said that they accept nothing any more."""
        return self._in(LEFT)

    def _in(self, state: str) -> int:
        return sum(stop.state == state for stop in self.verifiers)


def in_order(stops: Iterable[VerifierStop]) -> tuple[VerifierStop, ...]:
    """Return stops in the one order of a statement: the slowest first, then by name."""
    return tuple(sorted(stops, key=lambda stop: (-stop.after_ms, stop.verifier, stop.state, stop.uses_cut)))


def statement_payload(statement: Statement) -> bytes:
    """Return the one JSON spelling of a statement: names sorted, no spaces, ASCII, no number but integers."""
    slowest = statement.slowest
    states = Counter(stop.state for stop in statement.verifiers)
    # fmt: off
    return _ENCODER.encode({
        **{name: getattr(statement, name) for name in _AS_THEY_ARE},
        **{state: states[state] for state in STATES},
        "listening": len(statement.verifiers),
        "selector": dict(statement.selector),
        "committed_at": _spelled(statement.committed_at),
        "in_force_at": _spelled(statement.in_force_at),
        "verifiers": [{name: getattr(stop, name) for name in _STOP_NAMES} for stop in statement.verifiers],
        "slowest": slowest and {name: getattr(slowest, name) for name in ("after_ms", "state", "verifier")},
    }).encode("ascii")
    # fmt: on


def completion_signing_input(kid: str, payload: bytes) -> bytes:
    """Return what a key of purpose `completion` signs."""
    return signing_input(typ=COMPLETION_TYP, kid=kid, payload=payload)


def check_completion(text: str, trust: Mapping[str, RealmTrust]) -> Statement:
    """Return what a compact JWS states, once a pinned root vouches for it. Needs no broker and no clock.

    Raises:
        Malformed: Not a completion in the only form there is, or one that contradicts itself.
        Untrusted: Not signed by a key that a root of its realm in `trust` certified for completions, at that time.
    """
    # 1. The form, in one spelling.
    jws = parse_jws(text, typ=COMPLETION_TYP, max_bytes=MAX_COMPLETION_BYTES)
    unverified = _claims(jws.payload)
    # 2. The root of a pinned realm certified the key, for this purpose (P8, P9).
    key, pinned = _certified(unverified, trust)
    # 3. That key signed it.
    if key.kid != jws.kid:
        raise Untrusted("the completion is signed by another key than its certificate names")
    if not verify_es256(key.public_key, jws.signature, jws.signing_input):
        raise Untrusted("the completion's signature is wrong: it was altered, or another key signed it")
    # 4. What it says is in order, and what it says twice is the same: the counts, and who was the slowest.
    statement = _read(unverified)
    if statement_payload(statement) != jws.payload:
        raise Malformed("the completion's counts or its slowest verifier are not those of its list")
    # 5. By the issuer of its realm, in the time for which the key vouches.
    if statement.iss != pinned.issuer:
        raise Untrusted(f"the completion is not from the issuer of realm {statement.realm}")
    if not key.not_before <= statement.iat <= key.signs_until:
        raise Untrusted("the completion was signed outside of its key's time")
    return statement


def check_completions(document: str, trust: Mapping[str, RealmTrust]) -> tuple[Statement, ...]:
    r"""Return what a file states: one JWS in each line, by the name of its realm, each line ended by one `\n`.

    Raises:
        Malformed: Not such a file; a realm that the revocation concerned is missing, or two lines tell of
            different revocations.
        Untrusted: As `check_completion`. What is wrong with one line begins with its number.
    """
    if len(document) > MAX_DOCUMENT_BYTES:
        raise Malformed(f"longer than {MAX_DOCUMENT_BYTES} bytes")
    if not document.endswith("\n"):
        raise Malformed("the file is empty, or its last line is cut off")
    statements: list[Statement] = []
    # Not `splitlines`, to which other characters end a line too.
    for number, line in enumerate(document[:-1].split("\n"), 1):
        try:
            statements.append(check_completion(line, trust))
        except (Malformed, Untrusted) as bad:
            raise type(bad)(f"line {number}: {bad.message}") from bad
        if _revocation(statements[-1]) != _revocation(statements[0]):
            raise Malformed(f"line {number}: tells of another revocation than line 1")
    realms = statements[0].realms
    if tuple(statement.realm for statement in statements) != realms:
        raise Malformed(f"there must be one line for each realm concerned, in this order: {', '.join(realms)}")
    return tuple(statements)


def unverified_statements(document: str) -> tuple[Statement, ...]:
    """Return what a completion that the broker itself kept states; no signature is checked. Raises Malformed."""
    return tuple(
        _read(_claims(parse_jws(line, typ=COMPLETION_TYP, max_bytes=MAX_COMPLETION_BYTES).payload))
        for line in document.splitlines()
    )


def _revocation(statement: Statement) -> tuple[object, ...]:
    """Return what statements of one revocation have in common."""
    return (
        statement.incarnation,
        statement.index,
        statement.entries,
        statement.selector,
        statement.reason,
        statement.by,
        statement.blocks,
        statement.committed_at,
        statement.realms,
    )


def _check_each(s: Statement) -> None:
    """Judge each part by itself."""
    for name, number in (("iat", s.iat), ("index", s.index), ("entries", s.entries)):
        _count(name, number, least=1)
    for name, number in (("waited_ms", s.waited_ms), ("uses_cut", s.uses_cut)):
        _count(name, number)
    if s.tokens is not None:
        _count("tokens", s.tokens)
    if type(s.blocks) is not bool:
        raise Malformed("claim blocks of the completion is neither true nor false")
    if not _INCARNATION.fullmatch(_text(s.incarnation)):
        raise Malformed("claim incarnation of the completion names no ledger")
    # The broker keeps one line of plain text; whoever shows this must not be made to show anything else.
    if not 1 <= len(_text(s.reason)) <= MAX_REASON_CHARS or not s.reason.isprintable():
        raise Malformed("claim reason of the completion is not one line of plain text")
    try:
        for realm in s.realms:
            identifier("realms", _text(realm))
        if s.by != BROKER:
            principal_uri("by", _text(s.by))
    except Invalid as bad:
        raise Malformed(f"claim {bad.message}") from bad
    for at in (s.committed_at, s.in_force_at):
        if at.utcoffset() != timedelta() or at.microsecond % 1000:
            raise Malformed("an instant of the completion is not in UTC and whole milliseconds")


def _check_together(s: Statement) -> None:
    """Judge what the parts say together."""
    if s.realm not in s.realms or list(s.realms) != sorted(set(s.realms)):
        raise Malformed("the completion's realms are not in order, or lack its own")
    selector = _selector(s.selector)
    if not all(selector.concerns(realm) for realm in s.realms):
        raise Malformed("the completion is for a realm that its selector does not concern")
    # Of many single tokens the selector names the realm alone, and nothing is blocked.
    is_of_tokens = not s.blocks and selector.names_only(Dimension.REALM)
    if s.blocks != selector.is_blocking and not is_of_tokens:
        raise Malformed("the completion says of its selector that it blocks, or that it does not")
    if (s.entries > 1 and not is_of_tokens) or s.entries > s.index:
        raise Malformed("the completion has more entries than it can have")
    if any(stop.realm != s.realm for stop in s.verifiers):
        raise Malformed("the completion names a verifier of another realm")
    if s.verifiers != in_order(s.verifiers):
        raise Malformed("the completion's verifiers are not in order: the slowest first, then by name")
    if s.uses_cut != sum(stop.uses_cut for stop in s.verifiers):
        raise Malformed("the completion's running uses do not add up")
    # In milliseconds, since a count of them can be longer than an instant may be late.
    if (s.in_force_at - s.committed_at) // timedelta(milliseconds=1) != s.took_ms:
        raise Malformed("the completion is in force at another time than the one at which the last one stopped")


def _selector(named: tuple[tuple[str, str], ...]) -> Selector:
    try:
        selector = Selector(tuple(sorted((Dimension[name.upper()], _text(value)) for name, value in named)))
    except (Invalid, KeyError) as bad:
        raise Malformed("the completion's selector is malformed") from bad
    if [name for name, _ in named] != sorted(dimension.name.lower() for dimension, _ in selector.conditions):
        raise Malformed("the completion's selector is not by the names of its dimensions")
    return selector


def _count(name: str, number: int, *, least: int = 0) -> None:
    # `True` and `1.0` count as 1 in Python, and are something else on the wire.
    if type(number) is not int or not least <= number <= MAX_SAFE_INT:
        raise Malformed(f"claim {name} of the completion is not a number in its range")


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise Malformed("a claim of the completion is not a text")
    return value


def _claims(payload: bytes) -> dict[str, Any]:
    """Return the claims by name; what is behind each name is anything that JSON has."""
    try:
        claims = json.loads(payload.decode("ascii"))
        # A name twice, a space, an escape or a number of another spelling: all come out different.
        is_same = _ENCODER.encode(claims).encode("ascii") == payload
    except (ValueError, RecursionError) as bad:
        raise Malformed("the completion is not JSON") from bad
    if not is_same:
        raise Malformed("the completion is not JSON in its one spelling")
    if not isinstance(claims, dict) or set(claims) != _NAMES:
        raise Malformed("a completion must have exactly our claims")
    return claims


def _certified(unverified: Mapping[str, Any], trust: Mapping[str, RealmTrust]) -> tuple[TrustedKey, RealmTrust]:
    try:
        realm = identifier("realm", _text(unverified["realm"]))
    except Invalid as bad:
        raise Malformed(f"claim {bad.message}") from bad
    pinned = trust.get(realm)
    if pinned is None:
        raise Untrusted(f"the trust file says nothing of realm {realm}")
    try:
        return check_certificate(_text(unverified["certificate"]), pinned, Purpose.COMPLETION), pinned
    except Malformed as bad:
        raise Malformed(f"its certificate: {bad.message}") from bad


def _read(claims: Mapping[str, Any]) -> Statement:
    selector, realms, verifiers = claims["selector"], claims["realms"], claims["verifiers"]
    if not isinstance(selector, dict) or not isinstance(realms, list) or not isinstance(verifiers, list):
        raise Malformed("claims selector, realms and verifiers of the completion have other types")
    read: dict[str, Any] = {
        "selector": tuple(selector.items()),
        "realms": tuple(realms),
        "verifiers": tuple(_stop(one) for one in verifiers),
        "committed_at": _instant(claims["committed_at"]),
        "in_force_at": _instant(claims["in_force_at"]),
    }
    return Statement(**{field.name: read.get(field.name, claims[field.name]) for field in fields(Statement)})


def _stop(one: Any) -> VerifierStop:
    if not isinstance(one, dict) or set(one) != set(_STOP_NAMES):
        raise Malformed("a verifier of the completion must have exactly our names")
    return VerifierStop(**one)


def _spelled(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _instant(text: object) -> datetime:
    if not _INSTANT.fullmatch(_text(text)):
        raise Malformed("an instant of the completion is not RFC 3339 in UTC with milliseconds")
    try:
        return datetime.fromisoformat(_text(text))
    except ValueError as bad:
        raise Malformed("an instant of the completion does not exist") from bad


_STOP_NAMES = tuple(field.name for field in fields(VerifierStop))
_SPELLED = frozenset({"selector", "committed_at", "in_force_at", "verifiers"})
_AS_THEY_ARE = tuple(field.name for field in fields(Statement) if field.name not in _SPELLED)
_NAMES = frozenset({*_AS_THEY_ARE, *_SPELLED, *STATES, "listening", "slowest"})
