"""The Ledger port's promises, on SQLite and on PostgreSQL: several brokers, one after another and at once."""

import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

import psycopg
import pytest
from sqlalchemy import create_engine

from broker.adapters.clock import SystemClock
from broker.adapters.sql import SqlLedger, open_store
from broker.errors import PolicyMoved, RequestReused, StoreUnavailable
from broker.service.ports import Appended, BlockLifted, CertificateAdded, TokensRevoked
from broker.token.keys import Purpose
from broker.token.revocation import Selector
from tests.realm_keys import RealmKeys
from tests.stores import BY, Home, append, assert_whole, everything, failure_of, key, policy, revocation, write
from tests.waiting import eventually

pytest_plugins = ["tests.fixtures_stores"]

ROOT = Path(__file__).parent.parent.parent
EACH = 150
SINGLE = TokensRevoked(
    (Selector.of(token="a" * 22),), "a test", BY, datetime.now(UTC), datetime.now(UTC) + timedelta(hours=1)
)
Read = TypeVar("Read")


def test_p2_two_brokers_on_one_ledger_leave_no_gap_and_no_fork(home: Home) -> None:
    stores = [home.open(), home.open()]
    with ThreadPoolExecutor(16) as pool:
        done = list(pool.map(lambda number: append(stores[number % 2], request=key()), range(400)))
    assert sorted(appended.indices.start for appended in done) == list(range(1, 401))
    assert everything(stores[0]) == everything(stores[1])
    assert_whole(home)


def test_p2_several_processes_on_one_ledger_leave_no_gap_and_no_fork(home: Home) -> None:
    store = home.open()
    writers = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.store_writer", home.url, str(EACH), "4"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for _ in range(2)
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    taken = [append(store, request=key()).indices.start for _ in range(EACH)]
    for writer in writers:
        out, _ = writer.communicate(timeout=60)
        assert writer.returncode == 0
        taken += [int(line) for line in out.split()]
    assert sorted(taken) == list(range(1, 3 * EACH + 1))
    assert_whole(home)


def test_p3_a_policy_that_another_broker_moved_is_seen_by_the_next_append(home: Home) -> None:
    ours, theirs = home.open(), home.open()
    append(ours, expecting=0)
    append(theirs, 1, revocation(partner="acme", blocks=True))
    assert isinstance(failure_of(ours.append(write(expecting=0))), PolicyMoved)
    assert ours.policy().version == 1
    append(ours, expecting=1)


def test_p3_of_two_brokers_that_expect_one_version_one_wins(home: Home) -> None:
    stores = [home.open(), home.open()]
    for version in range(20):
        futures = [store.append(write(1, policy(f"{version}"), expecting=version)) for store in stores]
        failures = [failure_of(future) for future in futures]
        assert sorted(str(type(failure).__name__) for failure in failures) == ["NoneType", "PolicyMoved"]
    assert stores[0].head().policy_version == 20
    assert_whole(home)


def test_a_request_repeated_at_another_broker_gets_the_first_answer(home: Home) -> None:
    ours, theirs = home.open(), home.open()
    request = key("what was asked")
    first = append(ours, 3, request=request)
    again = append(theirs, 3, request=request)
    assert (again.is_repeat, again.indices) == (True, first.indices)
    other = theirs.append(write(request=key("else", request_id=request.request_id)))
    assert isinstance(failure_of(other), RequestReused)


def test_a_request_at_two_brokers_at_once_is_done_once(home: Home) -> None:
    stores = [home.open(), home.open()]
    for _ in range(30):
        request = key("the same")
        futures = [store.append(write(2, request=request)) for store in stores]
        answers = [future.result(20) for future in futures]
        assert sorted(answer.is_repeat for answer in answers) == [False, True]
        assert answers[0].indices == answers[1].indices
    assert stores[0].head().size == 61
    assert_whole(home)


def test_p6_a_sole_broker_has_a_sqlite_file_to_itself(sqlite_home: Home) -> None:
    sole = sqlite_home.open(is_sole=True)
    for is_sole in (True, False):
        with pytest.raises(
            StoreUnavailable, match=r"another broker is using the store .*ledger.db; .*sole_broker = false"
        ):
            sqlite_home.open(is_sole=is_sole)
    append(sole)
    sole.close()
    shared = sqlite_home.open()
    assert shared.head().size == 2
    with pytest.raises(StoreUnavailable, match="another broker is using"):
        sqlite_home.open(is_sole=True)
    shared.close()
    assert sqlite_home.open(is_sole=True).head().size == 2


