"""P10: an entry has one spelling, is read back as it was written, and nothing else is read at all."""

import json
import random
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.errors import Invalid, StoreCorrupt
from broker.ledger.entry import MAX_ENTRY_BYTES, Entry, Kind, decode_entry, encode_entry, leaf_hash

AT = datetime(2026, 11, 23, 12, 30, 59, 123_000, tzinfo=UTC)
GOOD = b'{"at":"2026-11-23T12:30:59.123Z","body":{"a":1},"by":"spiffe://x/y","index":7,"kind":"revoked"}'

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.text(max_size=20)
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)
zones = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))
instants = st.datetimes(datetime(1, 1, 3), datetime(9999, 12, 29), timezones=zones)  # noqa: DTZ001 - hypothesis adds the zone
entries = st.builds(
    Entry,
    st.integers(0, 2**63),
    st.sampled_from(Kind),
    instants,
    st.text(max_size=60),
    st.dictionaries(st.text(max_size=10), values, max_size=5),
)


def test_an_entry_s_bytes_are_these():
    entry = Entry(7, Kind.REVOKED, AT, "spiffe://x/y", {"a": 1})
    assert encode_entry(entry) == GOOD
    assert decode_entry(GOOD) == entry


@settings(max_examples=500, deadline=None, derandomize=True)
@given(entries)
def test_p10_an_entry_comes_back_as_it_went(entry):
    data = encode_entry(entry)
    found = decode_entry(data)
    # Kept to the millisecond, cut and not rounded: an entry is never later than what it tells of.
    late = entry.at - found.at
    assert timedelta(0) <= late < timedelta(milliseconds=1)
    assert (found.index, found.kind, found.by, found.body) == (entry.index, entry.kind, entry.by, entry.body)
    assert encode_entry(found) == data
    assert json.loads(data)["index"] == entry.index


@settings(max_examples=300, deadline=None, derandomize=True)
@given(entries, st.data())
def test_p10_parts_that_were_spelled_before_make_the_same_bytes(entry, data):
    """The mint spells the claims once, for the token and for the ledger."""
    chosen = data.draw(st.sets(st.sampled_from(sorted(entry.body)))) if entry.body else set()
    spelled = {
        name: json.dumps(entry.body[name], sort_keys=True, separators=(",", ":"), ensure_ascii=True) for name in chosen
    }
    rest = {name: value for name, value in entry.body.items() if name not in chosen}
    parts = Entry(entry.index, entry.kind, entry.at, entry.by, rest)
    assert encode_entry(parts, spelled=spelled) == encode_entry(entry)


def altered(old: str, new: str) -> bytes:
    text = GOOD.decode()
    assert old in text
    return text.replace(old, new, 1).encode("utf-8", "surrogatepass")


BAD = {
    "nothing": b"",
    "not JSON": b"nonsense",
    "another object": b"{}",
    "an array": b"[" + GOOD + b"]",
    "a number": b"7",
    "a space": altered('"index":7', '"index": 7'),
    "a line end": GOOD + b"\n",
    "a space before": b" " + GOOD,
    "a second entry": GOOD + GOOD,
    "a BOM": b"\xef\xbb\xbf" + GOOD,
    "utf-16": GOOD.decode().encode("utf-16"),
    "not ASCII": altered("x/y", "x/\u00fc"),
    "an escape that needs none": altered("x/y", "\\u0078/y"),
    "an escape in capitals": altered("x/y", "\\u00FC"),
    "an escaped slash": altered("x/y", "x\\/y"),
    "another order": b'{"kind":"revoked","at":"2026-11-23T12:30:59.123Z","body":{"a":1},"by":"spiffe://x/y","index":7}',
    "another order within": altered('{"a":1}', '{"b":1,"a":1}'),
    "a name twice": altered('"index":7', '"index":7,"index":7'),
    "a name twice within": altered('{"a":1}', '{"a":1,"a":1}'),
    "one more member": altered('"index":7', '"index":7,"j":1'),
    "no index": altered('"index":7,', ""),
    "no kind": altered(',"kind":"revoked"', ""),
    "no body": altered('"body":{"a":1},', ""),
    "no by": altered('"by":"spiffe://x/y",', ""),
    "no at": altered('"at":"2026-11-23T12:30:59.123Z",', ""),
    "a kind that is none": altered("revoked", "forgotten"),
    "a kind in capitals": altered("revoked", "Revoked"),
    "kind a number": altered('"revoked"', "5"),
    "index a float": altered('"index":7', '"index":7.0'),
    "index an exponent": altered('"index":7', '"index":7e0'),
    "index text": altered('"index":7', '"index":"7"'),
    "index true": altered('"index":7', '"index":true'),
    "index null": altered('"index":7', '"index":null'),
    "index an array": altered('"index":7', '"index":[7]'),
    "index an empty array": altered('"index":7', '"index":[]'),
    "index an empty object": altered('"index":7', '"index":{}'),
    "index negative": altered('"index":7', '"index":-7'),
    "index minus zero": altered('"index":7', '"index":-0'),
    "index with a zero before": altered('"index":7', '"index":07'),
    "by a number": altered('"spiffe://x/y"', "7"),
    "by null": altered('"spiffe://x/y"', "null"),
    "body an array": altered('{"a":1}', "[]"),
    "body a number": altered('{"a":1}', "1"),
    "body null": altered('{"a":1}', "null"),
    "NaN": altered('{"a":1}', '{"a":NaN}'),
    "Infinity": altered('{"a":1}', '{"a":Infinity}'),
    "1e999": altered('{"a":1}', '{"a":1e999}'),
    "a float in long": altered('{"a":1}', '{"a":1.50}'),
    "nested too deeply": altered('{"a":1}', '{"a":' + "[" * 30_000 + "]" * 30_000 + "}"),
    "a number of 5,000 digits": altered('{"a":1}', '{"a":' + "9" * 5000 + "}"),
    "an instant without a zone": altered("59.123Z", "59.123"),
    "an instant of another zone": altered("59.123Z", "59.123+01:00"),
    "UTC spelled +00:00": altered("59.123Z", "59.123+00:00"),
    "an instant in microseconds": altered("59.123Z", "59.123000Z"),
    "an instant in seconds": altered("59.123Z", "59Z"),
    "a leap second": altered("12:30:59", "12:30:60"),
    "24 o'clock": altered("12:30:59", "24:00:00"),
    "a space for the T": altered("23T12", "23 12"),
    "a day that is none": altered("2026-11-23", "2026-02-30"),
    "a week's day": altered("2026-11-23", "2026-W48-1"),
    "before all time": altered("2026-11-23T12:30:59.123Z", "0001-01-01T00:00:00.000+01:00"),
    "after all time": altered("2026-11-23T12:30:59.123Z", "9999-12-31T23:59:59.999-01:00"),
    "at a number": altered('"2026-11-23T12:30:59.123Z"', "1"),
}


