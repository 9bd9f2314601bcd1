"""The Ledger port's promises, on SQLite and on PostgreSQL: appending and reading."""

import secrets
import threading
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from broker.adapters.sql import SqlLedger
from broker.errors import (
    Blocked,
    Defect,
    Failure,
    Invalid,
    NotFound,
    Overloaded,
    PolicyMoved,
    RequestReused,
    Revoked,
    RunEnded,
    StoreUnavailable,
)
from broker.ledger.entry import MAX_ENTRY_BYTES, Kind, decode_entry, leaf_hash
from broker.service.derivation_ports import TokenIsAlive
from broker.service.ports import (
    BlockIsSet,
    BlockLifted,
    CertificateAdded,
    KeyIsTrusted,
    RunIsOpen,
    RunKept,
    RunOpened,
    RunRecord,
    Write,
)
from broker.token.keys import Purpose
from broker.token.revocation import Selector, facts_of
from tests.realm_keys import RealmKeys
from tests.stores import BY, Home, append, assert_whole, draft, everything, failure_of, key, policy, revocation, write

pytest_plugins = ["tests.fixtures_stores"]

NOW = datetime.now(UTC).replace(microsecond=0)
KID = "k" * 43
OPEN_RUN = RunRecord("run-0001", "evaluation", "acme", ("mythos",), BY, NOW, 60, NOW + timedelta(seconds=60), False)
IS_OPEN = RunIsOpen("run-0001", "acme", "evaluation", NOW)


class Gate:
    """A draft that holds the writer inside an append, so that a test knows what waits."""

    def __init__(self, store: SqlLedger) -> None:
        self.entered, self._opened = threading.Event(), threading.Event()
        self.future = store.append(Write([self._draft]))
        assert self.entered.wait(10)

    def _draft(self, index: int) -> bytes:
        self.entered.set()
        assert self._opened.wait(20)
        return draft()(index)

    def open(self) -> None:
        self._opened.set()


def test_a_new_ledger_begins_with_the_entry_that_names_its_incarnation(home: Home, store: SqlLedger) -> None:
    head = store.head()
    assert (head.size, head.policy_version, len(head.incarnation)) == (1, 0, 32)
    first = decode_entry(store.entries(0, 1)[0])
    assert first.kind is Kind.LEDGER_CREATED
    assert first.body == {"incarnation": head.incarnation}
    assert_whole(home)


def test_p2_indices_are_consecutive_under_many_threads(home: Home, store: SqlLedger) -> None:
    with ThreadPoolExecutor(24) as pool:
        done = list(pool.map(lambda number: append(store, 1 + number % 3, request=key()), range(600)))
    taken = sorted(index for appended in done for index in appended.indices)
    assert taken == list(range(1, 1 + sum(1 + number % 3 for number in range(600))))
    assert store.head().size == taken[-1] + 1
    assert_whole(home)


def test_p2_entries_are_kept_as_the_exact_bytes_that_their_index_was_put_into(home: Home, store: SqlLedger) -> None:
    body = {"text": "\u0000 \x7f ' \" \\ ü \U0001f980 %s $1 :x ?", "n": 2**53 - 1, "nested": [{"z": 1, "a": None}]}
    appended = store.append(Write([draft(body), draft(body)])).result(10)
    got = store.entries(1, 3)
    assert [decode_entry(data).body for data in got] == [body, body]
    assert [decode_entry(data).index for data in got] == list(appended.indices) == [1, 2]
    [(raw, hashed)] = home.sql("SELECT entry, leaf_hash FROM ledger WHERE idx = 1")
    assert bytes(raw) == got[0]
    assert bytes(hashed) == leaf_hash(got[0])


def test_entries_returns_as_many_as_exist(store: SqlLedger) -> None:
    append(store, 5)
    assert [decode_entry(data).index for data in store.entries(2, 4)] == [2, 3]
    assert [decode_entry(data).index for data in store.entries(4, 400)] == [4, 5]
    assert store.entries(6, 400) == []
    assert store.entries(3, 3) == []


def test_p3_an_append_that_expects_a_moved_policy_version_is_refused_and_nothing_written(
    home: Home, store: SqlLedger
) -> None:
    assert append(store, 1, policy()).policy_version == 1
    before = everything(store)
    late = write(3, revocation(partner="acme"), expecting=0, request=key(request_id="r"))
    assert isinstance(failure_of(store.append(late)), PolicyMoved)
    assert everything(store) == before
    assert store.revocations(-1, 10) == []
    # The request id is free, as if it had never been used.
    assert append(store, expecting=1, request=key(request_id="r")).is_repeat is False
    assert_whole(home)


