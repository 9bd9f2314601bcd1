"""P11: PostgreSQL is killed, hangs, is cut off, turns read-only or full, while the broker runs."""

import itertools
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import psycopg
import pytest

from broker.adapters.sql import SqlLedger
from broker.adapters.sql.engine import ANSWER_TIMEOUT_S, CONNECT_TIMEOUT_S
from broker.errors import Failure, Revoked, Stale, StoreFull, StoreUnavailable
from broker.sdk import Verifier
from broker.sdk.failures import failure_of as failure_of_call
from broker.service.ports import Write
from broker.v1 import tokens_pb2
from tests.mounts import small_disk
from tests.postgresql import PostgreSql
from tests.served import Served, request_id
from tests.stores import Home, append, assert_whole, draft, failure_of, key, revocation, write
from tests.tcp_proxy import Behaviour, TcpProxy
from tests.waiting import eventually, succeeds

pytest_plugins = ["tests.fixtures_stores"]

# One answer that does not come, and one connection that is not made.
AT_MOST_S = ANSWER_TIMEOUT_S + CONNECT_TIMEOUT_S + 3


@pytest.fixture
def proxy(postgresql: PostgreSql) -> Iterator[TcpProxy]:
    with TcpProxy(postgresql.port) as proxy:
        yield proxy


@pytest.fixture
def behind(postgresql: PostgreSql, postgresql_home: Home, proxy: TcpProxy) -> Iterator[Home]:
    """The ledger of `postgresql_home`, reached through `proxy`."""
    database = postgresql_home.url.partition("@/")[2].partition("?")[0]
    home = Home("postgresql", postgresql.url(database, port=proxy.port))
    yield home
    proxy.behave(Behaviour.FORWARD)
    home.close()


def everybody_is_told(store: SqlLedger) -> float:
    """Write and read at once; return how long it took until each had its StoreUnavailable."""

    def fails(work: Callable[[], object]) -> float:
        began = time.monotonic()
        with pytest.raises(StoreUnavailable, match="repeat with the same request_id"):
            work()
        return time.monotonic() - began

    asked: list[Callable[[], object]] = [
        lambda: store.append(write(request=key(request_id="unknown"))).result(60),
        lambda: store.append(write(1, revocation(partner="acme"), urgent=True)).result(60),
        store.head,
        store.policy,
        lambda: store.entries(0, 1),
    ]
    with ThreadPoolExecutor(len(asked)) as pool:
        return max(pool.map(fails, asked))


def goes_on(store: SqlLedger) -> None:
    """Wait until the store works again by itself, and nothing was done twice."""
    eventually(lambda: succeeds(store.head), "it can be read again", within_s=10)
    eventually(lambda: failure_of(store.append(write())) is None, "it can be written again", within_s=10)
    first = append(store, request=key(request_id="unknown"))
    again = append(store, request=key(request_id="unknown"))
    assert again.is_repeat
    assert again.indices == first.indices


def test_p11_a_postgresql_that_hangs_is_given_up_in_time_and_comes_back(own_postgresql: PostgreSql) -> None:
    home = Home("postgresql", own_postgresql.url(own_postgresql.new_database()))
    store = home.open()
    append(store, 10)
    store.head()
    own_postgresql.freeze()
    try:
        took_s = everybody_is_told(store)
    finally:
        own_postgresql.thaw()
    assert took_s < AT_MOST_S
    goes_on(store)
    home.close()
    assert_whole(home)


def test_p11_a_postgresql_that_is_killed_is_noticed_at_once_and_comes_back(own_postgresql: PostgreSql) -> None:
    home = Home("postgresql", own_postgresql.url(own_postgresql.new_database()))
    store = home.open()
    append(store, 10)
    for _ in range(3):
        own_postgresql.kill()
        assert everybody_is_told(store) < 5
        own_postgresql.start()
        goes_on(store)
    home.close()
    assert_whole(home)


def test_p11_an_orderly_stop_is_survived_too(own_postgresql: PostgreSql) -> None:
    home = Home("postgresql", own_postgresql.url(own_postgresql.new_database()))
    store = home.open()
    store.listen(lambda: None)
    append(store, 10)
    own_postgresql.stop()
    assert everybody_is_told(store) < 5
    own_postgresql.start()
    goes_on(store)
    home.close()
    assert_whole(home)


def test_p11_a_network_that_swallows_everything_is_given_up_in_time(behind: Home, proxy: TcpProxy) -> None:
    store = behind.open()
    append(store, 10)
    proxy.behave(Behaviour.HOLD)
    assert everybody_is_told(store) < AT_MOST_S
    proxy.behave(Behaviour.FORWARD)
    proxy.cut()
    goes_on(store)


def test_p11_connections_cut_at_any_moment_lose_and_double_nothing(
    behind: Home, proxy: TcpProxy, postgresql_home: Home
) -> None:
    store = behind.open()
    stop = threading.Event()
    acknowledged: list[tuple[str, int]] = []

    def ask(worker: int) -> None:
        for count in itertools.count():
            request = key(request_id=f"{worker}-{count}")
            while isinstance(failure_of(future := store.append(write(request=request))), StoreUnavailable):
                pass
            acknowledged.append((request.request_id, future.result().indices.start))
            if stop.is_set():
                return

    with ThreadPoolExecutor(4) as pool:
        workers = [pool.submit(ask, number) for number in range(4)]
        for _ in range(60):
            before = len(acknowledged)
            eventually(lambda before=before: len(acknowledged) > before + 3, "it goes on")
            proxy.cut()
        stop.set()
        for worker in workers:
            worker.result(20)
    indices = [index for _, index in acknowledged]
    assert sorted(indices) == list(range(1, len(indices) + 1))
    kept = postgresql_home.sql("SELECT request_id, first_idx FROM requests")
    assert sorted((request_id, index) for request_id, index in kept) == sorted(acknowledged)
    assert_whole(postgresql_home)


