"""What a broker tells the others of uses that were cut: the whole each time, until the store takes it, and not without end."""

import asyncio

import pytest

from broker.edge.grpc.cuts import CutsTold
from broker.errors import StoreUnavailable
from broker.service.listening import MAX_EARLY_CUTS, Listeners
from broker.service.proof_ports import Cut
from tests.edge.test_drilling import until
from tests.moved_clock import MovedClock
from tests.stores import Home

GATEWAY = "spiffe://lab.example/gateway"
pytest_plugins = ["tests.fixtures_stores"]


class Failing:
    """A store that is away the first times that something is noted, and then is there."""

    def __init__(self, cuts, failures):
        self._cuts = cuts
        self._left = failures
        self.noted = 0

    def note(self, broker, cuts, *, keep_until):
        self.noted += 1
        if self._left:
            self._left -= 1
            raise StoreUnavailable("away")
        self._cuts.note(broker, cuts, keep_until=keep_until)

    def elsewhere(self, broker, first, last):
        return self._cuts.elsewhere(broker, first, last)


@pytest.fixture
def listeners():
    return Listeners(started_ns=None, is_sole=False)


def joined(listeners, verifier=GATEWAY):
    return listeners.join(verifier=verifier, realm="evaluation", version="1", address="", lease_ms=3000, now_ns=0)


def test_what_the_store_did_not_take_is_told_again_with_what_came_since(sqlite_home: Home, listeners):
    async def whole():
        failing = Failing(sqlite_home.open().cuts, 1)
        told = CutsTold(failing, listeners, MovedClock(), name="there")
        gateway = joined(listeners)
        telling = asyncio.create_task(told.run())
        told.cut(gateway, 7, 2)
        await until(lambda: failing.noted == 1)
        told.cut(gateway, 9, 4)
        cuts = sqlite_home.open().cuts
        expected = {Cut(7, GATEWAY, "evaluation", 2), Cut(9, GATEWAY, "evaluation", 4)}
        await until(lambda: set(cuts.elsewhere("here", 0, 10)) == expected)
        # A later word is the whole again, and its own cuts are no news to the broker that told of them.
        told.cut(gateway, 7, 1)
        await until(lambda: Cut(7, GATEWAY, "evaluation", 3) in cuts.elsewhere("here", 0, 10))
        assert await told.elsewhere(0, 10) == {}
        here = CutsTold(cuts, listeners, MovedClock(), name="here")
        assert await here.elsewhere(7, 9) == {(GATEWAY, "evaluation"): 7}
        telling.cancel()

    asyncio.run(whole())


def test_the_completions_of_this_broker_count_them_as_before(sqlite_home: Home, listeners):
    async def whole():
        told = CutsTold(sqlite_home.open().cuts, listeners, MovedClock(), name="there")
        told.cut(joined(listeners), 7, 2)
        watch = listeners.watch(7, realms=frozenset({"evaluation"}), committed_ns=1, lease_ms=3000, now_ns=1)
        assert watch.cuts == {(GATEWAY, "evaluation"): 2}

    asyncio.run(whole())


def test_b_no_more_is_kept_than_completions_can_need(sqlite_home: Home, listeners):
    async def whole():
        told = CutsTold(sqlite_home.open().cuts, listeners, MovedClock(), name="there")
        gateway = joined(listeners)
        for index in range(MAX_EARLY_CUTS + 10):
            told.cut(gateway, index, 1)
        assert len(told._uses) == len(told._due) == MAX_EARLY_CUTS
        assert min(told._uses)[0] == 10

    asyncio.run(whole())