@pytest.mark.parametrize("data", BAD.values(), ids=BAD)
def test_p10_other_bytes_are_no_entry(data):
    with pytest.raises(StoreCorrupt):
        decode_entry(data)


@pytest.mark.parametrize("seed", [1, 2])
def test_p10_an_altered_entry_is_refused_or_is_another_entry_in_its_one_spelling(seed):
    print("seed", seed)
    chance = random.Random(seed)
    read = 0
    for _ in range(10_000):
        changed = bytearray(GOOD)
        for _ in range(chance.choice((1, 1, 2, 4))):
            at = chance.randrange(len(changed))
            match chance.randrange(3):
                case 0:
                    changed[at] ^= 1 << chance.randrange(8)
                case 1:
                    changed.insert(at, chance.choice(b'0123456789{}[]",:.eE-+ aTZ\\\xff'))
                case _:
                    del changed[at : at + chance.randrange(1, 6)]
        try:
            found = decode_entry(bytes(changed))
        except StoreCorrupt:
            continue
        read += 1
        assert encode_entry(found) == changed
        assert type(found.index) is int
        assert found.index >= 0
        assert isinstance(found.by, str)
        assert isinstance(found.body, dict)
        assert leaf_hash(bytes(changed)) != leaf_hash(GOOD) or changed == GOOD
    assert read > 100, "a test in which nothing is read shows nothing"


def test_p7_an_instant_without_a_zone_is_no_instant():
    with pytest.raises(Invalid, match="zone"):
        Entry(1, Kind.REVOKED, datetime(2026, 1, 1), "x", {})  # noqa: DTZ001 - that is what is refused


@pytest.mark.parametrize("index", [-1, True, 1.0, "1", None])
def test_p7_an_index_is_a_position(index):
    with pytest.raises(Invalid, match="position"):
        Entry(index, Kind.REVOKED, AT, "x", {})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), b"bytes", {1, 2}, Exception], ids=repr)
def test_p7_what_json_has_not_is_not_written(value):
    for spelled in (None, {"b": "1"}):
        with pytest.raises(Invalid, match="plain JSON"):
            encode_entry(Entry(1, Kind.REVOKED, AT, "x", {"a": value}), spelled=spelled)


def test_p10_an_entry_has_at_most_65_535_bytes():
    spare = MAX_ENTRY_BYTES - len(encode_entry(Entry(7, Kind.REVOKED, AT, "x", {"a": ""})))
    longest = Entry(7, Kind.REVOKED, AT, "x", {"a": "b" * spare})
    data = encode_entry(longest)
    assert len(data) == MAX_ENTRY_BYTES == 0xFFFF
    assert decode_entry(data) == longest
    with pytest.raises(Invalid, match="65535"):
        encode_entry(Entry(7, Kind.REVOKED, AT, "x", {"a": "b" * (spare + 1)}))
    # Escapes count as what they are on the disk.
    with pytest.raises(Invalid, match="65535"):
        encode_entry(Entry(7, Kind.REVOKED, AT, "x", {"a": "\u00fc" * (spare // 6 + 1)}))
    # And what could not have been written is not read.
    with pytest.raises(StoreCorrupt):
        decode_entry(data.replace(b'"bb', b'"bbb'))


def test_p10_a_leaf_is_no_node():
    """RFC 6962 §2.1: the leading zero keeps an entry from passing for an inner node of the tree."""
    node = b"\x01" + bytes(64)
    assert leaf_hash(node) != leaf_hash(node[1:])
    assert leaf_hash(b"") != leaf_hash(b"\x00")
