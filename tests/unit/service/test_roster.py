"""The roster: who listens is noted, soon and once, whatever the store does; who is gone is listed until forgotten."""

import asyncio
import threading
from datetime import timedelta
from types import SimpleNamespace

import pytest

from broker.edge.grpc.noting import Noting
from broker.errors import Forbidden, Invalid, NotFound, StoreUnavailable
from broker.service.listening import Listeners
from broker.service.roster import RosterKeeper
from broker.service.verifiers import ForgetVerifier, ListVerifiers
from tests.served import PRINCIPALS
from tests.unit.service.world import OPS, request

GATEWAY = PRINCIPALS["gateway"]
FRONTEND = "spiffe://lab.example/frontend"


@pytest.fixture
def listeners():
    return Listeners(started_ns=None, is_sole=True)


@pytest.fixture
def keeper(world, listeners):
    return RosterKeeper(world.ledger.roster, listeners, world.clock)


def join(world, listeners, verifier=GATEWAY, realm="evaluation", **options):
    named = {"version": "1", "address": "ipv4:192.0.2.1:4", "lease_ms": 3000, **options}
    return listeners.join(verifier=verifier, realm=realm, now_ns=world.clock.boottime_ns(), **named)


def note(keeper):
    """One turn of the task; return the names that were noted."""
    due = keeper.due(keeper.names())
    assert keeper.write(due)
    keeper.wrote(due)
    return [one.sighting.verifier for one in due]


def known(world):
    return [(one.verifier, one.head, one.is_present) for one in world.ledger.roster.known(None)]


def lines(world, listeners, keeper, *, is_sole=True, realm=None):
    listing = ListVerifiers(keeper, listeners, world.policies, world.clock, is_sole=is_sole)
    return listing(world.ledger.roster.known(realm), realm)


def forget(world, listeners, keeper, verifier=GATEWAY, *, is_sole=True, caller=OPS, key=None, reason="gone"):
    listing = ListVerifiers(keeper, listeners, world.policies, world.clock, is_sole=is_sole)
    forgetting = ForgetVerifier(world.ledger, keeper, listing, world.clock)
    known_now = world.ledger.roster.known(None)
    write = forgetting.prepare(caller, verifier, "evaluation", known_now, reason=reason, request=key or request())
    index = forgetting.commit(write)
    forgetting.done(verifier, "evaluation")
    return index


def test_who_joins_acknowledges_and_leaves_is_noted_each_time_and_not_again(world, listeners, keeper):
    assert note(keeper) == []
    one = join(world, listeners)
    assert note(keeper) == [GATEWAY]
    assert known(world) == [(GATEWAY, 0, True)]
    assert note(keeper) == []
    listeners.acknowledge(one, 7, world.clock.boottime_ns())
    assert note(keeper) == [GATEWAY]
    listeners.leave(one, world.clock.boottime_ns())
    assert note(keeper) == [GATEWAY]
    assert known(world) == [(GATEWAY, 7, False)]
    world.clock.advance(600)
    assert note(keeper) == []


def test_who_only_goes_on_listening_is_noted_again_after_the_refresh_and_who_leaves_at_once(world, listeners):
    keeper = RosterKeeper(world.ledger.roster, listeners, world.clock, refresh=timedelta(seconds=5))
    one = join(world, listeners)
    assert note(keeper) == [GATEWAY]
    for head in (1, 2, 3):
        world.clock.advance(1)
        listeners.acknowledge(one, head, world.clock.boottime_ns())
        assert note(keeper) == []
    world.clock.advance(2)
    listeners.acknowledge(one, 4, world.clock.boottime_ns())
    assert note(keeper) == [GATEWAY]
    assert known(world) == [(GATEWAY, 4, True)]
    listeners.acknowledge(one, 5, world.clock.boottime_ns())
    listeners.leave(one, world.clock.boottime_ns())
    assert note(keeper) == [GATEWAY]
    assert known(world) == [(GATEWAY, 5, False)]


def test_of_replicas_the_one_furthest_behind_counts_and_one_that_is_left_is_enough(world, listeners, keeper):
    first, second = join(world, listeners), join(world, listeners)
    listeners.acknowledge(first, 9, world.clock.boottime_ns())
    listeners.acknowledge(second, 5, world.clock.boottime_ns())
    note(keeper)
    assert known(world) == [(GATEWAY, 5, True)]
    listeners.leave(second, world.clock.boottime_ns())
    note(keeper)
    assert known(world) == [(GATEWAY, 9, True)]
    listeners.leave(first, world.clock.boottime_ns())
    note(keeper)
    assert known(world) == [(GATEWAY, 9, False)]


def test_p11_what_the_store_did_not_take_is_noted_when_it_is_well_and_told_once(world, listeners, keeper, caplog):
    join(world, listeners)
    sick = _Sick()
    keeper._roster = sick
    for _ in range(3):
        assert not keeper.write(keeper.due(keeper.names()))
    assert len([record for record in caplog.records if "cannot note" in record.message]) == 1
    keeper._roster = world.ledger.roster
    assert note(keeper) == [GATEWAY]


class _Sick:
    def note(self, sightings):
        raise StoreUnavailable(f"cannot take {len(sightings)}")


