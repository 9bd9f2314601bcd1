"""The completion of a revocation: what it states for one realm, and how a stranger checks it offline."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from broker.errors import Invalid, Malformed, Untrusted
from broker.token.jws import MAX_SAFE_INT, ParsedJws, parse_jws, signing_input
from broker.token.keys import Purpose, RealmTrust, check_certificate, verify_es256
from broker.token.revocation import Selector

COMPLETION_TYP = "revocation-completion+jwt"
# Ten thousand verifiers take about one and a half.
MAX_STATEMENT_BYTES = 16 << 20
MAX_DOCUMENT_BYTES = 64 << 20
# Ten years: what is beyond was not waited for.
MAX_TOOK_MS = 10 * 366 * 86_400_000
STATES = ("acknowledged", "lapsed", "left")

_INSTANT = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3}Z", re.ASCII)
_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
_STOP_NAMES = frozenset({"verifier", "realm", "state", "after_ms", "uses_cut"})
_TYPES: Mapping[str, type | tuple[type, ...]] = {
    "iss": str,
    "iat": int,
    "realm": str,
    "realms": list,
    "incarnation": str,
    "index": int,
    "entries": int,
    "selector": dict,
    "reason": str,
    "by": str,
    "blocks": bool,
    "committed_at": str,
    "in_force_at": str,
    "listening": int,
    "acknowledged": int,
    "lapsed": int,
    "left": int,
    "verifiers": list,
    "slowest": (dict, type(None)),
    "waited_ms": int,
    "tokens": (int, type(None)),
    "uses_cut": int,
    "certificate": str,
}


@dataclass(frozen=True, slots=True)
class VerifierStop:
    """How one verifier stopped accepting, whole milliseconds after the commit, rounded up.

    `state`: `acknowledged`, `lapsed` (its lease ran out), or `left` (it said that it accepts nothing any more).
    """

    verifier: str
    realm: str
    state: str
    after_ms: int
    uses_cut: int


@dataclass(frozen=True, slots=True)
class Statement:
    """What a completion states for one realm: nobody there accepts a matching token any more.

    The revocation has `entries` ledger entries, of which `index` is the last. `realms` are all that it
    concerned: for each there is a statement of its own. `verifiers` come the slowest first, then by name.
    `waited_ms`: how long verifiers were waited for that the broker could not know of. `tokens`: live tokens
    of this realm that it hit; None when they were not counted. Instants are aware UTC, whole milliseconds.

    Raises:
        Malformed: The parts do not fit together.
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
        numbers = (self.iat, self.index, self.entries, self.waited_ms, self.uses_cut, self.tokens or 0)
        if any(not 0 <= number <= MAX_SAFE_INT for number in numbers) or not 1 <= self.entries <= self.index + 1:
            raise Malformed("a number of the completion is out of its range")
        if self.realm not in self.realms or list(self.realms) != sorted(set(self.realms)):
            raise Malformed("the completion's realms are not in order, or lack its own")
        try:
            Selector.of(**dict(self.selector))
        except (Invalid, KeyError, TypeError) as bad:
            raise Malformed("the completion's selector is malformed") from bad
        for stop in self.verifiers:
            if stop.state not in STATES or stop.realm != self.realm or not stop.verifier:
                raise Malformed("a verifier's state in the completion is malformed")
            if not 0 <= stop.after_ms <= MAX_SAFE_INT or not 0 <= stop.uses_cut <= MAX_SAFE_INT:
                raise Malformed("a verifier's number in the completion is out of its range")
        if list(self.verifiers) != sorted(self.verifiers, key=_slowest_first):
            raise Malformed("the completion's verifiers are not in order, the slowest first")
        if self.uses_cut != sum(stop.uses_cut for stop in self.verifiers):
            raise Malformed("the completion's uses do not add up")
        if self.took_ms > MAX_TOOK_MS or self.in_force_at - self.committed_at != timedelta(milliseconds=self.took_ms):
            raise Malformed("the completion is in force at another time than its slowest verifier stopped")

    @property
    def took_ms(self) -> int:
        """Whole milliseconds from the commit until nobody in this realm accepted any more."""
        return max([self.waited_ms, *(stop.after_ms for stop in self.verifiers)])

    @property
    def slowest(self) -> VerifierStop | None:
        """The verifier that stopped last, or None: nobody listened."""
        return self.verifiers[0] if self.verifiers else None


