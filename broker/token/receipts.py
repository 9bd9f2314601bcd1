"""Receipts: what a verifier decided, in signed batches with one spelling. Pure; shared by server and SDK.

A batch is ASCII JSON, names sorted, no spaces, at most 49,152 bytes, and the ledger holds it letter by letter:

- `realm`, `kid` (thumbprint of the verifier's receipt key), `incarnation` (of the ledger that it followed);
- `first`, `last`: the sequence numbers of this key that the batch covers, all of them; `after`: the number up to
  which the key's receipts were handed over before. Where `first` is not `after` + 1, those between are lost;
- `at`: Unix milliseconds on the broker's clock, and `head`, to both of which the lines below add;
- `tokens`: [id, ledger index] and `models`, which the lines below name by their position;
- `accepted`: [number - first, token, model, at, head] for each accepted use, with the SHA-256 of the request
  (base64url) as a sixth where the verifier was given one;
- `ended`: [number - first, token, model, at, head, number of the accepted one, why, calls, bytes] for each use that
  lasted; `why` is empty when it ended by itself;
- `summed`: [token, model, first at, last at, highest head, accepted, calls, bytes] for each token, model and minute;
- `denied`: [token, model, why, first at, last at, highest head, count], both -1 where nothing of the token can be
  believed; summed always, because strangers can cause as many as they like.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NoReturn

from broker.errors import ReceiptsRefused
from broker.token.identifiers import matches_identifier, matches_model, matches_opaque_id
from broker.token.jws import MAX_SAFE_INT

MAX_BATCH_BYTES = 49_152
MAX_LINES = 1024
MINUTE_MS = 60_000
BATCH_CONTEXT = b"broker.v1.SignedReceipts\x00"
ENROL_CONTEXT = b"broker.v1.EnrollKey\x00"
NOBODY = -1

_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
_KID = re.compile(r"[A-Za-z0-9_-]{43}", re.ASCII)
_REASON = re.compile(r"[A-Z][A-Z_]{0,39}", re.ASCII)
_INCARNATION = re.compile(r"[0-9A-Za-z_-]{1,128}", re.ASCII)
_NAMES = {
    "accepted", "after", "at", "denied", "ended", "first", "head", "incarnation", "kid", "last", "models", "realm",
    "summed", "tokens",
}  # fmt: skip


class What(StrEnum):
    """What a line tells of."""

    ACCEPTED = "accepted"
    ENDED = "ended"
    SUMMED = "summed"
    DENIED = "denied"


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a batch, by itself.

    `token` and `index` (where the ledger says that it was minted) are empty and 0, `model` is empty, where nothing
    of the token could be believed. `head` is the highest that any of the `count` uses was judged by.
    """

    what: What
    token: str
    index: int
    model: str
    first_at_ms: int
    last_at_ms: int
    head: int
    count: int
    number: int | None = None
    accepted_as: int | None = None
    reason: str = ""
    calls: int = 0
    bytes: int = 0
    request_hash: str = ""


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch that is well-formed; nothing of it is believed by that."""

    realm: str
    kid: str
    incarnation: str
    after: int
    first: int
    last: int
    lines: tuple[Line, ...]
    text: str

    @property
    def lost(self) -> int:
        """How many receipts before it are lost, by the verifier's own word."""
        return self.first - self.after - 1


def enrolment(realm: str, point: bytes) -> bytes:
    """Return what a key signs to be enrolled."""
    return ENROL_CONTEXT + realm.encode("ascii") + b"\x00" + point


def spell_batch(
    *, realm: str, kid: str, incarnation: str, after: int, first: int, last: int, lines: Sequence[Line]
) -> bytes:
    """Return the bytes of a batch. The lines' numbers lie between `first` and `last`."""
    at = min((line.first_at_ms for line in lines), default=0)
    head = min((line.head for line in lines), default=0)
    tokens: dict[tuple[str, int], int] = {}
    models: dict[str, int] = {}
    listed: dict[What, list[list[object]]] = {what: [] for what in What}
    for line in lines:
        token = tokens.setdefault((line.token, line.index), len(tokens)) if line.token else NOBODY
        model = models.setdefault(line.model, len(models)) if line.model else NOBODY
        when, until, of = line.first_at_ms - at, line.last_at_ms - at, line.head - head
        row: list[object]
        match line.what:
            case What.ACCEPTED:
                row = [(line.number or 0) - first, token, model, when, of]
                if line.request_hash:
                    row.append(line.request_hash)
            case What.ENDED:
                row = [
                    (line.number or 0) - first, token, model, when, of, line.accepted_as, line.reason, line.calls,
                    line.bytes,
                ]  # fmt: skip
            case What.SUMMED:
                row = [token, model, when, until, of, line.count, line.calls, line.bytes]
            case What.DENIED:
                row = [token, model, line.reason, when, until, of, line.count]
        listed[line.what].append(row)
    body = {
        "realm": realm, "kid": kid, "incarnation": incarnation, "after": after, "first": first, "last": last,
        "at": at, "head": head, "tokens": [list(token) for token in tokens], "models": list(models),
        **{what.value: rows for what, rows in listed.items()},
    }  # fmt: skip
    return _ENCODER.encode(body).encode("ascii")


