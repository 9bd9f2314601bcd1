"""The PolicyHistory port's promises, on the fake, on SQLite and on PostgreSQL."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from broker.adapters.sql import SqlLedger
from broker.service.policy_ports import PolicyHistory
from broker.service.ports import PolicyReplaced
from tests.fakes import Disk, FakeLedger
from tests.moved_clock import MovedClock
from tests.stores import append, revocation

pytest_plugins = ["tests.fixtures_stores"]

AT = datetime(2026, 11, 23, 12, tzinfo=UTC)


@pytest.fixture(params=["fake", "sqlite", "postgresql"])
def ledger(request: pytest.FixtureRequest) -> Iterator[Any]:
    if request.param == "fake":
        yield FakeLedger(Disk.new("a" * 32, AT), MovedClock())
    else:
        yield request.getfixturevalue(f"{request.param}_home").open()


def history(ledger: Any) -> PolicyHistory:
    return ledger.history if isinstance(ledger, SqlLedger) else ledger


def test_nothing_was_applied_before_the_first_policy(ledger: Any) -> None:
    assert list(history(ledger).applied(None, 10)) == []
    assert history(ledger).as_of(0) is None
    assert history(ledger).as_of(2**62) is None


def test_every_policy_is_kept_with_its_author_its_reason_and_each_letter(ledger: Any) -> None:
    documents = ["one\n", "two: 'ä\u2028'\n", ""]
    for number, document in enumerate(documents):
        append(ledger, 1, PolicyReplaced(document, f"spiffe://lab.example/{number}", AT, f"reason {number}"))
    assert [(one.version, one.by, one.reason, one.at) for one in history(ledger).applied(None, 10)] == [
        (number + 1, f"spiffe://lab.example/{number}", f"reason {number}", AT) for number in (2, 1, 0)
    ]
    for number, document in enumerate(documents):
        kept = history(ledger).as_of(number + 1)
        assert kept is not None
        assert (kept.document, kept.applied.index) == (document, number + 1)
    assert ledger.policy().reason == "reason 2"


def test_a_version_that_a_block_made_has_the_policy_that_was_applied_before_it(ledger: Any) -> None:
    append(ledger, 1, PolicyReplaced("one", "a", AT, "x"))
    append(ledger, 1, revocation(blocks=True, partner="acme"))
    append(ledger, 1, PolicyReplaced("two", "a", AT, "y"))
    assert [one.version for one in history(ledger).applied(None, 10)] == [3, 1]
    assert [history(ledger).as_of(version).applied.version for version in (1, 2, 3, 99)] == [1, 1, 3, 3]  # type: ignore[union-attr]
    assert history(ledger).as_of(0) is None


def test_the_policy_of_an_entry_is_the_last_one_applied_before_it(ledger: Any) -> None:
    append(ledger, 1)
    append(ledger, 1, PolicyReplaced("one", "a", AT, "x"))
    append(ledger, 3)
    append(ledger, 1, PolicyReplaced("two", "a", AT, "y"))
    found = [history(ledger).before(index) for index in (0, 1, 2, 3, 5, 6, 7, 100)]
    assert [one and one.index for one in found] == [None, None, None, 2, 2, 2, 6, 6]


def test_versions_are_read_page_by_page_the_newest_first(ledger: Any) -> None:
    for number in range(5):
        append(ledger, 1, PolicyReplaced(str(number), "a", AT))
    assert [one.version for one in history(ledger).applied(None, 2)] == [5, 4]
    assert [one.version for one in history(ledger).applied(4, 2)] == [3, 2]
    assert [one.version for one in history(ledger).applied(2, 2)] == [1]
    assert list(history(ledger).applied(1, 2)) == []


def test_what_is_pruned_is_no_policy(ledger: Any) -> None:
    append(ledger, 1, PolicyReplaced("one", "a", AT))
    append(ledger, 1, PolicyReplaced("two", "a", AT))
    ledger.prune(datetime(2099, 1, 1, tzinfo=UTC))
    assert len(history(ledger).applied(None, 10)) == 2