def test_p3_the_version_is_compared_within_a_group_too(store: SqlLedger) -> None:
    gate = Gate(store)
    before = store.append(write(expecting=0))
    moving = store.append(write(1, policy()))
    after = [store.append(write(expecting=0)) for _ in range(5)]
    gate.open()
    assert before.result(10).indices.start < moving.result(10).indices.start
    assert all(isinstance(failure_of(late), PolicyMoved) for late in after)


@pytest.mark.parametrize(
    ("effect", "moves"),
    [
        (revocation(partner="acme", blocks=True), True),
        (revocation(key=KID), True),
        (revocation(partner="acme", run="run-0001"), False),
        (revocation(token="t" * 22), False),
        (policy(), True),
    ],
)
def test_p3_policy_blocks_and_revoked_keys_move_the_version_and_single_revocations_do_not(
    store: SqlLedger, effect: object, moves: bool
) -> None:
    assert append(store, 1, effect).policy_version == (1 if moves else 0)
    assert store.head().policy_version == (1 if moves else 0)


def test_a_repeated_request_id_gets_the_first_answer_and_does_nothing_twice(home: Home, store: SqlLedger) -> None:
    request = key("what was asked")
    first = append(store, 3, revocation(user="alice"), request=request)
    again = append(store, 3, revocation(user="alice"), request=request)
    assert (first.is_repeat, again.is_repeat) == (False, True)
    assert again.indices == first.indices
    assert store.head().size == first.indices.stop
    assert len(store.revocations(-1, 10)) == 1
    assert_whole(home)


def test_a_repeat_is_recognised_before_version_and_guards(store: SqlLedger) -> None:
    request = key()
    first = append(store, 1, policy(), request=request, expecting=0)
    again = append(store, 1, policy(), request=request, expecting=0, guards=(IS_OPEN,))
    assert (again.is_repeat, again.indices) == (True, first.indices)


def test_a_repeat_in_the_same_group_is_recognised(store: SqlLedger) -> None:
    gate = Gate(store)
    request = key("one")
    futures = [store.append(write(2, request=request)) for _ in range(4)]
    other = store.append(write(2, request=replace(key("another"), request_id=request.request_id)))
    gate.open()
    first, *repeats = [future.result(10) for future in futures]
    assert first.is_repeat is False
    assert all(repeat.is_repeat and repeat.indices == first.indices for repeat in repeats)
    assert isinstance(failure_of(other), RequestReused)


def test_a_request_id_is_refused_for_something_else_and_belongs_to_its_principal(store: SqlLedger) -> None:
    request = key("this")
    append(store, request=request)
    assert isinstance(failure_of(store.append(write(request=replace(request, digest=b"\x00" * 32)))), RequestReused)
    theirs = append(store, request=replace(request, principal="spiffe://globex.example/ci", digest=b"\x00" * 32))
    assert theirs.is_repeat is False
    assert store.head().size == 3


@pytest.mark.parametrize("text", ["it's", 'a"b', "[1]", "a\\b", "%s", "ü" * 30, "-"])
def test_request_ids_of_any_spelling_are_told_apart(store: SqlLedger, text: str) -> None:
    first = append(store, request=key(request_id=text))
    others = [append(store, request=key(request_id=other)) for other in (f"{text} ", f" {text}", text.upper() + "x")]
    assert not any(other.is_repeat for other in others)
    assert append(store, request=key(request_id=text)).indices == first.indices


def test_p11_many_concurrent_appends_share_transactions(home: Home) -> None:
    groups: list[int] = []
    store = home.open(on_group=lambda count, _seconds: groups.append(count))
    gate = Gate(store)
    futures = [store.append(write(request=key())) for _ in range(500)]
    gate.open()
    indices = [future.result(20).indices.start for future in futures]
    assert indices == list(range(2, 502))
    # The gate's own, then everything that waited.
    assert groups == [1, 500]


def test_urgent_writes_overtake_those_that_wait(store: SqlLedger) -> None:
    gate = Gate(store)
    waiting = [store.append(write()) for _ in range(20)]
    urgent = store.append(write(1, revocation(partner="acme"), urgent=True))
    gate.open()
    assert urgent.result(10).indices.start == 2
    assert min(future.result(10).indices.start for future in waiting) == 3