def test_a_broker_that_starts_again_goes_on_where_it_was(home: Home) -> None:
    first = home.open()
    append(first, 4, policy("one"))
    append(first, 1, revocation(partner="acme", blocks=True))
    head, before, record = first.head(), everything(first), first.policy()
    first.close()
    second = home.open()
    assert (second.head(), everything(second), second.policy()) == (head, before, record)
    assert append(second).indices.start == head.size
    assert_whole(home)


def test_each_new_ledger_has_an_incarnation_of_its_own(home: Home, tmp_path: Path) -> None:
    other = open_store(f"sqlite:///{tmp_path / 'other.db'}", SystemClock())
    assert other.head().incarnation != home.open().head().incarnation
    other.close()


def test_brokers_that_start_at_once_make_one_ledger(home: Home) -> None:
    begin = threading.Barrier(5)

    def start(_: int) -> SqlLedger:
        begin.wait()
        return home.open()

    with ThreadPoolExecutor(5) as pool:
        stores = list(pool.map(start, range(5)))
    assert len({store.head() for store in stores}) == 1
    assert stores[0].head().size == 1
    assert len(home.sql("SELECT version_num FROM alembic_version")) == 1
    assert_whole(home)


def test_brokers_on_one_sqlite_file_may_come_and_go_at_once(tmp_path: Path) -> None:
    # SQLite waits for nobody while a file turns to its write-ahead log, which it does once, at the beginning.
    for number in range(15):
        home, begin = Home("sqlite", f"sqlite:///{tmp_path / f'{number}.db'}"), threading.Barrier(5)

        def come_and_go(_: int, home: Home = home, begin: threading.Barrier = begin) -> None:
            begin.wait()
            for _ in range(2):
                store = home.open()
                append(store)
                store.close()

        with ThreadPoolExecutor(5) as pool:
            list(pool.map(come_and_go, range(5)))
        assert home.open().head().size == 11
        home.close()
        assert_whole(home)


def test_p1_an_append_is_acknowledged_only_after_others_can_see_it(home: Home) -> None:
    store = home.open()
    seen: list[bool] = []

    def look(done: Future[Appended]) -> None:
        index = done.result().indices.start
        seen.append(home.sql(f"SELECT count(*) FROM ledger WHERE idx = {index}") == [(1,)])

    for _ in range(10):
        future = store.append(write())
        future.add_done_callback(look)
        future.result(10)
    eventually(lambda: len(seen) == 10, "all were looked at")
    assert all(seen)


def read_while_it_moves(read: Callable[[], Read], moment: Callable[[Read], int]) -> list[Read]:
    """Read until enough different moments were seen."""
    reads: list[Read] = []

    def has_moved() -> bool:
        reads.extend(read() for _ in range(10))
        return len({moment(each) for each in reads}) >= 20

    eventually(has_moved, "it moves", within_s=20)
    return reads


def test_p3_a_policy_read_while_blocks_come_and_go_is_of_one_moment(home: Home) -> None:
    store, other = home.open(), home.open()
    acme, stop = Selector.of(partner="acme"), threading.Event()

    def come_and_go() -> None:
        while not stop.is_set():
            append(other, 1, revocation(partner="acme", blocks=True))
            append(other, 1, BlockLifted(acme))

    with ThreadPoolExecutor(1) as pool:
        busy = pool.submit(come_and_go)
        try:
            reads = read_while_it_moves(store.policy, lambda record: record.version)
        finally:
            stop.set()
        busy.result(20)
    assert all((acme in record.blocks) == (record.version % 2 == 1) for record in reads)


def test_p5_changes_read_under_load_hold_all_below_their_head(home: Home) -> None:
    store, other, stop = home.open(), home.open(), threading.Event()
    certificate = RealmKeys().token.certificate

    def revoke() -> None:
        ends = datetime(2100, 1, 1, tzinfo=UTC)
        while not stop.is_set():
            append(other, 1, revocation(user="alice"))
            append(other, 1, CertificateAdded("evaluation", Purpose.TOKEN, "k" * 43, certificate, ends))

    with ThreadPoolExecutor(1) as pool:
        busy = pool.submit(revoke)
        try:
            reads = read_while_it_moves(lambda: store.changes(1, now=datetime.now(UTC)), lambda read: read.head.size)
        finally:
            stop.set()
        busy.result(20)
    for read in reads:
        indices = sorted(record.index for record in (*read.revocations, *read.certificates))
        assert indices == list(range(1, read.head.size))


