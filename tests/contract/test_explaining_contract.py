"""The promises of the ports Denials and RevocationSearch, on the fake, on SQLite and on PostgreSQL."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from broker.adapters.sql import SqlLedger
from broker.domain.decision import Rule
from broker.service.explain_ports import KEEP_DENIALS, MOST_DENIALS, Denial
from broker.token.revocation import Dimension
from tests.fakes import Disk, FakeExplaining, FakeLedger
from tests.moved_clock import MovedClock
from tests.stores import append, revocation

pytest_plugins = ["tests.fixtures_stores"]

AT = datetime(2026, 11, 23, 12, tzinfo=UTC)
LONG_AGO = AT - timedelta(days=365)
DENIAL = Denial(
    partner="acme",
    request_id="request-0000-0001",
    principal="spiffe://acme.example/ci",
    at=AT,
    method="TokenService/Mint",
    reason="NOT_GRANTED",
    message="acme may not use 'ä'",
    rules=(Rule("realm", True, "evaluation is in the policy"), Rule("default", False, "no grant")),
    remedy="ask an admin",
    version=7,
    is_partners=False,
)


@pytest.fixture(params=["fake", "sqlite", "postgresql"])
def ledger(request: pytest.FixtureRequest) -> Iterator[Any]:
    if request.param == "fake":
        yield FakeLedger(Disk.new("a" * 32, AT), MovedClock())
    else:
        yield request.getfixturevalue(f"{request.param}_home").open()


@pytest.fixture
def port(ledger: Any) -> Any:
    return ledger.explaining if isinstance(ledger, SqlLedger) else FakeExplaining(ledger.disk)


def test_a_denial_is_found_as_it_was_noted(port: Any) -> None:
    port.note([])
    port.note([DENIAL])
    assert port.find(DENIAL.request_id, "acme", since=LONG_AGO) == DENIAL
    assert port.find(DENIAL.request_id, None, since=LONG_AGO) == DENIAL


def test_b20_a_denial_of_another_partner_another_request_or_long_ago_is_none(port: Any) -> None:
    port.note([DENIAL])
    assert port.find(DENIAL.request_id, "acm", since=LONG_AGO) is None
    assert port.find(DENIAL.request_id, "globex", since=LONG_AGO) is None
    assert port.find("request-0000-0002", None, since=LONG_AGO) is None
    assert port.find(DENIAL.request_id, "acme", since=AT + timedelta(milliseconds=1)) is None


def test_the_newest_denial_of_a_request_is_kept_in_whatever_order_they_come(port: Any) -> None:
    later = replace(DENIAL, at=AT + timedelta(seconds=1), message="later")
    for batch in ([later, DENIAL], [DENIAL]):
        port.note(batch)
        assert port.find(DENIAL.request_id, "acme", since=LONG_AGO) == later
    theirs = replace(DENIAL, partner="globex", at=AT + timedelta(seconds=2))
    port.note([theirs])
    assert port.find(DENIAL.request_id, None, since=LONG_AGO) == theirs
    assert port.find(DENIAL.request_id, "acme", since=LONG_AGO) == later


def test_b19_of_each_partner_only_so_many_are_kept_and_none_for_long(port: Any) -> None:
    theirs = replace(DENIAL, partner="globex")
    port.note([theirs])
    many = [
        replace(DENIAL, request_id=f"request-{n:08}", at=AT + timedelta(milliseconds=n))
        for n in range(MOST_DENIALS + 5)
    ]
    port.note(many[:600])
    port.note(many[600:])
    assert port.find(many[4].request_id, "acme", since=LONG_AGO) is None
    assert port.find(many[5].request_id, "acme", since=LONG_AGO) == many[5]
    assert port.find(theirs.request_id, "globex", since=LONG_AGO) == theirs
    port.note([replace(DENIAL, at=AT + KEEP_DENIALS + timedelta(days=1))])
    assert port.find(many[-1].request_id, "acme", since=LONG_AGO) is None


def test_revocations_are_found_by_what_they_name(ledger: Any, port: Any) -> None:
    for selector in (
        {"partner": "acme"},
        {"user": "acme"},
        {"partner": "acme", "user": "alice"},
        {"key": "K" * 43},
        {"partner": "a_me"},
        {"token": "A" * 22},
    ):
        append(ledger, 1, revocation(**selector))

    def found(*conditions: tuple[Dimension, str], **options: Any) -> list[int]:
        return [one.index for one in port.naming(conditions, **{"after": 0, "kid": "x", "limit": 10, **options})]

    assert found((Dimension.PARTNER, "acme")) == [1, 3]
    assert found((Dimension.PARTNER, "acme"), after=1) == [3]
    assert found((Dimension.PARTNER, "acme"), limit=1) == [1]
    assert found((Dimension.USER, "acme"), (Dimension.TOKEN, "A" * 22)) == [2, 6]
    assert found((Dimension.PARTNER, "acm")) == []
    # A revocation by the key alone is absolute: any index.
    assert found((Dimension.KEY, "K" * 43), after=100, kid="K" * 43) == [4]
    assert found((Dimension.KEY, "K" * 43), after=100) == []
