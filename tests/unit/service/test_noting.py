"""The task that notes who listens: news at once, all others by and by, and no turn of the loop for ten thousand."""

import asyncio
from contextlib import suppress
from types import SimpleNamespace

from broker.edge.grpc import noting as noting_module
from broker.edge.grpc.noting import AT_ONCE, Noting
from broker.service.listening import Listener

MANY = 10 * AT_ONCE


class Keeper:
    """Everybody is always due, and the store takes what it is given while it is well."""

    def __init__(self, refresh_s=0.0):
        self.refresh_s = refresh_s
        self.turn = asyncio.Lock()
        self.is_well = True
        self.asked = []
        self.noted = []

    def names(self):
        return [(f"gate-{number}", "evaluation") for number in range(MANY)]

    def due(self, names):
        self.asked.append(len(names))
        return names

    def write(self, due):
        return self.is_well

    def wrote(self, due):
        self.noted += due

    def last_words(self):
        return ()


def run(keeper, test, monkeypatch, pause_s=0.001):
    monkeypatch.setattr(noting_module, "COALESCE_S", pause_s)

    async def main():
        hub = SimpleNamespace()
        noting = Noting(keeper, hub)
        task = asyncio.create_task(noting.run())
        try:
            await test(hub.on_coming_or_going)
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            await noting.close()

    asyncio.run(main())


async def until(condition):
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - of what another task does
            await asyncio.sleep(0.005)


def listener(name):
    return Listener(1, name, "evaluation", "1", "ipv4:1", 3000, 0)


def test_all_are_looked_at_in_a_round_and_few_in_one_turn(monkeypatch):
    keeper = Keeper()

    async def test(_came):
        await until(lambda: len(set(keeper.noted)) == MANY)

    run(keeper, test, monkeypatch)
    assert set(keeper.noted) == set(keeper.names())
    assert max(keeper.asked) <= AT_ONCE


def test_who_comes_is_noted_before_those_who_only_go_on(monkeypatch):
    keeper = Keeper(refresh_s=3600.0)

    async def test(came):
        await until(lambda: keeper.noted)
        for number in range(20):
            came(listener(f"new-{number}"))
            await until(lambda: (f"new-{number}", "evaluation") in keeper.noted)  # noqa: B023 - awaited in its turn

    run(keeper, test, monkeypatch)
    # The round over all takes half an hour at this pace, however often somebody comes.
    assert len(keeper.noted) == AT_ONCE + 20


def test_p11_who_came_while_the_store_was_away_is_noted_later(monkeypatch):
    keeper = Keeper()
    keeper.is_well = False

    async def test(came):
        came(listener("newcomer"))
        await until(lambda: len(keeper.asked) > 3)
        assert not keeper.noted
        keeper.is_well = True
        await until(lambda: ("newcomer", "evaluation") in keeper.noted)

    run(keeper, test, monkeypatch)


def test_when_more_come_than_are_written_at_once_none_is_lost_and_they_go_first(monkeypatch):
    monkeypatch.setattr(noting_module, "MAX_SIGHTINGS", 7)
    keeper = Keeper()
    newcomers = [(f"new-{number}", "evaluation") for number in range(100)]

    async def test(came):
        for name, _ in newcomers:
            came(listener(name))
        await until(lambda: len(keeper.noted) >= 110)

    run(keeper, test, monkeypatch)
    assert max(keeper.asked) <= 7
    assert keeper.noted[:7] == newcomers[:7]
    assert set(newcomers) <= set(keeper.noted[:110])
