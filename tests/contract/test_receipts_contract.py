"""The promises of the port ReceiptBook and of its guards and effects, on SQLite, PostgreSQL and the fake."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import pytest

from broker.errors import ReceiptsOutOfOrder, RequestReused
from broker.service.ports import Ledger
from broker.service.receipt_ports import (
    ReceiptBook,
    ReceiptKeyEnrolled,
    ReceiptKeyIsNew,
    ReceiptsFollow,
    ReceiptsWritten,
)
from tests.fakes import Disk, FakeLedger
from tests.moved_clock import MovedClock
from tests.stores import Home, append, failure_of, write

pytest_plugins = ["tests.fixtures_stores"]

KID = "k" * 43
POINT = bytes(range(65))
ENROLLED = ReceiptKeyEnrolled(KID, "evaluation", "spiffe://lab.example/gateway", POINT)


@dataclass(frozen=True)
class Ports:
    ledger: Ledger
    book: ReceiptBook
    another: Callable[[], "Ports"]


def of_sql(home: Home) -> Ports:
    store = home.open()
    return Ports(store, store.receipts, lambda: of_sql(home))


def of_fake(disk: Disk) -> Ports:
    fake = FakeLedger(disk, MovedClock())
    return Ports(fake, fake, lambda: of_fake(disk))


@pytest.fixture(params=["sqlite", "postgresql", "fake"])
def ports(request: pytest.FixtureRequest) -> Ports:
    if request.param == "fake":
        return of_fake(Disk.new("an-incarnation", datetime.now(UTC)))
    return of_sql(request.getfixturevalue(f"{request.param}_home"))


def enroll(ports: Ports) -> int:
    return ports.ledger.append(write(1, ENROLLED, guards=(ReceiptKeyIsNew(KID),))).result().indices.start


def kept(ports: Ports, after: int, through: int) -> object:
    return ports.ledger.append(write(1, ReceiptsWritten(KID, through), guards=(ReceiptsFollow(KID, after),)))


def test_a_key_is_kept_with_whose_it_is_and_nothing_written_yet(ports: Ports) -> None:
    assert ports.book.receipt_key(KID) is None
    index = enroll(ports)
    record = ports.another().book.receipt_key(KID)
    assert record is not None
    assert (record.kid, record.realm, record.verifier) == (KID, ENROLLED.realm, ENROLLED.verifier)
    assert (record.point, record.index, record.through) == (POINT, index, 0)


def test_b20_a_key_is_enrolled_once_and_keeps_its_owner(ports: Ports) -> None:
    enroll(ports)
    size = ports.ledger.head().size
    stolen = ReceiptKeyEnrolled(KID, "research", "spiffe://lab.example/thief", POINT)
    taking = ports.another().ledger.append(write(1, stolen, guards=(ReceiptKeyIsNew(KID),)))
    assert isinstance(failure_of(taking), RequestReused)
    assert ports.ledger.head().size == size
    record = ports.book.receipt_key(KID)
    assert record is not None
    assert record.verifier == ENROLLED.verifier


def test_b3_receipts_are_written_once_whoever_sends_them_again_and_to_whichever_broker(ports: Ports) -> None:
    enroll(ports)
    kept(ports, 0, 5).result()  # type: ignore[attr-defined]
    size = ports.ledger.head().size
    for after in (0, 3, 6):
        assert isinstance(failure_of(kept(ports.another(), after, 9)), ReceiptsOutOfOrder)
    assert ports.ledger.head().size == size
    record = ports.book.receipt_key(KID)
    assert record is not None
    assert record.through == 5
    kept(ports.another(), 5, 9).result()  # type: ignore[attr-defined]
    record = ports.book.receipt_key(KID)
    assert record is not None
    assert record.through == 9


def test_batches_of_one_key_that_wait_together_follow_each_other(ports: Ports) -> None:
    enroll(ports)
    waiting = [kept(ports, number, number + 1) for number in range(20)]
    repeated = kept(ports, 7, 8)
    assert len({one.result().indices.start for one in waiting}) == 20  # type: ignore[attr-defined]
    assert isinstance(failure_of(repeated), ReceiptsOutOfOrder)


def test_receipts_of_a_key_that_nobody_enrolled_are_not_written(ports: Ports) -> None:
    assert isinstance(failure_of(kept(ports, 0, 5)), ReceiptsOutOfOrder)


def test_entries_are_found_by_their_indices_and_those_that_are_not_there_are_left_out(ports: Ports) -> None:
    indices = append(ports.ledger, 3).indices
    found = ports.book.entries_at([indices[2], indices[0], 999_999])
    assert dict(found) == {at: ports.ledger.entries(at, at + 1)[0] for at in (indices[0], indices[2])}
    assert dict(ports.book.entries_at([])) == {}
