"""What an entry tells of, as questions about the past name it: by partner, user, run, token, model and the like.

An event is an entry, or one line of receipts; its facets are words like `partner:acme`. Whatever can be asked for is
a facet, and an answer to several filters is what has all of them.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from broker.errors import ReceiptsRefused
from broker.ledger.entry import Entry, Kind
from broker.token.identifiers import bare_name
from broker.token.receipts import Batch, Line, What, batch_of

USE = "use"
GRANTED, DENIED, REVOKED, ACCEPTED = "granted", "denied", "revoked", "accepted"
DECISIONS = (GRANTED, DENIED, REVOKED, ACCEPTED)
_DECISIONS: Mapping[Kind, str] = {
    Kind.TOKEN_MINTED: GRANTED,
    Kind.TOKEN_RESIGNED: GRANTED,
    Kind.RUN_OPENED: GRANTED,
    Kind.APPROVAL_GIVEN: GRANTED,
    Kind.APPROVAL_DENIED: DENIED,
    Kind.REVOKED: REVOKED,
    Kind.RUN_CLOSED: REVOKED,
    Kind.RUN_LAPSED: REVOKED,
}
_USES: Mapping[What, str] = {What.ACCEPTED: ACCEPTED, What.SUMMED: ACCEPTED, What.DENIED: DENIED}
_NAMED = ("realm", "partner", "user", "workload", "environment", "run", "test", "approval", "grant")

_MODEL = "model:"


@dataclass(frozen=True, slots=True, order=True)
class AccessPath:
    """By whose name, under which grant and from where a token was had. Who is not named is empty."""

    realm: str
    partner: str
    user: str
    workload: str
    grant: str
    environment: str


@dataclass(frozen=True, slots=True)
class Event:
    """The entry at `index`, or with `line` from 1 on a line of its receipts.

    `head`: what a verifier had applied, of receipts; -1 of all else. `count`: how many uses it stands for. `path`: by
    which a token was had, for a mint and for the uses of what it made.
    """

    index: int
    line: int
    at_ms: int
    head: int
    facets: frozenset[str]
    count: int = 1
    path: AccessPath | None = None


MintAt = Callable[[int], Event | None]
"""Returns the mint at an index, or None: there is no mint."""


def facet(name: str, value: object) -> str:
    """Return the word by which an event is found."""
    return f"{name}:{value}"


def models_of(event: Event) -> Iterator[str]:
    """Yield the models that it is about; of an instance, its name, too."""
    return (one.removeprefix(_MODEL) for one in event.facets if one.startswith(_MODEL))


def decision_of(kind: Kind) -> str:
    """Return what was decided, or nothing."""
    return _DECISIONS.get(kind, "")


def events_of(entry: Entry, minted: MintAt) -> Iterator[Event]:
    """Yield what an entry tells of; never fails, because what is in the log must be findable, however odd."""
    at_ms = int(entry.at.timestamp() * 1000)
    batch = batch_in(entry)
    head = -1 if batch is None else max((line.head for line in batch.lines), default=-1)
    yield Event(entry.index, 0, at_ms, head, frozenset(_facets(entry)), path=_path(entry))
    if batch is None:
        return
    for number, line in enumerate(batch.lines, 1):
        facets, path = _of_use(entry, batch, line, minted)
        yield Event(entry.index, number, line.last_at_ms, line.head, facets, line.count, path)


def batch_in(entry: Entry) -> Batch | None:
    """Return the receipts that an entry holds, or None."""
    if entry.kind is not Kind.RECEIPTS_KEPT:
        return None
    try:
        return batch_of(entry.body.get("batch"))
    except ReceiptsRefused:
        return None


def _facets(entry: Entry) -> Iterator[str]:
    body = entry.body
    yield facet("kind", entry.kind.value)
    yield facet("by", entry.by)
    decision = decision_of(entry.kind)
    if decision:
        yield facet("decision", decision)
    claims, selector = body.get("claims"), body.get("selector")
    if isinstance(claims, Mapping):
        yield from _facets_of_claims(claims)
    elif isinstance(selector, Mapping):
        for name, value in selector.items():
            yield from _models(value) if name == "model" else (facet(name, value),)
    yield from _facets_of_members(body)
    if entry.kind is Kind.APPROVAL_SPENT:
        yield facet("run" if body.get("purpose") == "run" else "token", body.get("on"))


def _facets_of_members(body: Mapping[str, Any]) -> Iterator[str]:
    for name in _NAMED:
        if isinstance(body.get(name), str):
            yield facet(name, body[name])
    if isinstance(body.get("kid"), str):
        yield facet("key", body["kid"])
    if isinstance(body.get("revocation"), int):
        yield facet("revocation", body["revocation"])
    for name, words in (("models", _models), ("realms", _realm), ("problems", _alarmed)):
        values = body.get(name)
        for value in values if isinstance(values, list) else ():
            yield from words(value)


def _facets_of_claims(claims: Mapping[str, Any]) -> Iterator[str]:
    for name in ("realm", "partner", "user", "workload", "run", "test"):
        if isinstance(claims.get(name), str):
            yield facet(name, claims[name])
    yield facet("environment", claims.get("env"))
    yield facet("token", claims.get("jti"))
    for model in claims.get("models") or ():
        yield from _models(model)
        yield from _covered(model)
    act = claims.get("act")
    while isinstance(act, Mapping):
        # Who acts for the user, and who acted before: a revocation of one kills the token.
        yield facet("workload", str(act.get("sub")).partition("/workload/")[2])
        act = act.get("act")
    for model in claims.get("parent_models") or ():
        yield from _covered(model)
    for name, word in (("labels", "label"), ("parents", "parent"), ("parent_keys", "key")):
        for value in claims.get(name) or ():
            yield facet(word, value)


def _covered(model: object) -> Iterator[str]:
    yield facet("covers", model)
    if isinstance(model, str):
        yield facet("covers", bare_name(model))


def _models(model: object) -> Iterator[str]:
    yield facet("model", model)
    if isinstance(model, str) and bare_name(model) != model:
        yield facet("model", bare_name(model))


def _path(entry: Entry) -> AccessPath | None:
    claims = entry.body.get("claims")
    if entry.kind is not Kind.TOKEN_MINTED or not isinstance(claims, Mapping):
        return None
    named = [claims.get(name) for name in ("realm", "partner", "user", "workload")]
    named += [entry.body.get("grant"), claims.get("env")]
    return AccessPath(*(one if isinstance(one, str) else "" for one in named))


def _of_use(entry: Entry, batch: Batch, line: Line, minted: MintAt) -> tuple[frozenset[str], AccessPath | None]:
    facets = set(_facets_of_line(entry, batch, line))
    mint = minted(line.index) if line.token else None
    # What a verifier says of a token that is not where it says is not believed.
    if mint is None or facet("token", line.token) not in mint.facets:
        return frozenset(facets), None
    facets |= {one for one in mint.facets if not one.startswith(_NOT_OF_A_USE)}
    return frozenset(facets), mint.path


def _facets_of_line(entry: Entry, batch: Batch, line: Line) -> Iterator[str]:
    yield facet("kind", USE)
    yield facet("by", entry.by)
    yield facet("realm", batch.realm)
    if line.what in _USES:
        yield facet("decision", _USES[line.what])
    if line.model:
        yield from _models(line.model)
        yield from _covered(line.model)
    if line.token:
        yield facet("token", line.token)


def _realm(value: object) -> Iterator[str]:
    yield facet("realm", value)


def _alarmed(problem: object) -> Iterator[str]:
    if isinstance(problem, Mapping) and problem.get("token"):
        yield facet("token", problem["token"])


# Of the mint, and not of what was done with it: which model was asked for, the line says. What the token covers stays
# as `covers`: by that a revocation of a model kills it.
_NOT_OF_A_USE = ("kind:", "by:", "decision:", "model:", "approval:")