def test_the_last_words_say_that_nobody_listens(world, listeners, keeper):
    join(world, listeners)
    left = join(world, listeners, FRONTEND)
    note(keeper)
    listeners.leave(left, world.clock.boottime_ns())
    assert keeper.write(keeper.last_words())
    assert known(world) == [(FRONTEND, 0, False), (GATEWAY, 0, False)]


def test_who_has_left_is_listed_also_before_the_store_knows(world, listeners, keeper):
    one = join(world, listeners)
    listeners.leave(one, world.clock.boottime_ns())
    [line] = lines(world, listeners, keeper)
    assert (line.verifier, line.state, line.is_listening) == (GATEWAY, "lapsed", False)


def test_who_listens_to_another_broker_is_fresh_for_a_lease_at_most_and_then_lapsed(world, listeners, keeper):
    elsewhere = Listeners(started_ns=None, is_sole=False)
    theirs = RosterKeeper(world.ledger.roster, elsewhere, world.clock)
    join(world, elsewhere)
    note(theirs)
    [line] = lines(world, listeners, keeper, is_sole=False)
    assert (line.state, line.is_listening) == ("fresh", True)
    assert 0 < line.fresh_for_ns <= 3_000_000_000
    # A broker that is killed says nothing of it.
    world.clock.advance(9)
    [line] = lines(world, listeners, keeper, is_sole=False)
    assert (line.state, line.is_listening, line.fresh_for_ns) == ("lapsed", False, 0)


def test_where_there_is_no_other_broker_nobody_listens_elsewhere(world, listeners, keeper):
    before = Listeners(started_ns=None, is_sole=True)
    join(world, before)
    note(RosterKeeper(world.ledger.roster, before, world.clock))
    assert [line.state for line in lines(world, listeners, keeper)] == ["lapsed"]


def test_p8_a_list_of_one_realm_names_nobody_of_another(world, listeners, keeper):
    join(world, listeners)
    gone = join(world, listeners, FRONTEND, realm="research")
    listeners.leave(gone, world.clock.boottime_ns())
    note(keeper)
    assert [line.verifier for line in lines(world, listeners, keeper, realm="evaluation")] == [GATEWAY]
    assert [line.verifier for line in lines(world, listeners, keeper, realm="research")] == [FRONTEND]


def test_a_forgotten_verifier_is_not_brought_back_by_a_note_that_was_still_due(world, listeners, keeper):
    one = join(world, listeners)
    note(keeper)
    listeners.leave(one, world.clock.boottime_ns())
    forget(world, listeners, keeper)
    assert note(keeper) == []
    assert known(world) == []
    assert lines(world, listeners, keeper) == []


def test_who_listens_to_another_broker_cannot_be_forgotten_here(world, listeners, keeper):
    elsewhere = Listeners(started_ns=None, is_sole=False)
    join(world, elsewhere)
    note(RosterKeeper(world.ledger.roster, elsewhere, world.clock))
    with pytest.raises(Invalid, match="is listening"):
        forget(world, listeners, keeper, is_sole=False)


def test_p7_only_an_admin_forgets_and_nobody_that_never_was(world, listeners, keeper):
    one = join(world, listeners)
    listeners.leave(one, world.clock.boottime_ns())
    note(keeper)
    size = world.size
    with pytest.raises(Forbidden):
        forget(world, listeners, keeper, caller=world.acme)
    with pytest.raises(NotFound):
        forget(world, listeners, keeper, FRONTEND)
    with pytest.raises(Invalid):
        forget(world, listeners, keeper, reason=" ")
    assert world.size == size
    key = request()
    index = forget(world, listeners, keeper, key=key)
    assert (index, world.size) == (size, size + 1)
    # The same request again is answered as the first time.
    assert forget(world, listeners, keeper, key=key) == index
    assert world.size == size + 1


def test_who_is_forgotten_while_its_leaving_is_on_its_way_to_the_store_does_not_come_back(world, listeners, keeper):
    roster = world.ledger.roster
    writing, go_on, written = threading.Event(), threading.Event(), threading.Event()

    def slow(sightings):
        writing.set()
        go_on.wait(10)
        roster.note(sightings)
        written.set()

    async def main():
        hub = SimpleNamespace()
        noting = Noting(keeper, hub)
        one = join(world, listeners)
        note(keeper)
        keeper._roster = SimpleNamespace(note=slow)
        running = asyncio.create_task(noting.run())
        listeners.leave(one, world.clock.boottime_ns())
        hub.on_coming_or_going(one)
        assert await asyncio.to_thread(writing.wait, 10)
        listing = ListVerifiers(keeper, listeners, world.policies, world.clock, is_sole=True)
        forgetting = ForgetVerifier(world.ledger, keeper, listing, world.clock)
        forgotten = asyncio.create_task(
            forgetting(OPS, GATEWAY, "evaluation", roster, reason="gone", request=request())
        )
        # Enough for it to be forgotten, were it not for its turn.
        await asyncio.wait([forgotten], timeout=0.3)
        go_on.set()
        assert await asyncio.to_thread(written.wait, 10)
        await forgotten
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await noting.close()

    asyncio.run(main())
    assert known(world) == []
    assert note(keeper) == []