def test_a_postgresql_that_became_a_standby_is_named_as_such(postgresql_home: Home) -> None:
    store = postgresql_home.open()
    append(store)
    with psycopg.connect(postgresql_home.url, autocommit=True) as connection:
        database = connection.info.dbname
        connection.execute(f"ALTER DATABASE {database} SET default_transaction_read_only = on")
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE pid <> pg_backend_pid() AND datname = current_database()"
        )
    failure = failure_of(store.append(write()))
    assert isinstance(failure, StoreUnavailable)
    assert "read-only standby; point store.url at the primary" in str(failure)
    with pytest.raises(StoreUnavailable, match="read-only standby"):
        postgresql_home.open()
    assert store.head().size == 2
    with psycopg.connect(postgresql_home.url, autocommit=True) as connection:
        connection.execute("SET default_transaction_read_only = off")
        connection.execute(f"ALTER DATABASE {database} RESET default_transaction_read_only")


def test_a_postgresql_that_is_not_there_is_an_error_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match="the store did not answer"):
        Home("postgresql", f"postgresql://postgres@/nothing?host={tmp_path}").open()


def test_a_full_postgresql_takes_nothing_half_and_goes_on_with_space(
    own_postgresql: PostgreSql, tmp_path_factory: pytest.TempPathFactory
) -> None:
    server = own_postgresql
    with small_disk(server.folder / "disk", mib=24) as disk:
        subprocess.run(["chown", "--reference", server.data, disk], check=True)
        server.execute(f"CREATE TABLESPACE small LOCATION '{disk}'")
        database = server.new_database()
        server.execute(f"ALTER DATABASE {database} SET TABLESPACE small")
        home = Home("postgresql", server.url(database))
        store = home.open()
        failure: BaseException | None = None
        for _ in range(300):
            failure = failure_of(store.append(Write([draft({"x": "y" * 1000})] * 100, request=key())))
            if failure is not None:
                break
        assert isinstance(failure, StoreFull)
        assert "free space" in str(failure)
        size = store.head().size
        assert len(store.entries(size - 50, size + 50)) == 50
        subprocess.run(["mount", "-o", "remount,size=48m", disk], check=True)
        assert append(store).indices.start == size
        home.close()
        assert_whole(home)
        server.kill()


def test_p12_what_goes_wrong_says_nothing_of_the_connection(own_postgresql: PostgreSql) -> None:
    url = own_postgresql.url(own_postgresql.new_database()).replace("postgres@", "postgres:hunter2hunter2@")
    home = Home("postgresql", url)
    store = home.open()
    own_postgresql.kill()
    failure = failure_of(store.append(write()))
    assert isinstance(failure, Failure)
    with pytest.raises(Failure) as refused:
        home.open()
    for told in (failure, refused.value):
        assert "hunter2" not in f"{told} {told.metadata} {told!r}"
    own_postgresql.start()
    home.close()


def test_p11_a_served_broker_outlives_its_postgresql_and_its_verifiers_refuse_meanwhile(
    own_postgresql: PostgreSql, tmp_path: Path
) -> None:
    url = own_postgresql.url(own_postgresql.new_database())
    with Served(tmp_path, store=f'url = "{url}"\nsole_broker = true') as broker:
        token = broker.mint().token
        verifier = broker.verifier()
        for take_away, give_back in (
            (own_postgresql.kill, own_postgresql.start),
            (own_postgresql.freeze, own_postgresql.thaw),
        ):
            take_away()
            try:
                # P7: without the store there is no fresh feed, and a revocation may have been missed.
                eventually(lambda: _refused(verifier, token), "the freshness lease has run out", within_s=10)
                with pytest.raises(grpc.RpcError) as refused:
                    broker.tokens().Mint(
                        tokens_pb2.MintRequest(request_id=request_id(), spec=broker.spec()), timeout=AT_MOST_S
                    )
                assert failure_of_call(refused.value).reason == "STORE_UNAVAILABLE"
            finally:
                give_back()
            eventually(lambda: _accepted(verifier, token), "the verifier is fresh again")
            eventually(lambda: _mints(broker), "it mints again")
        assert broker.process is not None
        assert broker.process.poll() is None
        [*_, last] = broker.revoke(partner="acme", wait=True)
        assert last.complete.verifiers
        with pytest.raises(Revoked):
            verifier.verify(token, "mythos")
        verifier.close()


def _refused(verifier: Verifier, token: str) -> bool:
    return not _accepted(verifier, token)


def _accepted(verifier: Verifier, token: str) -> bool:
    try:
        verifier.verify(token, "mythos")
    except Stale:
        return False
    return True


def _mints(broker: Served) -> bool:
    try:
        return bool(broker.mint().token)
    except grpc.RpcError:
        return False
