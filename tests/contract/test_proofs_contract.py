"""The promises of the ports Proofs and Roster, on SQLite, on PostgreSQL, and on the simulation's fake."""

import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from broker.errors import NotFound, StoreCorrupt
from broker.ledger.entry import Entry, Kind, decode_entry, encode_entry
from broker.service.ports import Ledger, TokensRevoked, Write
from broker.service.proof_ports import (
    Completed,
    CompletionAwaited,
    CompletionIsDue,
    CompletionRecord,
    DrillRecord,
    DrillRecorded,
    DrillsScheduled,
    Proofs,
    Roster,
    Sighting,
    VerifierForgotten,
)
from broker.token.revocation import Selector
from tests.fakes import Disk, FakeLedger
from tests.moved_clock import MovedClock
from tests.postgresql import PostgreSql
from tests.stores import BY, Home, append, away_and_back, draft, failure_of, key, revocation, write

pytest_plugins = ["tests.fixtures_stores"]

NOW = datetime.now(UTC).replace(microsecond=0)
AWAITED = CompletionAwaited(("evaluation", "research"), 5000)
DOCUMENT = b"one statement\nanother statement\n"


@dataclass(frozen=True)
class Ports:
    """One implementation, and another broker on the same store."""

    ledger: Ledger
    proofs: Proofs
    roster: Roster
    another: Callable[[], "Ports"]


def of_sql(home: Home) -> Ports:
    store = home.open()
    return Ports(store, store.proofs, store.roster, lambda: of_sql(home))


def of_fake(disk: Disk) -> Ports:
    fake = FakeLedger(disk, MovedClock())
    return Ports(fake, fake, fake, lambda: of_fake(disk))


@pytest.fixture(params=["sqlite", "postgresql", "fake"])
def ports(request: pytest.FixtureRequest) -> Ports:
    if request.param == "fake":
        return of_fake(Disk.new("an-incarnation", NOW))
    return of_sql(request.getfixturevalue(f"{request.param}_home"))


def revoke(ports: Ports, **selector: str) -> int:
    """Revoke with a completion awaited; return the index."""
    return append(ports.ledger, 1, revocation(**selector), AWAITED, urgent=True).indices.start


def complete(ports: Ports, index: int, document: bytes = DOCUMENT) -> Any:
    return ports.ledger.append(write(1, Completed(index, document), guards=(CompletionIsDue(index),), urgent=True))


def test_a_revocation_that_nobody_waits_for_awaits_no_completion(ports: Ports) -> None:
    index = append(ports.ledger, 1, revocation(partner="acme")).indices.start
    assert ports.proofs.completion(index) is None
    assert list(ports.proofs.awaited()) == []
    assert isinstance(failure_of(complete(ports, index)), NotFound)


def test_p11_what_awaits_its_completion_is_known_to_every_broker_the_oldest_first(ports: Ports) -> None:
    one, two = revoke(ports, partner="acme"), revoke(ports, partner="globex")
    expected = [CompletionRecord(index, index, AWAITED.realms, 5000, None, None) for index in (one, two)]
    assert list(ports.another().proofs.awaited()) == expected
    assert ports.another().proofs.completion(one) == expected[0]


def test_p6_a_completion_is_made_once_and_every_broker_reads_the_same(ports: Ports) -> None:
    index = revoke(ports, partner="acme")
    entry = complete(ports, index).result(20).indices.start
    size = ports.ledger.head().size
    for again in (ports, ports.another()):
        refused = complete(again, index, b"another document\n")
        assert isinstance(failure_of(refused), NotFound)
        assert again.proofs.completion(index) == CompletionRecord(index, index, AWAITED.realms, 5000, entry, DOCUMENT)
        assert list(again.proofs.awaited()) == []
    # What was refused wrote no entry either.
    assert ports.ledger.head().size == size


