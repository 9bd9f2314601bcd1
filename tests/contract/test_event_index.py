"""The index of the ledger: what it finds is what a walk through all events finds; it can be lost at any time."""

import random
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.adapters import event_index
from broker.adapters.event_index import SqliteEventIndex
from broker.audit.events import AccessPath, Event, facet
from broker.errors import StoreUnavailable
from broker.service.ports import Head
from broker.service.question_ports import EventIndex, Reached, Ref, Times, Wanted

HEAD = Head("an-incarnation", 10_000, 0)
NAMES = {"partner": 3, "user": 40, "model": 5, "token": 2_000, "realm": 1}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.db"


@pytest.fixture
def index(path: Path) -> Iterator[SqliteEventIndex]:
    index = SqliteEventIndex(path, HEAD)
    yield index
    index.close()


def events(count: int = 3_000) -> list[Event]:
    chance = random.Random(1)
    made, at_ms = [], 1_800_000_000_000
    for number in range(count):
        # A clock that is set back, now and then.
        at_ms += chance.randint(0, 50) - (30_000 if chance.random() < 0.01 else 0)
        facets = {facet(name, chance.randrange(most)) for name, most in NAMES.items() if chance.random() < 0.8}
        made.append(Event(number, 0, at_ms, -1, frozenset(facets)))
        for line in range(1, chance.randint(1, 4)):
            made.append(Event(number, line, at_ms - chance.randint(0, 400), chance.randrange(count), frozenset(facets)))
    return made


def walked(index: EventIndex, wanted: Wanted, limit: int) -> list[Ref]:
    found: list[Ref] = []
    after: Ref | None = None
    for _ in range(100_000):
        refs = index.find(wanted, after, limit)
        assert len(refs.refs) <= limit
        found += refs.refs
        after = refs.after
        if after is None:
            return found
    raise AssertionError("it never ends")


@pytest.mark.parametrize("block", [3, 4_000])
@pytest.mark.parametrize("budget_s", [0.0, 0.5])
def test_what_is_found_is_what_a_walk_finds(
    index: SqliteEventIndex, monkeypatch: pytest.MonkeyPatch, block: int, budget_s: float
) -> None:
    monkeypatch.setattr(event_index, "_BLOCK", block)
    monkeypatch.setattr(event_index, "BUDGET_S", budget_s)
    made = events(1_500)
    for start in range(0, 1_500, 500):
        index.add([one for one in made if start <= one.index < start + 500], start + 500)
    assert index.size() == 1_500
    chance = random.Random(2)
    for _ in range(60):
        names = chance.sample(sorted(NAMES), chance.randint(0, 3))
        facets = frozenset(facet(name, chance.randrange(NAMES[name])) for name in names)
        one, other = sorted(chance.choice(made).at_ms for _ in range(2))
        wanted = Wanted(facets, one if chance.random() < 0.6 else None, other if chance.random() < 0.6 else None)
        expected = [
            (event.index, event.line)
            for event in made
            if facets <= event.facets
            and (wanted.from_ms is None or event.at_ms >= wanted.from_ms)
            and (wanted.until_ms is None or event.at_ms < wanted.until_ms)
        ]
        assert walked(index, wanted, chance.choice((7, 1_000))) == expected


def test_the_newest_with_some_facets_and_the_highest_head_are_found(index: SqliteEventIndex) -> None:
    made = events(400)
    index.add(made, 400)
    wanted = (facet("partner", 1), facet("model", 2))
    with_all = [one for one in made if set(wanted) <= one.facets]
    assert index.last(wanted, 400) == with_all[-1].index
    assert index.last(wanted, with_all[0].index) is None
    assert index.highest_head(wanted) == max(one.head for one in with_all)
    assert index.highest_head((facet("partner", "nobody"),)) is None


def test_it_goes_on_where_it_was_and_writes_the_same_entries_twice_as_once(path: Path) -> None:
    made = events(200)
    for _ in range(2):
        index = SqliteEventIndex(path, HEAD)
        index.add(made, 200)
        index.close()
    index = SqliteEventIndex(path, HEAD)
    assert index.size() == 200
    assert len(walked(index, Wanted(frozenset({facet("realm", 0)})), 1_000)) == len(
        [one for one in made if facet("realm", 0) in one.facets]
    )
    index.close()


@pytest.mark.parametrize("spoil", ["another ledger", "a longer ledger", "no database", "another form"])
def test_what_is_of_another_ledger_or_cannot_be_read_is_thrown_away(path: Path, spoil: str) -> None:
    index = SqliteEventIndex(path, HEAD)
    index.add(events(50), 50)
    index.close()
    head = HEAD
    match spoil:
        case "another ledger":
            head = Head("another-incarnation", 10_000, 0)
        case "a longer ledger":
            head = Head("an-incarnation", 49, 0)
        case "no database":
            path.write_bytes(b"nonsense" * 1_000)
        case _:
            with sqlite3.connect(path) as connection:
                connection.execute("UPDATE about SET form = 99")
            connection.close()
    index = SqliteEventIndex(path, head)
    assert index.size() == 0
    assert walked(index, Wanted(frozenset({facet("realm", 0)})), 10) == []
    index.close()