def test_an_entry_that_is_too_big_is_refused_alone(home: Home, store: SqlLedger) -> None:
    gate = Gate(store)
    fits = store.append(Write([draft({"x": "y" * (MAX_ENTRY_BYTES - 200)})]))
    too_big = store.append(Write([draft(), draft({"x": "y" * MAX_ENTRY_BYTES})], request=key(request_id="big")))
    after = store.append(write())
    gate.open()
    assert isinstance(failure_of(too_big), Invalid)
    assert (fits.result(10).indices.start, after.result(10).indices.start) == (2, 3)
    assert append(store, request=key(request_id="big")).is_repeat is False
    assert_whole(home)


def test_too_many_waiting_writes_are_refused_at_once_and_urgent_ones_are_not(home: Home) -> None:
    store = home.open(max_waiting=10)
    gate = Gate(store)
    fits = [store.append(write()) for _ in range(10)]
    refused = store.append(write())
    assert refused.done()
    assert isinstance(failure_of(refused), Overloaded)
    urgent = store.append(write(urgent=True))
    assert not urgent.done()
    gate.open()
    assert len({future.result(10).indices.start for future in (*fits, urgent)}) == 11
    # What waited is gone; there is room again.
    assert append(store, 10).indices.start == 13


def test_a_write_at_fault_fails_alone_and_the_store_goes_on(home: Home, store: SqlLedger) -> None:
    def broken(_index: int) -> bytes:
        raise KeyError("a defect")

    append(store, 1, RunOpened(OPEN_RUN))
    gate = Gate(store)
    good = [store.append(write(request=key())) for _ in range(3)]
    bad = [
        store.append(Write([broken])),
        # The run is there already; an engine would fail the whole transaction.
        store.append(write(1, RunOpened(OPEN_RUN))),
    ]
    good += [store.append(write(request=key())) for _ in range(3)]
    gate.open()
    assert sorted(future.result(10).indices.start for future in good) == list(range(3, 9))
    assert all(isinstance(failure_of(future), Defect) for future in bad)
    assert append(store).indices.start == 9
    assert_whole(home)


def test_a_write_that_nobody_waits_for_any_more_is_not_done(home: Home, store: SqlLedger) -> None:
    gate = Gate(store)
    given_up = store.append(write(request=key()))
    assert given_up.cancel()
    gate.open()
    assert append(store).indices.start == 2
    with pytest.raises(CancelledError):
        given_up.result(1)
    assert_whole(home)


def test_a_broken_listener_does_not_make_a_committed_write_fail(home: Home) -> None:
    def broken(*_: object) -> None:
        raise KeyError("a defect")

    store = home.open(on_commit=broken, on_group=broken)
    assert append(store, 1, revocation(partner="acme"), request=key(request_id="r")).indices.start == 1
    assert append(store, 1, request=key(request_id="s")).indices.start == 2


def test_a_run_opens_is_kept_and_closed_by_a_revocation_that_names_it(store: SqlLedger) -> None:
    append(store, 1, RunOpened(OPEN_RUN))
    assert store.run("run-0001") == OPEN_RUN
    assert append(store, guards=(IS_OPEN,)).is_repeat is False
    later = NOW + timedelta(seconds=90)
    append(store, 1, RunKept("run-0001", later))
    append(store, 1, RunKept("run-0001", NOW))
    kept = store.run("run-0001")
    assert kept is not None
    assert kept.lease_ends_at == later
    at_the_end = replace(IS_OPEN, at=later)
    assert isinstance(failure_of(store.append(write(guards=(at_the_end,)))), RunEnded)
    append(store, 1, revocation(run="run-0001", user="alice"))
    append(store, 1, revocation(run="run-0001", partner="globex"))
    assert append(store, guards=(IS_OPEN,)).is_repeat is False
    append(store, 1, revocation(run="run-0001", partner="acme"))
    assert isinstance(failure_of(store.append(write(guards=(IS_OPEN,)))), RunEnded)


def test_p3_a_run_that_ends_in_the_same_group_takes_no_more_mints(store: SqlLedger) -> None:
    append(store, 1, RunOpened(OPEN_RUN))
    gate = Gate(store)
    before = store.append(write(guards=(IS_OPEN,)))
    ending = store.append(write(1, revocation(run="run-0001", partner="acme")))
    after = store.append(write(guards=(IS_OPEN,)))
    gate.open()
    assert before.result(10).indices.start < ending.result(10).indices.start
    assert isinstance(failure_of(after), RunEnded)


