"""P2, P5, P11: a standby of PostgreSQL takes over, and the old primary, alive or back, is believed by nobody."""

import itertools
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from broker.errors import Stale, StoreUnavailable
from tests.postgresql import PostgreSql
from tests.served import Served
from tests.stores import Home, append, assert_whole, failure_of, key, revocation, write
from tests.waiting import eventually


@pytest.fixture
def pair() -> Iterator[tuple[PostgreSql, PostgreSql]]:
    """A primary, and a standby that has on its disk whatever the primary acknowledges."""
    primary = PostgreSql().start()
    standby = PostgreSql(follows=primary)
    try:
        standby.start()
        primary.wait_for_standbys()
        yield primary, standby
    finally:
        standby.remove()
        primary.remove()


def either(*servers: PostgreSql, database: str) -> str:
    """Return the URL of whichever of the servers takes writes, as the manual of libpq says."""
    hosts = "&".join(f"host=127.0.0.1:{server.port}" for server in servers)
    return f"postgresql://postgres@/{database}?{hosts}&target_session_attrs=read-write"


def test_p1_p2_p11_a_promoted_standby_has_all_that_was_acknowledged_and_the_broker_goes_on_by_itself(
    pair: tuple[PostgreSql, PostgreSql],
) -> None:
    primary, standby = pair
    home = Home("postgresql", either(primary, standby, database=primary.new_database()))
    store, stop = home.open(), threading.Event()
    acknowledged: dict[str, range] = {}

    def ask(worker: int) -> None:
        for count in itertools.count():
            request = key(request_id=f"{worker}-{count}")
            effects = [revocation(user=f"u{count}")] if worker == 0 else []
            while isinstance(failure_of(future := store.append(write(1, *effects, request=request))), StoreUnavailable):
                if stop.is_set():
                    return
            acknowledged[request.request_id] = future.result().indices
            if stop.is_set():
                return

    with ThreadPoolExecutor(4) as pool:
        workers = [pool.submit(ask, number) for number in range(4)]
        try:
            eventually(lambda: len(acknowledged) > 50, "it works", within_s=30)
            primary.kill()
            before = len(acknowledged)
            standby.promote()
            took_s = eventually(lambda: len(acknowledged) > before + 20, "it goes on by itself", within_s=60)
        finally:
            stop.set()
        for worker in workers:
            worker.result(30)
    print(f"went on after {took_s:.1f} s")
    kept = {
        request: range(first, first + 1) for request, first in home.sql("SELECT request_id, first_idx FROM requests")
    }
    assert kept.items() >= acknowledged.items()
    assert len(store.revocations(-1, 100_000)) >= sum(request.startswith("0-") for request in acknowledged)
    home.close()
    assert_whole(home)


def test_p11_what_a_primary_committed_without_its_standby_is_not_acknowledged(
    pair: tuple[PostgreSql, PostgreSql],
) -> None:
    """Whoever cancels the waiting for the standby makes PostgreSQL answer that it is done, with a warning beside it."""
    primary, standby = pair
    home = Home("postgresql", primary.url(primary.new_database()))
    store = home.open()
    append(store)
    standby.freeze()
    waiting = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND pid <> pg_backend_pid()"
    try:
        future = store.append(write(1, revocation(user="alice"), request=key(request_id="unknown"), urgent=True))
        eventually(lambda: primary.execute(waiting), "it waits for the standby")
        primary.execute(f"SELECT pg_cancel_backend(pid) FROM ({waiting}) AS waits")
        assert isinstance(failure_of(future), StoreUnavailable)
    finally:
        standby.thaw()
    # A repeat is answered when the standby has it, too.
    assert append(store, 1, revocation(user="alice"), request=key(request_id="unknown"), urgent=True).is_repeat
    primary.kill()
    standby.promote()
    there = Home("postgresql", standby.url(home.url.partition("@/")[2].partition("?")[0]))
    assert there.open().append(write(request=key(request_id="unknown"))).result(20).is_repeat
    there.close()
    home.close()


def test_p5_an_old_primary_that_is_cut_off_acknowledges_nothing_and_tells_no_verifier_that_it_is_fresh(
    pair: tuple[PostgreSql, PostgreSql], tmp_path: Path
) -> None:
    """The network parts: one broker reaches the old primary alone, and revoking goes on at the new one."""
    primary, standby = pair
    database = primary.new_database()
    url = primary.url(database)
    with Served(tmp_path, store=f'url = "{url}"') as broker, broker.verifier() as verifier:
        token = broker.mint().token
        broker.until_accepted(verifier, token)
        verifier.wait_fresh(10)
        assert verifier.verify(token, "mythos")
        standby.promote()
        other = Home("postgresql", standby.url(database))
        append(other.open(), 1, revocation(partner="acme"), urgent=True)
        with pytest.raises(Stale):
            eventually(lambda: verifier.verify(token, "mythos") is None, "refused", within_s=30)
        # And it stays so, though the old primary is asked again and again.
        asked = threading.Event()
        for _ in range(20):
            asked.wait(0.1)
            with pytest.raises(Stale):
                verifier.verify(token, "mythos")
        # Whoever asks it waits there for ever: there are few, and none for each time that it was asked.
        [(waiting,)] = primary.execute("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'")
        assert isinstance(waiting, int)
        assert 0 < waiting < 8
        other.close()
        # The end of the broker waits for none of them.
        assert broker.process is not None
        broker.process.terminate()
        assert broker.process.wait(60) == 0
