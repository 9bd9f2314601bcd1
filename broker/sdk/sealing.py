"""From a journal's records to a batch of receipts, each by itself or summed. Pure."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from broker.token.claims import Claims
from broker.token.jws import b64url
from broker.token.receipts import MAX_BATCH_BYTES, MINUTE_MS, Line, What, spell_batch

MAX_SEALED_LINES = 512
_ACCEPTED, _ENDED, _DENIED = "a", "e", "d"

Record = tuple[int, bytes]
"""Its number and its bytes: JSON, a list whose first member says what it is."""


def subject_of(claims: Claims, model: str) -> str:
    """Return how records name a token and a model that were verified, and so need no escapes."""
    return f'{claims.idx},"{claims.jti}","{model}"'


def accepted_record(subject: str, at_ms: int, head: int, request_hash: bytes | None) -> bytes:
    """Return the record of an accepted use."""
    hashed = "" if request_hash is None else f',"{b64url(request_hash)}"'
    return f'["{_ACCEPTED}",{at_ms},{head},{subject}{hashed}]'.encode("ascii")


def ended_record(subject: str, at_ms: int, head: int, *, accepted: int, why: str, calls: int, size: int) -> bytes:
    """Return the record of the end of a use that lasted."""
    return f'["{_ENDED}",{at_ms},{head},{subject},{accepted},"{why}",{calls},{size}]'.encode("ascii")


def denied_record(line: Line) -> bytes:
    """Return the record of denials that were summed already."""
    return json.dumps(
        [
            _DENIED,
            line.first_at_ms,
            line.head,
            line.index,
            line.token,
            line.model,
            line.last_at_ms,
            line.reason,
            line.count,
        ]
    ).encode("ascii")


@dataclass(frozen=True, slots=True)
class Sealed:
    """The bytes of a batch that covers numbers up to `last`."""

    body: bytes
    last: int


def seal(records: Sequence[Record], *, realm: str, kid: str, incarnation: str, after: int, summed: bool) -> Sealed:
    """Return a batch of as many of the records, which is not empty, as fit."""
    taken = records
    while True:
        lines, count = _lines(taken, summed=summed)
        last = taken[count - 1][0]
        body = spell_batch(
            realm=realm, kid=kid, incarnation=incarnation, after=after, first=records[0][0], last=last, lines=lines
        )
        if len(body) <= MAX_BATCH_BYTES or count == 1:
            return Sealed(body, last)
        # Names may be long; the rest comes with the next one.
        taken = taken[: max(1, count // 2)]


@dataclass(slots=True)
class _Sum:
    """Uses of one token and model within one minute. The head is the highest that one was accepted by."""

    first_at_ms: int
    last_at_ms: int
    head: int = 0
    count: int = 0
    calls: int = 0
    size: int = 0


def _lines(records: Sequence[Record], *, summed: bool) -> tuple[list[Line], int]:
    """Return the lines of the first records, and of how many."""
    lines: list[Line] = []
    sums: dict[tuple[int, str, str, int], _Sum] = {}
    count = 0
    for number, record in records:
        if len(lines) + len(sums) >= MAX_SEALED_LINES:
            break
        fields = json.loads(record)
        if summed and fields[0] != _DENIED:
            _add(sums, fields)
        else:
            lines.append(_line(number, fields))
        count += 1
    for (index, token, model, _), one in sums.items():
        lines.append(
            Line(
                What.SUMMED,
                token,
                index,
                model,
                one.first_at_ms,
                one.last_at_ms,
                one.head,
                one.count,
                calls=one.calls,
                bytes=one.size,
            )
        )
    return lines, count


def _add(sums: dict[tuple[int, str, str, int], _Sum], fields: list[Any]) -> None:
    what, at_ms, head, index, token, model, *rest = fields
    of = (index, token, model, at_ms // MINUTE_MS)
    one = sums.get(of)
    if one is None:
        one = sums[of] = _Sum(at_ms, at_ms)
    one.first_at_ms = min(one.first_at_ms, at_ms)
    one.last_at_ms = max(one.last_at_ms, at_ms)
    if what == _ACCEPTED:
        one.count += 1
        one.head = max(one.head, head)
    else:
        # The head at its end says nothing of what it was accepted by.
        one.calls += rest[2]
        one.size += rest[3]


def _line(number: int, fields: list[Any]) -> Line:
    what, at_ms, head, index, token, model, *rest = fields
    match what:
        case "a":
            hashed = rest[0] if rest else ""
            return Line(What.ACCEPTED, token, index, model, at_ms, at_ms, head, 1, number=number, request_hash=hashed)
        case "e":
            accepted, why, calls, size = rest
            return Line(
                What.ENDED,
                token,
                index,
                model,
                at_ms,
                at_ms,
                head,
                1,
                number=number,
                accepted_as=accepted,
                reason=why,
                calls=calls,
                bytes=size,
            )
        case _:
            last_at_ms, why, count = rest
            return Line(What.DENIED, token, index, model, at_ms, last_at_ms, head, count, reason=why)