def test_p6_of_brokers_that_complete_at_the_same_moment_one_wins(ports: Ports) -> None:
    brokers = [ports, ports.another(), ports.another()]
    for _ in range(5):
        index = revoke(ports, partner="acme")
        documents = [b"by 0\n", b"by 1\n", b"by 2\n"]
        with ThreadPoolExecutor(len(brokers)) as pool:
            attempts = list(pool.map(complete, brokers, [index] * len(brokers), documents))
        failures = [failure_of(attempt) for attempt in attempts]
        assert sum(failure is None for failure in failures) == 1
        assert all(failure is None or isinstance(failure, NotFound) for failure in failures)
        [winner] = [number for number, failure in enumerate(failures) if failure is None]
        record = ports.proofs.completion(index)
        assert record is not None
        assert record.document == documents[winner]


def test_completing_an_unknown_revocation_is_refused(ports: Ports) -> None:
    size = ports.ledger.head().size
    assert isinstance(failure_of(complete(ports, 10**6)), NotFound)
    assert ports.ledger.head().size == size


def test_single_tokens_are_revoked_each_at_its_own_index_and_awaited_at_the_last(ports: Ports) -> None:
    selectors = tuple(Selector.of(realm="evaluation", token=f"{number:022d}") for number in range(2500))
    effect = TokensRevoked(selectors, "a test", BY, NOW, NOW + timedelta(hours=1))
    done = append(ports.ledger, len(selectors), effect, AWAITED, request=key("batch", request_id="r" * 22))
    assert len(done.indices) == 2500
    assert ports.ledger.head().policy_version == done.policy_version
    changes = ports.ledger.changes(done.indices.start, now=NOW)
    assert [record.index for record in changes.revocations] == list(done.indices)
    assert [record.selector for record in changes.revocations] == list(selectors)
    assert {record.reason for record in changes.revocations} == {"a test"}
    [awaited] = ports.proofs.awaited()
    assert (awaited.revocation, awaited.first) == (done.indices[-1], done.indices.start)
    again = append(ports.ledger, len(selectors), effect, AWAITED, request=key("batch", request_id="r" * 22))
    assert (again.is_repeat, again.indices) == (True, done.indices)


def test_p11_pruning_drops_neither_completions_nor_what_awaits_one(ports: Ports) -> None:
    done = revoke(ports, partner="acme")
    complete(ports, done).result(20)
    waits = revoke(ports, partner="globex")
    append(ports.ledger, 1, DrillRecorded("evaluation", b"{}"))
    ports.ledger.prune(NOW + timedelta(days=365))
    record = ports.proofs.completion(done)
    assert record is not None
    assert record.document == DOCUMENT
    assert [one.revocation for one in ports.proofs.awaited()] == [waits]
    assert len(ports.proofs.drills(None, 10)) == 1


def test_a_large_document_comes_back_as_it_was(ports: Ports) -> None:
    document = b"".join(b'{"verifier":"spiffe://lab.example/%d","state":"acknowledged"}\n' % n for n in range(50_000))
    index = revoke(ports, partner="acme")
    complete(ports, index, document).result(20)
    record = ports.proofs.completion(index)
    assert record is not None
    assert record.document == document


def test_drills_come_newest_first_by_realm_and_by_number(ports: Ports) -> None:
    for number in range(5):
        append(ports.ledger, 1, DrillRecorded(("evaluation", "research")[number % 2], b"drill %d" % number))
    every = ports.another().proofs.drills(None, 10)
    assert [drill.document for drill in every] == [b"drill %d" % number for number in (4, 3, 2, 1, 0)]
    assert [drill.document for drill in ports.proofs.drills("research", 10)] == [b"drill 3", b"drill 1"]
    assert [drill.document for drill in ports.proofs.drills(None, 2)] == [b"drill 4", b"drill 3"]
    assert ports.proofs.drills("atlantis", 10) == []
    assert every[0] == DrillRecord(every[0].index, "evaluation", b"drill 4")
    assert every[0].index == ports.ledger.head().size - 1


def test_a_schedule_is_replaced_and_ended(ports: Ports) -> None:
    for realm, every_s in (("research", 60), ("evaluation", 900), ("evaluation", 30)):
        append(ports.ledger, 1, DrillsScheduled(realm, every_s))
    assert list(ports.another().proofs.drill_schedules()) == [("evaluation", 30), ("research", 60)]
    append(ports.ledger, 1, DrillsScheduled("evaluation", 0))
    append(ports.ledger, 1, DrillsScheduled("atlantis", 0))
    assert list(ports.proofs.drill_schedules()) == [("research", 60)]


