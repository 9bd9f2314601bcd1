"""What a broker knows of the others on its store: who listens to them, and which drills they are about."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from broker.edge.grpc.drilling import Drilling
from broker.edge.grpc.other_brokers import OLDEST, Alone, OnOneStore
from broker.errors import StoreUnavailable
from broker.service.drill import Outcome
from broker.service.proof_ports import DrillCall, Sighting
from tests.edge.test_drilling import GATEWAY, Room
from tests.moved_clock import MovedClock
from tests.served import ADMIN, POLICY
from tests.unit.service.world import make_world

NOW = datetime.now(UTC).replace(microsecond=0)


@pytest.fixture
def world(tmp_path):
    world = make_world(tmp_path)
    world.apply(POLICY)
    yield world
    world.ledger.close()


class Standing(MovedClock):
    """It stands still, at a whole millisecond as the store has it."""

    def now(self):
        return NOW


def others_of(world):
    return OnOneStore(world.ledger.drill_calls, world.ledger.roster, world.policies, Standing(), name="this")


def test_who_was_seen_within_a_lease_and_some_seconds_listens_still(world):
    seen = Sighting(GATEWAY, "evaluation", "1", "", 1, NOW - timedelta(seconds=8), is_present=True)
    world.ledger.roster.note(
        [
            seen,
            replace(seen, verifier=f"{GATEWAY}-of-a-dead-broker", seen_at=NOW - timedelta(seconds=8, milliseconds=1)),
            replace(seen, verifier=f"{GATEWAY}-that-left", is_present=False),
            replace(seen, verifier=f"{GATEWAY}-of-another-realm", realm="research"),
        ]
    )
    assert asyncio.run(others_of(world).listening("evaluation")) == {GATEWAY}


@pytest.mark.parametrize("sign", [1, -1])
def test_a_call_that_a_broker_left_behind_is_none(world, sign):
    call = DrillCall("canary-1", "evaluation", "a token", 17_000, NOW - sign * OLDEST)
    old = replace(call, canary="canary-2", called_at=call.called_at - sign * timedelta(milliseconds=1))
    others = others_of(world)
    for one in (call, old):
        world.ledger.drill_calls.call(one)
    assert asyncio.run(others.called()) == [call]


def test_a_broker_does_not_answer_its_own_call(world):
    async def whole():
        call = DrillCall("canary-1", "evaluation", "a token", 17_000, NOW)
        here, there = others_of(world), others_of(world)
        await here.call(call)
        assert await here.called() == []
        assert await there.called() == [call]
        await here.end(call.canary)
        assert await there.called() == []

    asyncio.run(whole())


def test_whoever_is_alone_asks_and_is_asked_nothing():
    async def whole():
        alone = Alone()
        call = DrillCall("canary-1", "evaluation", "a token", 17_000, None)
        assert await alone.call(call) is None
        assert await alone.listening("evaluation") == frozenset()
        assert await alone.called() == ()
        assert await alone.tell("canary-1", b"[]") is None
        assert await alone.told("canary-1") == {}
        assert await alone.end("canary-1") is None

    asyncio.run(whole())


def test_p11_a_drill_for_which_the_others_cannot_be_called_is_an_alarm(tmp_path):
    class Away(OnOneStore):
        async def call(self, call):
            raise StoreUnavailable("the store is away")

    async def whole():
        room = Room(tmp_path)
        room.signer.start()
        world = room.world
        others = Away(world.ledger.drill_calls, world.ledger.roster, world.policies, world.clock, name="this")
        drilling = Drilling(
            room.hub,
            room.drilling._canaries,
            room.drilling.book,
            world.policies,
            world.clock,
            room.drilling._meter,
            others,
        )
        room.join()
        try:
            with pytest.raises(StoreUnavailable):
                [event async for event in drilling.drill("evaluation", ADMIN, None)]
            assert "could not be made: the store is away" in drilling.problems[0]
        finally:
            room.close()

    asyncio.run(asyncio.wait_for(whole(), 60))


def test_who_has_left_another_broker_meanwhile_is_not_called_silent(tmp_path):
    class Leaving(Alone):
        names = iter([{GATEWAY, "spiffe://lab.example/third"}, {GATEWAY}])

        async def listening(self, realm):
            return frozenset(next(self.names))

    async def whole():
        room = Room(tmp_path)
        room.signer.start()
        world, made = room.world, room.drilling
        drilling = Drilling(room.hub, made._canaries, made.book, world.policies, world.clock, made._meter, Leaving())
        try:
            *_, result = [event async for event in drilling.drill("evaluation", ADMIN, None)]
            assert [(one.verifier, one.outcome) for one in result.verifiers] == [(GATEWAY, Outcome.SILENT)]
        finally:
            room.close()

    asyncio.run(asyncio.wait_for(whole(), 60))