@pytest.mark.parametrize("effect", [revocation(partner="acme"), SINGLE, policy()])
def test_p5_what_verifiers_must_learn_wakes_the_feed_after_the_commit(home: Home, effect: object) -> None:
    heads: list[int] = []
    store = home.open(on_commit=lambda: heads.append(home.sql("SELECT size FROM head")[0][0]))
    append(store, 3)
    assert heads == []
    append(store, 1, effect)
    assert heads == [5]


class Listening:
    """Another broker on the same ledger, that counts how often it was woken."""

    def __init__(self, home: Home) -> None:
        self.woken = 0
        self.store = home.open()
        self.store.listen(self._wake)
        # As soon as it listens it is woken once, for what it may have missed.
        eventually(lambda: self.woken == 1, "it listens")

    def _wake(self) -> None:
        self.woken += 1

    def hears(self, work: Callable[[], object]) -> None:
        before = self.woken
        work()
        eventually(lambda: self.woken > before, "it was woken", within_s=5)


def test_p5_another_broker_is_woken_at_once(postgresql_home: Home) -> None:
    store, other = postgresql_home.open(), Listening(postgresql_home)
    other.hears(lambda: append(store, 1, revocation(partner="acme")))
    other.hears(lambda: append(store, 1, policy()))
    before = other.woken
    append(store, 5)
    other.hears(lambda: append(store, 1, revocation(user="alice")))
    assert other.woken == before + 1


def test_several_brokers_on_one_sqlite_file_are_not_woken_and_poll(sqlite_home: Home) -> None:
    sqlite_home.open().listen(pytest.fail)
    append(sqlite_home.open(), 1, revocation(partner="acme"))


def test_p5_a_broker_whose_listening_was_cut_listens_again_and_looks(postgresql_home: Home) -> None:
    store, other = postgresql_home.open(), Listening(postgresql_home)
    other.hears(
        lambda: postgresql_home.sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE query LIKE 'LISTEN%%' AND datname = current_database()"
        )
    )
    other.hears(lambda: append(store, 1, revocation(partner="acme")))


def test_a_writer_that_waits_for_another_gives_up_in_time_and_then_goes_on(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.adapters.sql.engine.LOCK_TIMEOUT_S", 1)
    store = home.open()
    append(store)
    engine = create_engine(home.url.replace("postgresql:", "postgresql+psycopg:"))
    with engine.connect() as holding:
        holding.exec_driver_sql("UPDATE head SET size = size")
        refused = failure_of(store.append(write(request=key(request_id="r"))))
        assert isinstance(refused, StoreUnavailable)
        # Reading goes on meanwhile.
        assert store.head().size == 2
    engine.dispose()
    assert append(store, request=key(request_id="r")).is_repeat is False
    assert_whole(home)


def test_p11_connections_that_the_server_cuts_are_made_anew(postgresql_home: Home) -> None:
    home = postgresql_home
    store = home.open()
    for number in range(3):
        append(store)
        store.head()
        with psycopg.connect(home.url, autocommit=True) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE pid <> pg_backend_pid() AND datname = current_database()"
            )
        assert append(store).indices.start == 2 + 2 * number
        assert store.head().size == 3 + 2 * number
    assert_whole(home)


@pytest.mark.parametrize(("first", "second"), [(True, True), (True, False), (False, True)])
def test_p6_a_sole_broker_has_a_postgresql_database_to_itself(postgresql_home: Home, first: bool, second: bool) -> None:
    one, other = postgresql_home.open(is_sole=first), postgresql_home.open(is_sole=second)
    one.listen(lambda: None)
    with pytest.raises(StoreUnavailable, match=r"another broker is using this .*sole_broker = false"):
        other.listen(lambda: None)
    one.close()
    other.listen(lambda: None)


def test_several_brokers_share_a_postgresql_database(postgresql_home: Home) -> None:
    for store in (postgresql_home.open(is_sole=False), postgresql_home.open(is_sole=False)):
        store.listen(lambda: None)
