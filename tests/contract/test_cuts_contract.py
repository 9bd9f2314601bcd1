"""The promises of the port Cuts, on SQLite and on PostgreSQL."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import pytest

from broker.adapters.sql import SqlLedger
from broker.service.proof_ports import Cut, Cuts
from tests.postgresql import PostgreSql
from tests.stores import Home, away_and_back

pytest_plugins = ["tests.fixtures_stores"]

NOW = datetime.now(UTC).replace(microsecond=0)
LATER = NOW + timedelta(hours=1)
CUT = Cut(7, "spiffe://lab.example/gateway", "evaluation", 3)


@dataclass(frozen=True)
class Brokers:
    """One broker's store, and the cuts of another one on the same."""

    store: SqlLedger
    another: Callable[[], Cuts]


@pytest.fixture(params=["sqlite", "postgresql"])
def brokers(request: pytest.FixtureRequest) -> Brokers:
    home: Home = request.getfixturevalue(f"{request.param}_home")
    return Brokers(home.open(), lambda: home.open().cuts)


def test_each_broker_knows_what_the_others_were_told_of_the_revocations_it_asks_for(brokers: Brokers) -> None:
    here, there = brokers.store.cuts, brokers.another()
    same_index = replace(CUT, realm="research"), replace(CUT, verifier="spiffe://lab.example/third", uses=1)
    around = tuple(replace(CUT, revocation=index) for index in (6, 8, 9))
    there.note("there", [CUT, *same_index, *around], keep_until=LATER)
    here.note("here", [replace(CUT, uses=50)], keep_until=LATER)
    assert set(here.elsewhere("here", 7, 7)) == {CUT, *same_index}
    assert set(here.elsewhere("here", 7, 8)) == {CUT, *same_index, around[1]}
    assert there.elsewhere("there", 7, 8) == [replace(CUT, uses=50)]
    assert here.elsewhere("here", 10, 20) == []


def test_what_is_told_again_takes_the_place_of_what_was_told(brokers: Brokers) -> None:
    there = brokers.another()
    there.note("there", [CUT], keep_until=LATER)
    there.note("there", [replace(CUT, uses=5)], keep_until=LATER)
    there.note("there", [], keep_until=LATER)
    assert brokers.store.cuts.elsewhere("here", 0, 100) == [replace(CUT, uses=5)]


def test_they_go_when_no_completion_needs_them_any_more(brokers: Brokers) -> None:
    there = brokers.another()
    there.note("there", [CUT], keep_until=LATER)
    there.note("there", [replace(CUT, revocation=8)], keep_until=LATER + timedelta(seconds=1))
    brokers.store.prune(LATER - timedelta(milliseconds=1))
    assert len(brokers.store.cuts.elsewhere("here", 0, 100)) == 2
    brokers.store.prune(LATER)
    assert brokers.store.cuts.elsewhere("here", 0, 100) == [replace(CUT, revocation=8)]


def test_while_the_store_is_away_each_says_so_and_later_is_answered(own_postgresql: PostgreSql) -> None:
    home = Home("postgresql", own_postgresql.url(own_postgresql.new_database()))
    cuts = home.open().cuts
    questions: list[Callable[[], object]] = [
        lambda: cuts.note("there", [CUT], keep_until=LATER),
        lambda: cuts.elsewhere("here", 0, 100),
    ]
    cuts.elsewhere("here", 0, 100)
    away_and_back(own_postgresql, questions)
    assert cuts.elsewhere("here", 0, 100) == [CUT]
    home.close()