def minted(at: datetime, **claims: object) -> Any:
    return lambda index: encode_entry(Entry(index, Kind.TOKEN_MINTED, at, BY, {"claims": claims}))


def test_minted_entries_are_found_by_what_they_contain_and_when_they_were_written(ports: Ports) -> None:
    old, new = NOW - timedelta(hours=2), NOW
    for at, partner in ((old, "acme"), (old, "globex"), (new, "acme"), (new, "acme-evil"), (new, "globex")):
        ports.ledger.append(Write([minted(at, partner=partner, realm="evaluation")])).result(20)
    # Of another kind, and by another name.
    ports.ledger.append(Write([draft({"partner": "acme"}, kind=Kind.REVOKED)])).result(20)

    def found(*texts: bytes, since: datetime) -> list[tuple[int, object]]:
        entries = [decode_entry(data) for data in ports.proofs.minted(texts, since=since)]
        return [(entry.index, entry.body["claims"]["partner"]) for entry in entries]  # type: ignore[index]

    assert found(b'"partner":"acme"', since=NOW - timedelta(minutes=30)) == [(3, "acme")]
    assert found(b'"partner":"acme"', since=NOW - timedelta(days=1)) == [(1, "acme"), (3, "acme")]
    assert found(b'"partner":"acme"', b'"realm":"research"', since=old) == []
    assert len(found(since=NOW - timedelta(days=1))) == 5
    assert found(since=NOW + timedelta(hours=1)) == []


def test_minted_entries_are_found_by_what_is_escaped_in_them(ports: Ports) -> None:
    for name in ('a"b', "a\\b", "j\N{LATIN SMALL LETTER O WITH DIAERESIS}rg", "j\\u00f6rg"):
        ports.ledger.append(Write([minted(NOW, partner=name)])).result(20)
    for index, text in enumerate((rb'"a\"b"', rb'"a\\b"', rb'"j\u00f6rg"', rb'"j\\u00f6rg"'), 1):
        found = ports.proofs.minted([b'"partner":' + text], since=NOW)
        assert [decode_entry(data).index for data in found] == [index]


def test_minted_entries_that_brokers_wrote_by_clocks_a_minute_apart_are_found(ports: Ports) -> None:
    since = NOW - timedelta(minutes=30)
    drafts = []
    for step in range(120):
        ahead = timedelta(seconds=60 * (step % 2))
        drafts.append(minted(since + timedelta(seconds=step - 60) + ahead, partner="acme"))
    ports.ledger.append(Write(drafts)).result(20)
    found = {decode_entry(data).index for data in ports.proofs.minted([], since=since)}
    wanted = {index for index in range(1, 121) if decode_entry(ports.ledger.entries(index, index + 1)[0]).at >= since}
    assert wanted <= found


def test_minted_entries_are_read_while_others_are_written(ports: Ports) -> None:
    drafts = [minted(NOW, partner="acme")] * 200
    for _ in range(35):
        ports.ledger.append(Write(drafts)).result(20)
    size = ports.ledger.head().size
    reading = ports.proofs.minted([], since=NOW)
    first = next(reading)
    # Neither a slice that was read nor a reader that stops in the midst keeps a writer waiting.
    ports.ledger.append(Write(drafts)).result(20)
    ports.ledger.prune(NOW)
    rest = list(reading)
    assert [decode_entry(data).index for data in (first, *rest)][: size - 1] == list(range(1, size))


def test_minted_entries_beyond_one_slice_come_in_order(ports: Ports) -> None:
    drafts = [minted(NOW, partner="acme" if number % 1000 == 7 else "globex") for number in range(12_000)]
    for start in range(0, len(drafts), 500):
        ports.ledger.append(Write(drafts[start : start + 500])).result(20)
    found = [decode_entry(data).index for data in ports.proofs.minted([b'"partner":"acme"'], since=NOW)]
    assert found == [1000 * number + 8 for number in range(12)]


SEEN = Sighting("spiffe://lab.example/gateway", "evaluation", "0.1.0", "ipv4:127.0.0.1:5", 40, NOW, True)


