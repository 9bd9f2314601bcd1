"""Batches of single tokens: fast, all or nothing, and never in the way of an urgent revocation."""

import threading
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from broker.adapters.sql import SqlLedger
from broker.errors import Defect, Overloaded
from broker.ledger.entry import Kind
from broker.service.ports import Effect, TokensRevoked, Write
from broker.service.proof_ports import CompletionAwaited
from broker.token.revocation import Selector
from tests.contract.test_ledger_contract import Gate
from tests.stores import BY, Home, append, assert_whole, draft, failure_of, key, revocation, write

pytest_plugins = ["tests.fixtures_stores"]

NOW = datetime.now(UTC).replace(microsecond=0)
MANY = 10_000
# A tenth of it on a machine of its own; the test machine has others to serve.
COMMITTED_WITHIN_S = 5.0


def revoked(count: int = MANY, *, mark: str = "a") -> TokensRevoked:
    selectors = tuple(Selector.of(realm="evaluation", token=f"{mark}{number:021d}") for number in range(count))
    return TokensRevoked(selectors, "a test", BY, NOW, NOW + timedelta(hours=1))


def batch(*effects: Effect, count: int = MANY) -> Write:
    return Write([draft(kind=Kind.REVOKED)] * count, request=key(), effects=effects)


@dataclass
class Held:
    """A batch whose first draft waits inside the append."""

    entered: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)

    def write(self) -> Write:
        return Write([self._draft, *[draft(kind=Kind.REVOKED)] * (MANY - 1)], request=key(), effects=(revoked(),))

    def _draft(self, index: int) -> bytes:
        self.entered.set()
        assert self.go_on.wait(30)
        return draft(kind=Kind.REVOKED)(index)


def test_p5_ten_thousand_tokens_are_revoked_in_one_write_and_the_feed_is_woken_once(home: Home) -> None:
    woken: list[float] = []
    store = home.open(on_commit=lambda: woken.append(time.monotonic()))
    started = time.monotonic()
    done = store.append(batch(revoked(), CompletionAwaited(("evaluation",), 5000))).result(30)
    assert time.monotonic() - started < COMMITTED_WITHIN_S
    assert len(woken) == 1
    assert [record.index for record in store.changes(0, now=NOW).revocations] == list(done.indices)
    assert_whole(home)


def test_an_urgent_revocation_overtakes_batches_that_wait(store: SqlLedger) -> None:
    gate = Gate(store)
    waiting = [store.append(batch(revoked(mark=mark))) for mark in "ab"]
    urgent = store.append(write(1, revocation(partner="acme", blocks=True), urgent=True))
    gate.open()
    assert urgent.result(30).indices.start == 2
    assert [future.result(30).indices.start for future in waiting] == [3, 3 + MANY]


def test_an_urgent_revocation_waits_for_no_more_than_the_batch_that_is_being_written(store: SqlLedger) -> None:
    held = Held()
    first = store.append(held.write())
    assert held.entered.wait(10)
    second = store.append(batch(revoked(mark="b")))
    urgent = store.append(write(1, revocation(partner="acme"), urgent=True))
    held.go_on.set()
    assert first.result(30).indices.start == 1
    assert urgent.result(30).indices.start == 1 + MANY
    assert second.result(30).indices.start == 2 + MANY


def test_a_mint_is_not_committed_together_with_a_batch_that_came_after_it(home: Home) -> None:
    groups: list[int] = []
    store = home.open(on_group=lambda count, _: groups.append(count))
    gate = Gate(store)
    small = store.append(write())
    large = store.append(batch(revoked()))
    gate.open()
    assert small.result(30).indices.start == 2
    assert large.result(30).indices.start == 3
    assert groups == [1, 1, MANY]


def test_more_batches_than_may_wait_are_refused_and_an_urgent_revocation_is_not(store: SqlLedger) -> None:
    gate = Gate(store)
    waiting = [store.append(batch(revoked(mark=mark))) for mark in "ab"]
    assert isinstance(failure_of(store.append(batch(revoked(mark="c")))), Overloaded)
    urgent = store.append(write(1, revocation(partner="acme"), urgent=True))
    gate.open()
    for future in (urgent, *waiting):
        assert failure_of(future) is None


def test_a_batch_of_which_one_draft_fails_revokes_nothing(home: Home, store: SqlLedger) -> None:
    def broken(_index: int) -> bytes:
        raise KeyError("a defect")

    drafts = [*[draft(kind=Kind.REVOKED)] * 99, broken]
    assert isinstance(failure_of(store.append(Write(drafts, effects=(revoked(100),)))), Defect)
    assert store.head().size == 1
    assert list(store.revocations(-1, 10)) == []
    assert_whole(home)


def test_a_batch_with_more_or_less_tokens_than_entries_fails_alone(home: Home, store: SqlLedger) -> None:
    gate = Gate(store)
    good = [store.append(write(request=key())) for _ in range(2)]
    bad = [store.append(batch(revoked(count), count=100)) for count in (99, 101)]
    good.append(store.append(write(request=key())))
    gate.open()
    assert all(isinstance(failure_of(future), Defect) for future in bad)
    assert sorted(future.result(10).indices.start for future in good) == [2, 3, 4]
    assert list(store.revocations(-1, 10)) == []
    assert append(store).indices.start == 5
    assert_whole(home)
