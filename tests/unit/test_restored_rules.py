"""The stranger's rule of a restore: what was approved before it is void, and no run of before is open."""

from datetime import timedelta

import pytest

from broker.audit.past import Asked, Past, Run
from broker.audit.restored import take_restored
from broker.audit.runs import take_approval, take_kept
from broker.errors import NotProven
from broker.ledger.entry import Entry, Kind
from tests.asked import AT, asked


def spent(approval: str, index: int) -> Entry:
    body = {
        "approval": approval,
        "sha256": "5" * 64,
        "on": "token-1",
        "approvers": ["carol", "dave"],
        "purpose": asked().purpose.value,
    }
    return Entry(index, Kind.APPROVAL_SPENT, AT + timedelta(minutes=1), "spiffe://acme.example/ci", body)


def test_an_approval_of_before_a_restore_that_is_spent_after_it_is_named():
    one = asked()
    past = Past(incarnation="a" * 32, approvals={one.id: Asked(one, "5" * 64, people={"carol", "dave"})})
    body = {"incarnation": "b" * 32, "from": "a" * 32, "size": 7, "root": "0" * 64, "reason": "the disk failed"}
    take_restored(past, Entry(7, Kind.LEDGER_RESTORED, AT, "spiffe://lab.example/ops", body))
    with pytest.raises(NotProven, match="void since the ledger was restored"):
        take_approval(past, spent(one.id, 8))


def test_one_that_was_spent_before_the_restore_stays_spent_on_what_it_was():
    one = asked()
    past = Past(incarnation="a" * 32, approvals={one.id: Asked(one, "5" * 64, people={"carol", "dave"})})
    take_approval(past, spent(one.id, 6))
    body = {"incarnation": "b" * 32, "from": "a" * 32, "size": 7, "root": "0" * 64, "reason": "the disk failed"}
    take_restored(past, Entry(7, Kind.LEDGER_RESTORED, AT, "spiffe://lab.example/ops", body))
    assert past.approvals[one.id].ended == "spent on token-1"


def test_a_run_of_before_a_restore_that_is_kept_after_it_is_named():
    past = Past(incarnation="a" * 32, runs={"run-1": Run("evaluation", "acme")})
    take_kept(past, Entry(6, Kind.RUN_KEPT, AT, "spiffe://acme.example/ci", {"run": "run-1"}))
    body = {"incarnation": "b" * 32, "from": "a" * 32, "size": 7, "root": "0" * 64, "reason": "the disk failed"}
    take_restored(past, Entry(7, Kind.LEDGER_RESTORED, AT, "spiffe://lab.example/ops", body))
    with pytest.raises(NotProven, match="run-1 was kept, and is not open"):
        take_kept(past, Entry(8, Kind.RUN_KEPT, AT, "spiffe://acme.example/ci", {"run": "run-1"}))
