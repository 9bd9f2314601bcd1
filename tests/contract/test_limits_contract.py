"""The Ledger port's promises about limits and lapsed runs, on SQLite and on PostgreSQL, with one broker and two."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from broker.adapters.sql import SqlLedger
from broker.errors import LimitReached, RunEnded
from broker.service.lapses import Lapses
from broker.service.limit_ports import Count, Counted, Limit, Scope, TokensCounted, WithinLimits
from broker.service.ports import RunHasLapsed, RunKept, RunLapsed, RunOpened, RunRecord, Write
from broker.service.revoke import Revocations
from broker.token.revocation import Selector
from tests.stores import BY, Home, append, assert_whole, draft, failure_of, key, revocation, write

pytest_plugins = ["tests.fixtures_stores"]

NOW = datetime.now(UTC).replace(microsecond=0)
GRANT = Scope(grant="acme-evals")
ALICE = Scope(grant="acme-evals", subject="acme/user/alice")
PARTNER = Scope(partner="acme")
RUN = RunRecord(
    "run-0001",
    "evaluation",
    "acme",
    ("mythos",),
    BY,
    NOW,
    60,
    NOW + timedelta(seconds=60),
    False,
    user="alice",
    environment="acme-ci",
    grants=(("mythos", "acme-evals"),),
    key={"kty": "EC", "crv": "P-256", "x": "x", "y": "y"},
    approval="approval-0001",
)
RACING = 64


def metered(
    *limits: Limit, tokens: int = 1, at: datetime = NOW, life_s: int = 600, run: str | None = None, **options: object
) -> Write:
    """A write of so many tokens that each of the limits' scopes counts."""
    ends_at = at + timedelta(seconds=life_s)
    scopes = dict.fromkeys(limit.scope for limit in limits if limit.counted is not Counted.TOKENS_PER_RUN)
    runs = tuple((limit.run or "", tokens) for limit in limits if limit.counted is Counted.TOKENS_PER_RUN)
    counted = TokensCounted(tuple(Count(scope, tokens, ends_at, run) for scope in scopes), at, runs)
    return Write([draft()] * tokens, guards=(WithinLimits(limits, at),), effects=(counted,), **options)  # type: ignore[arg-type]


def rate(most: int, scope: Scope = GRANT, *, wanted: int = 1) -> Limit:
    return Limit(Counted.MINTS_PER_MINUTE, most, wanted, scope)


def live(most: int, scope: Scope = GRANT, *, wanted: int = 1) -> Limit:
    return Limit(Counted.LIVE_TOKENS, most, wanted, scope)


def refused(store: SqlLedger, refused_write: Write) -> LimitReached:
    failure = failure_of(store.append(refused_write))
    assert isinstance(failure, LimitReached), failure
    return failure


def test_what_a_run_was_opened_with_is_kept(store: SqlLedger) -> None:
    append(store, 1, RunOpened(RUN))
    append(
        store, 1, RunOpened(replace(RUN, id="run-0002", user=None, workload="ci", key=None, grants=(), approval=None))
    )
    assert store.run("run-0001") == RUN
    assert store.run("run-0002") == replace(
        RUN, id="run-0002", user=None, workload="ci", key=None, grants=(), approval=None
    )


def test_a_rate_is_refused_with_its_name_and_the_time_when_there_is_room(home: Home, store: SqlLedger) -> None:
    for second in range(3):
        store.append(metered(rate(3), at=NOW + timedelta(seconds=second))).result(20)
    failure = refused(store, metered(rate(3), at=NOW + timedelta(seconds=10)))
    assert (failure.metadata["limit"], failure.metadata["scope"]) == ("mints_per_minute", "grant acme-evals")
    assert (failure.metadata["most"], failure.metadata["wanted"]) == ("3", "1")
    assert failure.retry_after_s == 50
    assert refused(store, metered(rate(3, wanted=2), tokens=2, at=NOW + timedelta(seconds=10))).retry_after_s == 51
    # What can never fit is not to be waited for.
    assert refused(store, metered(rate(3, wanted=4), tokens=4, at=NOW + timedelta(minutes=5))).retry_after_s is None
    store.append(metered(rate(3), at=NOW + timedelta(seconds=60))).result(20)
    assert_whole(home)


