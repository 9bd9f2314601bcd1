"""The promises of the port DrillCalls, on SQLite and on PostgreSQL."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import pytest

from broker.service.proof_ports import DrillCall, DrillCalls
from tests.postgresql import PostgreSql
from tests.stores import Home, away_and_back

pytest_plugins = ["tests.fixtures_stores"]

NOW = datetime.now(UTC).replace(microsecond=0)
CALL = DrillCall("canary-1", "evaluation", "header.payload.signature", 17_000, NOW)


@dataclass(frozen=True)
class Brokers:
    """One broker's calls, and those of another one on the same store."""

    calls: DrillCalls
    another: Callable[[], DrillCalls]


@pytest.fixture(params=["sqlite", "postgresql"])
def brokers(request: pytest.FixtureRequest) -> Brokers:
    home: Home = request.getfixturevalue(f"{request.param}_home")
    return Brokers(home.open().drill_calls, lambda: home.open().drill_calls)


def test_every_broker_knows_the_drills_under_way_by_when_they_were_called(brokers: Brokers) -> None:
    earlier = replace(CALL, canary="canary-2", realm="research", called_at=NOW - timedelta(seconds=3))
    brokers.calls.call(CALL)
    brokers.another().call(earlier)
    assert list(brokers.another().called()) == [earlier, CALL]
    brokers.another().end(CALL.canary)
    assert list(brokers.calls.called()) == [earlier]


def test_what_each_broker_says_stands_until_it_says_something_else_or_the_drill_is_over(brokers: Brokers) -> None:
    other = brokers.another()
    brokers.calls.call(CALL)
    assert brokers.calls.told(CALL.canary) == {}
    long = b"".join(b'[%d,"spiffe://lab.example/gateway-%d"],' % (n, n) for n in range(10_000))
    for part in (b"[]", long):
        other.tell(CALL.canary, "another", part)
    other.tell(CALL.canary, "yet another", b"[1]")
    assert brokers.calls.told(CALL.canary) == {"another": long, "yet another": b"[1]"}
    brokers.calls.end(CALL.canary)
    other.tell(CALL.canary, "another", b"too late")
    brokers.calls.call(CALL)
    assert brokers.calls.told(CALL.canary) == {}


def test_what_a_broker_that_died_had_called_is_forgotten_after_an_hour(brokers: Brokers) -> None:
    old = replace(CALL, canary="canary-0", called_at=NOW - timedelta(hours=1))
    young = replace(old, canary="canary-2", called_at=NOW - timedelta(minutes=59))
    for call in (old, young):
        brokers.calls.call(call)
        brokers.another().tell(call.canary, "another", b"[]")
    assert list(brokers.calls.called()) == [old, young]
    brokers.calls.call(CALL)
    assert list(brokers.calls.called()) == [young, CALL]
    assert brokers.calls.told(old.canary) == {}
    assert brokers.calls.told(young.canary) == {"another": b"[]"}


def test_ending_what_never_began_is_nothing(brokers: Brokers) -> None:
    brokers.calls.end("canary-9")
    brokers.calls.tell("canary-9", "another", b"[]")
    assert list(brokers.calls.called()) == []
    assert brokers.calls.told("canary-9") == {}


def test_while_the_store_is_away_every_call_says_so_and_later_is_answered(own_postgresql: PostgreSql) -> None:
    home = Home("postgresql", own_postgresql.url(own_postgresql.new_database()))
    calls = home.open().drill_calls
    calls.call(CALL)
    questions: list[Callable[[], object]] = [
        calls.called,
        lambda: calls.tell(CALL.canary, "another", b"[]"),
        lambda: calls.told(CALL.canary),
        lambda: calls.end(CALL.canary),
        lambda: calls.call(CALL),
    ]
    away_and_back(own_postgresql, questions)
    assert list(calls.called()) == [CALL]
    home.close()