def test_the_roster_keeps_the_last_sighting_of_each_verifier_in_each_realm(ports: Ports) -> None:
    other_realm = replace(SEEN, realm="research")
    other_name = replace(SEEN, verifier="spiffe://lab.example/another", is_present=False)
    ports.roster.note([SEEN, other_realm, other_name])
    assert list(ports.another().roster.known(None)) == [other_name, SEEN, other_realm]
    assert list(ports.roster.known("research")) == [other_realm]
    assert list(ports.roster.known("atlantis")) == []
    gone = replace(SEEN, seen_at=NOW + timedelta(seconds=5), is_present=False, address="ipv4:127.0.0.1:6", version="2")
    ports.roster.note([gone])
    assert list(ports.roster.known("evaluation")) == [other_name, gone]


def test_an_older_sighting_changes_nothing_and_a_head_never_goes_back(ports: Ports) -> None:
    ports.roster.note([SEEN])
    late = replace(SEEN, head=90, seen_at=NOW - timedelta(seconds=5), is_present=False, address="elsewhere")
    ports.roster.note([late])
    assert list(ports.roster.known(None)) == [replace(SEEN, head=90)]
    ports.roster.note([replace(SEEN, head=41, seen_at=NOW + timedelta(seconds=1))])
    assert list(ports.roster.known(None)) == [replace(SEEN, head=90, seen_at=NOW + timedelta(seconds=1))]


def test_of_several_sightings_at_once_the_newest_counts(ports: Ports) -> None:
    newer = replace(SEEN, head=50, seen_at=NOW + timedelta(seconds=1), is_present=False)
    ports.roster.note([newer, replace(SEEN, head=60)])
    assert list(ports.roster.known(None)) == [replace(newer, head=60)]


def test_nothing_noted_is_nothing_done(ports: Ports) -> None:
    ports.roster.note([])
    assert list(ports.roster.known(None)) == []


def test_ten_thousand_verifiers_are_noted_by_two_brokers_at_once(ports: Ports) -> None:
    crowd = [replace(SEEN, verifier=f"spiffe://lab.example/{number:05d}") for number in range(10_000)]
    two = ports.another()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda roster: roster.note(crowd), (ports.roster, two.roster)))
    assert list(ports.roster.known("evaluation")) == crowd


def test_a_forgotten_verifier_is_gone_in_its_realm_alone(ports: Ports) -> None:
    ports.roster.note([SEEN, replace(SEEN, realm="research")])
    append(ports.ledger, 1, VerifierForgotten(SEEN.verifier, "evaluation"))
    assert [one.realm for one in ports.roster.known(None)] == ["research"]


def test_while_the_store_is_away_every_question_says_so_and_later_is_answered(own_postgresql: PostgreSql) -> None:
    home = Home("postgresql", own_postgresql.url(own_postgresql.new_database()))
    ports = of_sql(home)
    ports.roster.note([SEEN])
    ports.ledger.append(Write([minted(NOW, partner="acme")])).result(20)
    questions: list[Callable[[], object]] = [
        lambda: ports.proofs.completion(1),
        ports.proofs.awaited,
        lambda: ports.proofs.drills(None, 1),
        ports.proofs.drill_schedules,
        lambda: list(ports.proofs.minted([], since=NOW)),
        lambda: ports.roster.note([SEEN]),
        lambda: ports.roster.known(None),
    ]
    away_and_back(own_postgresql, questions)
    assert list(ports.roster.known(None)) == [SEEN]
    home.close()


def test_a_damaged_document_is_not_given_out(sqlite_home: Home) -> None:
    ports = of_sql(sqlite_home)
    index = revoke(ports, partner="acme")
    complete(ports, index).result(20)
    for damage in ("x'00'", "substr(document, 1, length(document) - 3)", "CAST(document || x'00' AS BLOB)", "x''"):
        kept = sqlite_home.sql("SELECT document FROM completions")[0][0]
        sqlite_home.sql(f"UPDATE completions SET document = {damage}")
        with pytest.raises(StoreCorrupt):
            ports.proofs.completion(index)
        with sqlite3.connect(sqlite_home.url.removeprefix("sqlite:///")) as connection:
            connection.execute("UPDATE completions SET document = ?", (kept,))
        connection.close()
    assert ports.proofs.completion(index) is not None