def test_live_tokens_are_room_again_when_they_end_or_their_run_does(store: SqlLedger) -> None:
    append(store, 1, RunOpened(RUN))
    store.append(metered(live(5, wanted=2), tokens=2, life_s=100)).result(20)
    store.append(metered(live(5, wanted=3), tokens=3, life_s=1000, run="run-0001")).result(20)
    failure = refused(store, metered(live(5), at=NOW + timedelta(seconds=40)))
    assert (failure.metadata["limit"], failure.retry_after_s) == ("live_tokens", 60)
    store.append(metered(live(5, wanted=2), tokens=2, at=NOW + timedelta(seconds=100), life_s=1000)).result(20)
    refused(store, metered(live(5), at=NOW + timedelta(seconds=101)))
    append(store, 1, replace(revocation(run="run-0001"), at=NOW + timedelta(seconds=102)))
    store.append(metered(live(5, wanted=3), tokens=3, at=NOW + timedelta(seconds=103))).result(20)
    refused(store, metered(live(5), at=NOW + timedelta(seconds=103)))


def test_each_scope_is_counted_by_itself(store: SqlLedger) -> None:
    limits = (live(4, PARTNER), live(3), live(2, ALICE))
    for _ in range(2):
        store.append(metered(*limits)).result(20)
    assert refused(store, metered(*limits)).metadata["scope"] == "grant acme-evals for acme/user/alice"
    bob = replace(ALICE, subject="acme/user/bob")
    store.append(metered(live(4, PARTNER), live(3), live(2, bob))).result(20)
    assert refused(store, metered(live(4, PARTNER), live(3), live(2, bob))).metadata["scope"] == "grant acme-evals"
    store.append(metered(live(4, PARTNER))).result(20)
    assert refused(store, metered(live(4, PARTNER))).metadata["scope"] == "partner acme"


def test_a_refused_write_counts_nothing_and_a_repeated_one_once(store: SqlLedger) -> None:
    request = key("the same")
    for _ in range(3):
        store.append(metered(live(2), request=request)).result(20)
    refused(store, metered(live(2, wanted=2), tokens=2))
    store.append(metered(live(2))).result(20)
    refused(store, metered(live(2)))
    assert store.append(metered(live(2), request=request)).result(20).is_repeat


def test_tokens_per_run_are_counted_for_the_whole_run(store: SqlLedger) -> None:
    append(store, 1, RunOpened(RUN))
    append(store, 1, RunOpened(replace(RUN, id="run-0002")))

    def of_run(run: str, wanted: int, at: datetime = NOW) -> Write:
        return metered(Limit(Counted.TOKENS_PER_RUN, 5, wanted, GRANT, run), tokens=wanted, at=at, life_s=1)

    store.append(of_run("run-0001", 3)).result(20)
    store.append(of_run("run-0001", 2, NOW + timedelta(days=6))).result(20)
    failure = refused(store, of_run("run-0001", 1, NOW + timedelta(days=7)))
    assert (failure.metadata["limit"], failure.retry_after_s) == ("tokens_per_run", None)
    store.append(of_run("run-0002", 5)).result(20)


def test_live_runs_are_those_neither_closed_nor_lapsed(store: SqlLedger) -> None:
    def opened(number: int, scope: Scope, most: int, at: datetime = NOW, user: str = "alice") -> Write:
        run = replace(RUN, id=f"run-000{number}", user=user, lease_ends_at=at + timedelta(seconds=60))
        run = replace(run, grants=(("mythos", scope.grant or "acme-evals"),))
        guard = WithinLimits((Limit(Counted.LIVE_RUNS, most, 1, scope),), at)
        return Write([draft()], guards=(guard,), effects=(RunOpened(run),))

    for number in (1, 2):
        store.append(opened(number, GRANT, 2)).result(20)
    assert refused(store, opened(3, GRANT, 2)).metadata["limit"] == "live_runs"
    refused(store, opened(3, PARTNER, 2))
    refused(store, opened(3, ALICE, 2))
    store.append(opened(3, replace(ALICE, subject="acme/user/bob"), 2, user="bob")).result(20)
    store.append(opened(4, Scope(grant="another"), 1)).result(20)
    append(store, 1, revocation(run="run-0001"))
    store.append(opened(5, ALICE, 2)).result(20)
    refused(store, opened(6, ALICE, 2))
    store.append(opened(6, ALICE, 2, NOW + timedelta(seconds=61))).result(20)