@pytest.mark.parametrize("change", [{"run": "run-0002"}, {"partner": "globex"}, {"realm": "research"}])
def test_a_run_of_another_is_not_found(store: SqlLedger, change: dict[str, str]) -> None:
    append(store, 1, RunOpened(OPEN_RUN))
    assert isinstance(failure_of(store.append(write(guards=(replace(IS_OPEN, **change),)))), NotFound)


def test_runs_are_listed_newest_first_and_by_partner(store: SqlLedger) -> None:
    for number, partner in enumerate(("acme", "globex", "acme")):
        at = NOW + timedelta(seconds=number)
        append(store, 1, RunOpened(replace(OPEN_RUN, id=f"run-000{number}", partner=partner, opened_at=at)))
    assert [run.id for run in store.runs(None, 10)] == ["run-0002", "run-0001", "run-0000"]
    assert [run.id for run in store.runs("acme", 10)] == ["run-0002", "run-0000"]
    assert [run.id for run in store.runs(None, 1)] == ["run-0002"]
    assert store.run("run-0009") is None


def test_blocks_stand_until_exactly_they_are_lifted(store: SqlLedger) -> None:
    acme = Selector.of(partner="acme")
    index = append(store, 1, revocation(partner="acme", blocks=True)).indices.start
    again = append(store, 1, revocation(partner="acme", blocks=True)).indices.start
    append(store, 1, revocation(partner="acme", model="mythos", blocks=True))
    assert again > index
    assert store.policy().blocks[acme] == again
    append(store, 1, BlockLifted(acme), guards=(BlockIsSet(acme),))
    assert list(store.policy().blocks) == [Selector.of(partner="acme", model="mythos")]
    twice = store.append(write(1, BlockLifted(acme), guards=(BlockIsSet(acme),)))
    assert isinstance(failure_of(twice), NotFound)
    # P4: what was revoked stays revoked.
    assert len(store.revocations(-1, 10)) == 3


def test_a_revoked_key_is_trusted_no_more(store: SqlLedger) -> None:
    append(store, guards=(KeyIsTrusted(KID),))
    append(store, 1, revocation(key=KID, realm="evaluation"))
    assert append(store, guards=(KeyIsTrusted(KID),)).is_repeat is False
    append(store, 1, revocation(key=KID))
    assert isinstance(failure_of(store.append(write(guards=(KeyIsTrusted(KID),)))), Blocked)
    assert store.policy().revoked_keys == {KID}


def test_the_newest_policy_is_in_force_with_its_version(store: SqlLedger) -> None:
    assert (store.policy().version, store.policy().document, store.policy().applied_at) == (0, "", None)
    append(store, 1, policy("one"))
    append(store, 1, revocation(user="alice", blocks=True))
    append(store, 1, policy("two"))
    record = store.policy()
    assert (record.version, record.document, record.by) == (3, "two", BY)
    assert list(record.blocks) == [Selector.of(user="alice")]


def test_changes_are_what_verifiers_must_learn_from_an_index_on(store: SqlLedger) -> None:
    now = datetime.now(UTC)
    certificate = RealmKeys().token.certificate
    first = append(store, 1, revocation(partner="acme")).indices.start
    added = CertificateAdded("evaluation", Purpose.TOKEN, KID, certificate, now + timedelta(minutes=5))
    second = append(store, 1, added).indices.start
    append(store, 7)
    short = append(store, 1, revocation(user="bob", keep=timedelta(seconds=30))).indices.start
    changes = store.changes(0, now=now)
    assert changes.head == store.head()
    assert [record.index for record in changes.revocations] == [first, short]
    assert [(record.index, record.certificate) for record in changes.certificates] == [(second, certificate)]
    later = store.changes(first + 1, now=now + timedelta(minutes=2))
    assert later.revocations == []
    assert [record.index for record in later.certificates] == [second]
    assert [record.index for record in store.revocations(first, 10)] == [short]
    assert [record.index for record in store.revocations(-1, 1)] == [first]


def test_what_can_matter_no_more_is_pruned_and_the_ledger_keeps_everything(home: Home, store: SqlLedger) -> None:
    request = key()
    append(store, 1, revocation(partner="acme", keep=timedelta(minutes=1)), request=request)
    append(store, 1, revocation(partner="globex", keep=timedelta(days=30)))
    before = everything(store)
    assert store.prune(home.clock.now()) == 0
    assert store.prune(home.clock.now() + timedelta(days=7)) == 1
    assert append(store, request=request).is_repeat is True
    assert store.prune(home.clock.now() + timedelta(days=9)) == 1
    assert [record.selector for record in store.revocations(-1, 10)] == [Selector.of(partner="globex")]
    assert everything(store) == before
    assert_whole(home)


