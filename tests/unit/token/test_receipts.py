"""The one spelling of a batch of receipts: what is written is read, and nothing else is."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.errors import ReceiptsRefused
from broker.token.receipts import (
    MAX_BATCH_BYTES,
    MAX_LINES,
    Line,
    What,
    batch_of,
    parse_batch,
    spell_batch,
)

KID = "k" * 43
IDS = st.from_regex(r"[A-Za-z0-9_-]{8,64}", fullmatch=True)
MODELS = st.sampled_from(["mythos", "vision@eu-1", "a"])
NUMBERS = st.integers(0, 2**40)
TIMES = st.integers(1_700_000_000_000, 1_800_000_000_000)
FIRST, LAST = 100, 200


@st.composite
def lines(draw: st.DrawFn) -> Line:
    what = draw(st.sampled_from(What))
    at = draw(TIMES)
    until = at + draw(st.integers(0, 60_000)) if what in (What.SUMMED, What.DENIED) else at
    line = Line(what, draw(IDS), draw(NUMBERS), draw(MODELS), at, until, draw(NUMBERS), 1)
    match what:
        case What.ACCEPTED:
            hashed = draw(st.sampled_from(["", "h" * 43]))
            return replace(line, number=draw(st.integers(FIRST, LAST)), request_hash=hashed)
        case What.ENDED:
            return replace(
                line,
                number=draw(st.integers(FIRST, LAST)),
                accepted_as=draw(NUMBERS),
                reason=draw(st.sampled_from(["", "REVOKED", "STALE"])),
                calls=draw(NUMBERS),
                bytes=draw(NUMBERS),
            )
        case What.SUMMED:
            return replace(line, count=draw(NUMBERS), calls=draw(NUMBERS), bytes=draw(NUMBERS))
        case What.DENIED:
            denied = replace(line, count=draw(NUMBERS), reason="NOT_ALLOWED")
            return draw(st.sampled_from([denied, replace(denied, token="", index=0, model="")]))


def spelled(given_lines: list[Line], **changes: object) -> bytes:
    fields = {"realm": "evaluation", "kid": KID, "incarnation": "abc", "after": FIRST - 1, "first": FIRST, "last": LAST}
    return spell_batch(**{**fields, **changes}, lines=given_lines)  # type: ignore[arg-type]


ONE = Line(What.ACCEPTED, "token-id-0", 7, "mythos", 1_700_000_000_000, 1_700_000_000_000, 9, 1, number=FIRST)


@given(st.lists(lines(), min_size=1, max_size=8))
def test_a_batch_is_read_as_it_was_written(given_lines):
    batch = parse_batch(spelled(given_lines))
    assert sorted(map(repr, batch.lines)) == sorted(map(repr, given_lines))
    assert (batch.realm, batch.kid, batch.incarnation) == ("evaluation", KID, "abc")
    assert (batch.after, batch.first, batch.last, batch.lost) == (FIRST - 1, FIRST, LAST, 0)
    # As it comes out of the ledger.
    assert batch_of(json.loads(batch.text)).lines == batch.lines


def test_what_is_lost_before_a_batch_is_told_by_its_numbers():
    assert parse_batch(spelled([ONE], after=40)).lost == FIRST - 41


@given(st.data())
def test_no_byte_of_a_batch_can_be_changed_into_another_spelling_of_it(data):
    good = spelled([ONE, replace(ONE, number=FIRST + 1, token="token-id-1")])
    at = data.draw(st.integers(0, len(good) - 1))
    other = data.draw(st.binary(min_size=0, max_size=2))
    changed = good[:at] + other + good[at + 1 :]
    try:
        read = parse_batch(changed)
    except ReceiptsRefused:
        return
    assert changed == good or read != parse_batch(good)


GOOD = json.loads(spelled([ONE]))


def altered(**changes: object) -> bytes:
    return json.dumps({**GOOD, **changes}, sort_keys=True, separators=(",", ":")).encode()


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b"\xff",
        b"[" * 40_000,
        b'{"a":1,"a":1}',
        spelled([ONE]) + b"\n",
        b" " + spelled([ONE]),
        b"x" * (MAX_BATCH_BYTES + 1),
        altered(extra=1),
        altered(realm="Evaluation"),
        altered(realm=1),
        altered(kid="short"),
        altered(incarnation=""),
        altered(incarnation="a\nb"),
        altered(after=FIRST),
        altered(after=-1),
        altered(after=True),
        altered(first=1.0),
        altered(last=FIRST - 1),
        altered(last=2**53),
        altered(at=-1),
        altered(models=["../x"]),
        altered(models="mythos"),
        altered(models=[["mythos"]]),
        altered(tokens=[["short", 7]]),
        altered(tokens=[["token-id-0", -7]]),
        altered(tokens=[["token-id-0"]]),
        altered(tokens={}),
        altered(accepted=[]),
        altered(accepted=[[0, 0, 0, 0]]),
        altered(accepted=[[0, 1, 0, 0, 0]]),
        altered(accepted=[[0, -1, 0, 0, 0]]),
        altered(accepted=[[0, 0, -1, 0, 0]]),
        altered(accepted=[[0, 0, 1, 0, 0]]),
        altered(accepted=[[LAST - FIRST + 1, 0, 0, 0, 0]]),
        altered(accepted=[[0, 0, 0, 0, 0, "no hash"]]),
        altered(accepted=[[0, 0, 0, 0, 0, "h" * 43, 1]]),
        altered(accepted=[0]),
        altered(accepted={"a": 1}),
        altered(accepted=GOOD["accepted"] * (MAX_LINES + 1)),
        altered(summed=[[0, 0, 5, 4, 0, 1, 0, 0]]),
        altered(summed=[[-1, -1, 5, 6, 0, 1, 0, 0]]),
        altered(denied=[[0, 0, "", 0, 0, 0, 1]]),
        altered(denied=[[0, 0, "lower", 0, 0, 0, 1]]),
        altered(denied=[[-2, 0, "EXPIRED", 0, 0, 0, 1]]),
        altered(ended=[[0, 0, 0, 0, 0, 1, "x y", 1, 1]]),
        altered(ended=[[0, 0, 0, 0, 0, None, "", 1, 1]]),
    ],
)
def test_p7_what_is_no_batch_is_refused_and_nothing_escapes(bad):
    with pytest.raises(ReceiptsRefused):
        parse_batch(bad)


def test_the_batch_that_is_altered_above_is_good_otherwise():
    assert parse_batch(altered()).lines == (ONE,)


def test_a_batch_of_this_form_has_these_bytes():
    assert spelled([ONE]) == (
        b'{"accepted":[[0,0,0,0,0]],"after":99,"at":1700000000000,"denied":[],"ended":[],"first":100,"head":9,'
        b'"incarnation":"abc","kid":"' + b"k" * 43 + b'","last":200,"models":["mythos"],"realm":"evaluation",'
        b'"summed":[],"tokens":[["token-id-0",7]]}'
    )