def _slowest_first(stop: VerifierStop) -> tuple[int, str, str, int]:
    return (-stop.after_ms, stop.verifier, stop.state, stop.uses_cut)


def in_order(stops: "list[VerifierStop]") -> tuple[VerifierStop, ...]:
    """Return stops in the one order of a statement."""
    return tuple(sorted(stops, key=_slowest_first))


def statement_payload(statement: Statement) -> bytes:
    """Return the one JSON spelling of a statement: names sorted, no spaces, ASCII, no number but integers."""
    slowest = statement.slowest
    states = [stop.state for stop in statement.verifiers]
    return _ENCODER.encode(
        {
            "iss": statement.iss,
            "iat": statement.iat,
            "realm": statement.realm,
            "realms": list(statement.realms),
            "incarnation": statement.incarnation,
            "index": statement.index,
            "entries": statement.entries,
            "selector": dict(statement.selector),
            "reason": statement.reason,
            "by": statement.by,
            "blocks": statement.blocks,
            "committed_at": _spelled(statement.committed_at),
            "in_force_at": _spelled(statement.in_force_at),
            "listening": len(states),
            **{state: states.count(state) for state in STATES},
            "verifiers": [
                {
                    "verifier": stop.verifier,
                    "realm": stop.realm,
                    "state": stop.state,
                    "after_ms": stop.after_ms,
                    "uses_cut": stop.uses_cut,
                }
                for stop in statement.verifiers
            ],
            "slowest": None
            if slowest is None
            else {"verifier": slowest.verifier, "state": slowest.state, "after_ms": slowest.after_ms},
            "waited_ms": statement.waited_ms,
            "tokens": statement.tokens,
            "uses_cut": statement.uses_cut,
            "certificate": statement.certificate,
        }
    ).encode("ascii")


def completion_signing_input(kid: str, payload: bytes) -> bytes:
    """Return what a key of purpose `completion` signs."""
    return signing_input(typ=COMPLETION_TYP, kid=kid, payload=payload)


def check_completion(text: str, trust: Mapping[str, RealmTrust]) -> Statement:
    """Return what a compact JWS states, once a pinned root vouches for it. Needs no broker and no clock.

    Raises:
        Malformed: Not a completion in the only form there is, or one that contradicts itself.
        Untrusted: Not signed by a key that a root of its realm in `trust` certified for completions, at that time.
    """
    # 1. The form, and one spelling.
    jws = parse_jws(text, typ=COMPLETION_TYP, max_bytes=MAX_STATEMENT_BYTES)
    unverified = _read(jws)
    # 2. The realm is one of those that are pinned (P8).
    pinned = trust.get(unverified.realm)
    if pinned is None:
        raise Untrusted(f"the trust file says nothing of realm {unverified.realm!r}")
    if unverified.iss != pinned.issuer:
        raise Untrusted(f"the completion is not from the issuer of realm {unverified.realm}")
    # 3. The realm's root certified the key, for this purpose.
    key = check_certificate(unverified.certificate, pinned, Purpose.COMPLETION)
    if key.kid != jws.kid:
        raise Untrusted("the completion is signed by another key than its certificate names")
    # 4. It was made in the time for which the key vouches.
    if not key.not_before <= unverified.iat <= key.signs_until:
        raise Untrusted("the completion was made outside its key's time")
    # 5. The signature.
    if not verify_es256(key.public_key, jws.signature, jws.signing_input):
        raise Untrusted("the completion's signature is wrong")
    return unverified