def test_a_prune_of_a_storm_goes_in_pieces(store: SqlLedger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.adapters.sql.store.PRUNE_AT_ONCE", 7)
    for user in range(30):
        append(store, 1, revocation(user=f"u{user}", keep=timedelta(0)), request=key())
    assert store.prune(datetime.now(UTC) + timedelta(days=9)) == 60
    assert store.revocations(-1, 100) == []


def test_after_close_appends_are_refused_and_what_waited_is_there(home: Home) -> None:
    store = home.open()
    gate = Gate(store)
    waiting = [store.append(write()) for _ in range(50)]
    closing = threading.Thread(target=store.close)
    closing.start()
    gate.open()
    closing.join(20)
    assert not closing.is_alive()
    assert sorted(future.result(1).indices.start for future in waiting) == list(range(2, 52))
    assert isinstance(failure_of(store.append(write())), StoreUnavailable)
    assert home.open().head().size == 52
    assert_whole(home)


def test_closing_leaves_no_thread_and_may_be_done_twice(home: Home) -> None:
    before = set(threading.enumerate())
    store = home.open()
    store.listen(lambda: None)
    append(store)
    store.close()
    store.close()
    assert {thread for thread in threading.enumerate() if thread.name.startswith("ledger")} <= before


def test_the_store_tells_its_own_time_where_it_has_one(home: Home, store: SqlLedger) -> None:
    at = store.wall_clock()
    if home.kind == "sqlite":
        assert at is None
    else:
        assert at is not None
        assert abs(at - datetime.now(UTC)) < timedelta(seconds=5)


def test_p12_what_goes_wrong_says_nothing_of_the_data(store: SqlLedger) -> None:
    secret = secrets.token_urlsafe(24)
    append(store, 1, RunOpened(OPEN_RUN))
    twice = store.append(write(1, RunOpened(replace(OPEN_RUN, opened_by=secret))))
    failure = failure_of(twice)
    assert isinstance(failure, Failure)
    assert secret not in f"{failure} {failure.metadata}"


def test_revocations_that_name_a_partner_are_found_by_it_and_no_others(home: Home, store: SqlLedger) -> None:
    for selector in (
        {"partner": "acme"},
        {"user": "acme"},
        {"partner": "acme-evil"},
        {"partner": "globex", "user": "acme"},
        {"realm": "acme", "partner": "a_me"},
        {"partner": "acme", "label": "acme=acme"},
        {"realm": "evaluation", "partner": "acme", "run": "run-0001"},
    ):
        append(store, 1, revocation(**selector))
    assert [str(one.selector) for one in store.revocations(0, 10, partner="acme")] == [
        "partner=acme",
        "partner=acme label=acme=acme",
        "realm=evaluation partner=acme run=run-0001",
    ]
    assert [str(one.selector) for one in store.revocations(0, 10, partner="a_me")] == ["realm=acme partner=a_me"]
    assert list(store.revocations(0, 10, partner="acm")) == []
    assert len(store.revocations(0, 1, partner="acme")) == 1
    assert len(store.revocations(1, 10, partner="acme")) == 2


def test_b3_what_is_derived_from_a_token_is_refused_once_the_token_or_an_ancestor_is_revoked(store: SqlLedger) -> None:
    claims = RealmKeys().claims(jti="token-0002", parents=("token-0001",), idx=1, user="alice", sub="acme/user/alice")
    facts = facts_of(claims, KID)
    since = store.head().size
    alive = TokenIsAlive(facts, 1, since)
    append(store, 1, revocation(token="token-0003"), guards=(alive,))
    for selector in ({"token": "token-0002"}, {"token": "token-0001"}, {"partner": "acme"}, {"key": KID}):
        start = store.head().size
        assert append(store, guards=(TokenIsAlive(facts, 1, start),)).is_repeat is False
        append(store, 1, revocation(**selector))
        size = store.head().size
        refused = failure_of(store.append(write(guards=(TokenIsAlive(facts, 1, start),))))
        assert isinstance(refused, Revoked)
        assert refused.index == size - 1
        assert store.head().size == size
        # What was compared before is the caller's; and a token that came later is another matter, but for its key.
        append(store, guards=(TokenIsAlive(facts, 1, size),))
        later = write(guards=(TokenIsAlive(facts, size, start),))
        if "key" in selector:
            assert isinstance(failure_of(store.append(later)), Revoked)
        else:
            store.append(later).result(20)
