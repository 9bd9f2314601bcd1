"""P10: in a log of more than one tile, each byte of each tile counts, and what is no log is none."""

import random

import pytest

from broker.audit.writing import ExportWriter
from broker.audit.wrong import Rule
from broker.errors import NotProven
from broker.ledger.entry import Entry, Kind, encode_entry
from tests.asked import AT
from tests.exported import Log

OPS = "spiffe://lab.example/ops"


def entries(size: int) -> list[bytes]:
    first = encode_entry(Entry(0, Kind.LEDGER_CREATED, AT, "broker", {"incarnation": "1"}))
    body = {"sha256": "0" * 64}
    return [first, *(encode_entry(Entry(n, Kind.POLICY_APPLIED, AT, OPS, {**body, "n": n})) for n in range(1, size))]


def named(log: Log, files: dict[str, bytes]) -> tuple[str, str]:
    with pytest.raises(NotProven) as caught:
        log.check(files)
    return caught.value.metadata["where"], caught.value.metadata["rule"]


def test_a_log_of_several_tiles_is_good_and_no_byte_of_a_tile_can_be_changed() -> None:
    log = Log(entries(600), {}, {})
    files = log.files()
    assert {"tile/0/000", "tile/0/001", "tile/0/002.p/88", "tile/1/000.p/2"} <= files.keys()
    assert log.check(files).size == 600
    chance = random.Random(5)
    for name in files:
        if not name.startswith("tile/"):
            continue
        for _ in range(12):
            at = chance.randrange(len(files[name]))
            data = files[name][:at] + bytes([files[name][at] ^ (1 << chance.randrange(8))]) + files[name][at + 1 :]
            where, rule = named(log, {**files, name: data})
            assert rule in (Rule.TREE, Rule.FORM), name
            # What is above a tile, and what is below it, contradict each other: either can be the one that was changed.
            assert where.startswith(("tile/0/", "tile/entries/", "entry "))


def test_a_tile_that_is_missing_is_named_at_each_level() -> None:
    log = Log(entries(600), {}, {})
    files = log.files()
    for name in files.keys() - {"checkpoint"}:
        assert named(log, {other: data for other, data in files.items() if other != name}) == (name, Rule.LAYOUT)


def test_an_empty_log_is_none() -> None:
    log = Log([], {}, {})
    assert named(log, {"checkpoint": log.signer.checkpoint([])}) == ("checkpoint", Rule.BEGINNING)


def test_a_broker_that_gives_what_is_no_entry_or_not_the_next_is_not_exported() -> None:
    writer = ExportWriter({}.__setitem__, lambda _: b"")
    with pytest.raises(NotProven, match=r"entry 0: .*rule form"):
        writer.take(b"anything")
    with pytest.raises(NotProven, match=r"entry 1: came in the place of 0 \(rule form"):
        writer.take(entries(2)[1])