def parse_batch(data: bytes) -> Batch:
    """Read what `spell_batch` wrote. Raises ReceiptsRefused for any other bytes."""
    if len(data) > MAX_BATCH_BYTES:
        raise ReceiptsRefused(f"a batch of {len(data)} bytes", hint=f"at most {MAX_BATCH_BYTES}")
    try:
        text = data.decode("ascii")
        body = json.loads(text)
        # Duplicate names, other numbers for the same value, spaces: all are other spellings.
        is_same = isinstance(body, dict) and _ENCODER.encode(body) == text
    except (ValueError, RecursionError) as bad:
        raise ReceiptsRefused("a batch that is not JSON") from bad
    if not is_same or set(body) != _NAMES:
        _refuse("its one spelling or its members")
    return batch_of(body, text)


def batch_of(body: Any, text: str = "") -> Batch:
    """Read a batch out of a ledger entry's body. Raises ReceiptsRefused."""
    try:
        return _read(body, text)
    except (KeyError, TypeError, ValueError, IndexError) as bad:
        raise ReceiptsRefused("a batch with lines that are not of their form") from bad


def _read(body: Any, text: str) -> Batch:
    # A text is a sequence, too, and a mapping can be walked.
    if not all(isinstance(body[name], list) for name in ("tokens", "models", *What)):
        _refuse("list")
    realm, kid, incarnation = body["realm"], body["kid"], body["incarnation"]
    if not (matches_identifier(realm) and _KID.fullmatch(kid) and _INCARNATION.fullmatch(incarnation)):
        _refuse("realm, kid or incarnation")
    after, first, last = _number(body["after"]), _number(body["first"]), _number(body["last"])
    if not after < first <= last:
        _refuse("its sequence numbers")
    tokens = [_token(one) for one in body["tokens"]]
    models = body["models"]
    if not all(matches_model(model) for model in models):
        _refuse("its models")
    lines = tuple(_lines(body, _Bases(_number(body["at"]), _number(body["head"]), first, last, tokens, models)))
    if not lines or len(lines) > MAX_LINES:
        _refuse("the number of its lines")
    return Batch(realm, kid, incarnation, after, first, last, lines, text)


@dataclass(frozen=True, slots=True)
class _Bases:
    at: int
    head: int
    first: int
    last: int
    tokens: list[tuple[str, int]]
    models: list[str]

    def number(self, offset: object) -> int:
        number = self.first + _number(offset)
        if number > self.last:
            _refuse("a line outside its sequence numbers")
        return number

    def of(self, token: object, model: object) -> tuple[str, int, str]:
        id_, index = self.tokens[_number(token)]
        return id_, index, self.models[_number(model)]

    def believed(self, token: object, model: object) -> tuple[str, int, str]:
        if token == NOBODY:
            return "", 0, ""
        if model == NOBODY:
            return *self.tokens[_number(token)], ""
        return self.of(token, model)


def _lines(body: Any, bases: _Bases) -> Iterator[Line]:
    at, head = bases.at, bases.head
    for number, token, model, when, of, *request in body["accepted"]:
        at_ms = at + _number(when)
        hashed = _hash(request)
        yield Line(
            What.ACCEPTED, *bases.of(token, model), at_ms, at_ms, head + _number(of), 1, number=bases.number(number),
            request_hash=hashed,
        )  # fmt: skip
    for number, token, model, when, of, accepted, why, calls, size in body["ended"]:
        at_ms = at + _number(when)
        yield Line(
            What.ENDED, *bases.of(token, model), at_ms, at_ms, head + _number(of), 1, number=bases.number(number),
            accepted_as=_number(accepted), reason=_reason(why, may_be_empty=True), calls=_number(calls),
            bytes=_number(size),
        )  # fmt: skip
    for token, model, when, until, of, count, calls, size in body["summed"]:
        yield Line(
            What.SUMMED, *bases.of(token, model), *_span(at, when, until), head + _number(of), _number(count),
            calls=_number(calls), bytes=_number(size),
        )  # fmt: skip
    for token, model, why, when, until, of, count in body["denied"]:
        yield Line(
            What.DENIED, *bases.believed(token, model), *_span(at, when, until), head + _number(of), _number(count),
            reason=_reason(why),
        )  # fmt: skip


def _span(at: int, when: object, until: object) -> tuple[int, int]:
    first, last = at + _number(when), at + _number(until)
    if last < first:
        _refuse("a sum that ends before it begins")
    return first, last


def _number(value: object) -> int:
    # `True` is an int, and -1 would take the last of a list.
    if type(value) is not int or not 0 <= value <= MAX_SAFE_INT:
        _refuse("a number")
    return value


def _token(value: Any) -> tuple[str, int]:
    id_, index = value
    if not matches_opaque_id(id_):
        _refuse("a token's id")
    return id_, _number(index)


def _reason(value: Any, *, may_be_empty: bool = False) -> str:
    if not _REASON.fullmatch(value) and not (may_be_empty and value == ""):
        _refuse("a reason")
    return str(value)


def _hash(request: list[Any]) -> str:
    if not request:
        return ""
    [text] = request
    if not _KID.fullmatch(text):
        _refuse("a request's hash")
    return str(text)


def _refuse(what: str) -> NoReturn:
    raise ReceiptsRefused(f"a batch with an unusable {what}")