def test_a_page_that_is_damaged_is_found_when_it_is_read_and_the_index_is_made_anew(path: Path) -> None:
    made = events(2_000)
    index = SqliteEventIndex(path, HEAD)
    index.add(made, 2_000)
    index.close()
    data = bytearray(path.read_bytes())
    # What says which ledger it is stays readable; most of the rest does not.
    for page in range(8, len(data) // 4096):
        data[page * 4096 : page * 4096 + 64] = b"\xff" * 64
    path.write_bytes(data)
    index = SqliteEventIndex(path, HEAD)
    with pytest.raises(StoreUnavailable, match="index of the ledger") as caught:
        assert index.size() == 2_000
        walked(index, Wanted(frozenset({facet("realm", 0)})), 1_000)
    assert "made anew" in str(caught.value.hint)
    assert index.size() == 0
    index.add(made, 2_000)
    wanted = [(one.index, one.line) for one in made if facet("realm", 0) in one.facets]
    assert walked(index, Wanted(frozenset({facet("realm", 0)})), 1_000) == wanted
    index.close()


def test_a_disk_that_does_not_let_it_be_made_fails_a_question_and_not_the_start(tmp_path: Path) -> None:
    index = SqliteEventIndex(tmp_path / "no" / "such" / "events.db", HEAD)
    with pytest.raises(StoreUnavailable, match="index of the ledger"):
        index.size()
    (tmp_path / "no" / "such").mkdir(parents=True)
    assert index.size() == 0
    index.close()


def test_without_a_place_it_goes_away_with_the_process_however_that_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    index = SqliteEventIndex(None, HEAD)
    made = events(2_000)
    for start in range(0, 2_000, 100):
        index.add([one for one in made if start <= one.index < start + 100], start + 100)
        # Killed now, it would leave nothing.
        assert not list(tmp_path.iterdir())
        assert index.size() == start + 100
    wanted = [(one.index, one.line) for one in made if facet("realm", 0) in one.facets]
    assert walked(index, Wanted(frozenset({facet("realm", 0)})), 1_000) == wanted
    index.close()
    assert index.size() == 0


PATHS = [
    AccessPath(realm, partner, user, "", f"{partner}-{realm}", "ci")
    for realm in ("evaluation", "research")
    for partner in ("acme", "globex")
    for user in ("alice", "bob")
]


def reaching(count: int = 600) -> list[Event]:
    chance = random.Random(3)
    made = []
    for number in range(count):
        path = chance.choice(PATHS) if chance.random() < 0.9 else None
        model = chance.choice(("mythos", "oracle"))
        line = chance.choice((0, 0, 1))
        facets = {facet("model", model), facet("decision", chance.choice(("accepted", "denied")))}
        if chance.random() < 0.3:
            facets.add(facet("model", f"{model}@eu-1"))
        # What verifiers signed comes late, and in another order.
        at_ms = 1_000_000 + number * 10 - (chance.randint(0, 5_000) if line else 0)
        made.append(Event(number, line, at_ms, 0, frozenset(facets), chance.randint(1, 50) if line else 1, path))
    return made


def counted(events: list[Event]) -> list[Reached]:
    found: dict[tuple[AccessPath, str], dict[bool, list[Event]]] = {}
    for event in events:
        is_use = event.line > 0
        if event.path is None or (is_use and "decision:accepted" not in event.facets):
            continue
        for one in event.facets:
            if one.startswith("model:"):
                found.setdefault((event.path, one[6:]), {}).setdefault(is_use, []).append(event)

    def times(some: list[Event] | None) -> Times | None:
        if not some:
            return None
        newest = max(some, key=lambda one: (one.at_ms, one.index))
        return Times(sum(one.count for one in some), newest.at_ms, newest.index)

    return [
        Reached(path, model, times(some.get(False)), times(some.get(True))) for (path, model), some in found.items()
    ]


def key(one: Reached) -> tuple[AccessPath, str]:
    return one.path, one.model


@pytest.mark.parametrize("step", [60, 7, 600])
def test_when_a_path_was_used_last_is_counted_once_whatever_is_written_again(path: Path, step: int) -> None:
    made = reaching()
    for start in range(0, 600, step):
        index = SqliteEventIndex(path, HEAD)
        for _ in range(2):
            index.add([one for one in made if start <= one.index < start + step], min(start + step, 600))
        index.close()
    index = SqliteEventIndex(path, HEAD)
    everything = sorted(counted(made), key=key)
    assert sorted(index.reached(None, None, None, 10_000), key=key) == everything
    assert sorted(index.reached("research", "acme", "mythos@eu-1", 10_000), key=key) == [
        one
        for one in everything
        if (one.path.realm, one.path.partner, one.model) == ("research", "acme", "mythos@eu-1")
    ]
    assert index.reached(None, "nobody", None, 10) == []
    assert len(index.reached(None, None, None, 5)) == 5
    index.close()