def check_completions(document: str, trust: Mapping[str, RealmTrust]) -> tuple[Statement, ...]:
    r"""Return what a file states: one JWS in each line, by the name of its realm, each line ended by `\n`.

    Raises:
        Malformed: Not such a file; a realm that the revocation concerned is missing, or two lines tell of
            different revocations.
        Untrusted: As `check_completion`. Both name the line.
    """
    if len(document) > MAX_DOCUMENT_BYTES:
        raise Malformed(f"longer than {MAX_DOCUMENT_BYTES} bytes")
    if not document.endswith("\n"):
        raise Malformed("the file is empty or its last line is cut off")
    statements = []
    for number, line in enumerate(document[:-1].split("\n"), 1):
        try:
            statements.append(check_completion(line, trust))
        except (Malformed, Untrusted) as bad:
            raise type(bad)(f"line {number}: {bad.message}") from bad
    first = statements[0]
    for number, statement in enumerate(statements, 1):
        if _revocation(statement) != _revocation(first):
            raise Malformed(f"line {number}: tells of another revocation than line 1")
    if tuple(statement.realm for statement in statements) != first.realms:
        raise Malformed(f"there must be one line for each realm concerned, in order: {', '.join(first.realms)}")
    return tuple(statements)


def _revocation(statement: Statement) -> tuple[object, ...]:
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


def _read(jws: ParsedJws) -> Statement:
    try:
        claims: Any = json.loads(jws.payload.decode("ascii"))
        # Whatever has another spelling, a name twice or a number of another form comes out different.
        is_same = _ENCODER.encode(claims).encode("ascii") == jws.payload
    except (ValueError, RecursionError) as bad:
        raise Malformed("the completion is not JSON in its one spelling") from bad
    if not is_same:
        raise Malformed("the completion is not JSON in its one spelling")
    if not isinstance(claims, dict) or set(claims) != set(_TYPES):
        raise Malformed("a completion must have exactly our claims")
    for name, kind in _TYPES.items():
        # A boolean is an integer to Python, and to nobody else.
        if not isinstance(claims[name], kind) or (isinstance(claims[name], bool) and kind is not bool):
            raise Malformed(f"claim {name} of the completion has another type")
    if not all(isinstance(text, str) for text in (*claims["realms"], *claims["selector"].values())):
        raise Malformed("the completion's realms and selector must be texts")
    statement = Statement(
        iss=claims["iss"],
        iat=claims["iat"],
        realm=claims["realm"],
        realms=tuple(claims["realms"]),
        incarnation=claims["incarnation"],
        index=claims["index"],
        entries=claims["entries"],
        selector=tuple(claims["selector"].items()),
        reason=claims["reason"],
        by=claims["by"],
        blocks=claims["blocks"],
        committed_at=_instant(claims["committed_at"]),
        in_force_at=_instant(claims["in_force_at"]),
        waited_ms=claims["waited_ms"],
        verifiers=tuple(_stop(one) for one in claims["verifiers"]),
        tokens=claims["tokens"],
        uses_cut=claims["uses_cut"],
        certificate=claims["certificate"],
    )
    # What is said twice must be the same: the counts, and who was the slowest.
    if statement_payload(statement) != jws.payload:
        raise Malformed("the completion contradicts itself")
    return statement


def _stop(one: Any) -> VerifierStop:
    if not isinstance(one, dict) or set(one) != _STOP_NAMES:
        raise Malformed("a verifier in the completion must have exactly our names")
    texts, numbers = (one["verifier"], one["realm"], one["state"]), (one["after_ms"], one["uses_cut"])
    if not all(isinstance(text, str) for text in texts) or not all(type(number) is int for number in numbers):
        raise Malformed("a verifier in the completion has a value of another type")
    return VerifierStop(*texts, *numbers)


def _spelled(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _instant(text: str) -> datetime:
    if not _INSTANT.fullmatch(text):
        raise Malformed("an instant of the completion is not RFC 3339 in UTC with milliseconds")
    try:
        return datetime.fromisoformat(text)
    except ValueError as bad:
        raise Malformed("an instant of the completion does not exist") from bad