def test_a_run_lapses_once_and_not_if_it_was_kept_or_closed(store: SqlLedger) -> None:
    append(store, 1, RunOpened(RUN))
    append(store, 1, RunOpened(replace(RUN, id="run-0002")))
    ended = NOW + timedelta(seconds=60)

    def lapse(run: str, at: datetime) -> Write:
        return Write(
            [draft()], guards=(RunHasLapsed(run, at),), effects=(revocation(run=run), RunLapsed(run)), urgent=True
        )

    assert store.lapsed(ended - timedelta(seconds=1), 10) == []
    assert {run.id for run in store.lapsed(ended, 10)} == {"run-0001", "run-0002"}
    assert len(store.lapsed(ended, 1)) == 1
    assert isinstance(failure_of(store.append(lapse("run-0001", NOW))), RunEnded)
    assert isinstance(failure_of(store.append(lapse("run-none", ended))), RunEnded)
    append(store, 1, RunKept("run-0002", ended + timedelta(seconds=60)))
    assert isinstance(failure_of(store.append(lapse("run-0002", ended))), RunEnded)
    store.append(lapse("run-0001", ended)).result(20)
    assert isinstance(failure_of(store.append(lapse("run-0001", ended))), RunEnded)
    run = store.run("run-0001")
    assert run is not None
    assert (run.is_closed, run.is_lapsed) == (True, True)
    assert store.lapsed(ended, 10) == []
    assert [record.selector for record in store.revocations(-1, 10)] == [Selector.of(run="run-0001")]
    append(store, 1, revocation(run="run-0002"))
    assert isinstance(failure_of(store.append(lapse("run-0002", ended + timedelta(days=1)))), RunEnded)


def test_p4_a_run_that_several_brokers_end_at_once_is_ended_once(home: Home) -> None:
    stores = [home.open() for _ in range(3)]
    ended = NOW + timedelta(seconds=60)
    for number in range(10):
        append(stores[0], 1, RunOpened(replace(RUN, id=f"run-{number:08}")))
    clock, revocations = home.clock, Revocations(home.clock, timedelta(hours=1))
    clock.advance((ended - clock.now()).total_seconds() + 1)
    with ThreadPoolExecutor(3) as pool:
        assert sum(pool.map(lambda store: Lapses(store, revocations, clock).end(), stores)) == 10
    found = [record.selector for record in stores[0].revocations(-1, 100)]
    assert sorted(map(str, found)) == [str(Selector.of(run=f"run-{number:08}")) for number in range(10)]
    assert_whole(home)


def test_counts_are_pruned_when_they_can_matter_no_more(home: Home, store: SqlLedger) -> None:
    store.append(metered(live(5), life_s=1)).result(20)
    store.append(metered(live(5), life_s=1000)).result(20)
    assert store.prune(NOW + timedelta(seconds=59)) == 0
    assert store.prune(NOW + timedelta(seconds=60)) == 1
    assert refused(store, metered(live(1), at=NOW + timedelta(seconds=61))).metadata["limit"] == "live_tokens"
    assert store.prune(NOW + timedelta(seconds=1001)) == 1


@pytest.mark.parametrize("kind", [rate, live])
def test_64_racing_at_two_brokers_are_never_one_above_the_limit(home: Home, kind: object) -> None:
    stores = [home.open(), home.open()]
    ready = threading.Barrier(RACING)

    def race(number: int) -> bool:
        ready.wait(20)
        racing = metered(kind(10), kind(12, PARTNER), request=key())  # type: ignore[operator]
        failure = failure_of(stores[number % 2].append(racing))
        assert failure is None or isinstance(failure, LimitReached), failure
        return failure is None

    with ThreadPoolExecutor(RACING) as pool:
        won = list(pool.map(race, range(RACING)))
    assert sum(won) == 10
    assert_whole(home)


def test_64_racing_openings_at_two_brokers_are_never_one_above_the_limit(home: Home) -> None:
    stores = [home.open(), home.open()]

    def open_one(number: int) -> bool:
        run = replace(RUN, id=f"run-{number:08}")
        guard = WithinLimits((Limit(Counted.LIVE_RUNS, 5, 1, ALICE),), NOW)
        return (
            failure_of(stores[number % 2].append(Write([draft()], guards=(guard,), effects=(RunOpened(run),)))) is None
        )

    with ThreadPoolExecutor(RACING) as pool:
        assert sum(pool.map(open_one, range(RACING))) == 5
    assert len(stores[0].lapsed(NOW + timedelta(days=1), 100)) == 5


def test_who_has_no_limits_pays_nothing_for_those_who_have(home: Home, store: SqlLedger) -> None:
    append(store, 10)
    store.append(write(5)).result(20)
    assert home.sql("SELECT count(*) FROM counts") == [(0,)]
