"""Who waits for which token, and when one is renewed: without threads, time or a broker."""

from concurrent.futures import Future
from itertools import pairwise

import pytest

from broker.sdk.gathering import (
    MOST_AT_ONCE,
    MOST_FLIGHTS,
    RENEW_FROM,
    RENEW_TO,
    SWEEP_ABOVE,
    USABLE,
    Gathering,
    Wallet,
    Want,
)
from tests.realm_keys import RealmKeys

KEYS = RealmKeys()
TOKEN = KEYS.mint(exp=KEYS.now_s + 1000)
ONE = Want("case-1", ("mythos",))


def wants(count, models=("mythos",)):
    return [Want(f"case-{number}", models) for number in range(count)]


def waiting(gathering, wanted):
    futures = {want: Future() for want in wanted}
    begun = [gathering.add(want, future) for want, future in futures.items()]
    return futures, sum(begun)


def test_a_token_is_held_until_a_moment_between_two_parts_of_its_life():
    for fraction, part in ((0.0, RENEW_FROM), (0.5, (RENEW_FROM + RENEW_TO) / 2), (0.999, RENEW_TO)):
        wallet = Wallet(lambda fraction=fraction: fraction)
        wallet.put(ONE, TOKEN, 50)
        assert wallet.get(ONE, 50 + 1000 * part - 2) == TOKEN
        assert wallet.get(ONE, 50 + 1000 * part + 2) is None
        assert wallet.spare(ONE, 50 + 1000 * USABLE - 1) == TOKEN
        assert wallet.spare(ONE, 50 + 1000 * USABLE) is None
    assert wallet.get(Want("case-1", ("oracle",)), 50) is None
    assert wallet.spare(Want(None, ("mythos",)), 50) is None


def test_tokens_that_were_minted_together_are_not_renewed_together():
    wallet = Wallet()
    many = wants(200)
    for want in many:
        wallet.put(want, TOKEN, 0)
    due = [sum(wallet.get(want, at) is None for want in many) for at in range(600, 801, 20)]
    assert due[0] == 0
    assert due[-1] == 200
    assert max(later - before for before, later in pairwise(due)) < 60


def test_what_is_held_is_bounded_by_what_lives():
    wallet = Wallet()
    for want in wants(SWEEP_ABOVE):
        wallet.put(want, TOKEN, 0)
    wallet.put(Want("another", ("mythos",)), TOKEN, 2000)
    assert len(wallet) == 1


def test_the_first_flies_at_once_and_those_who_come_meanwhile_fly_together():
    gathering = Gathering()
    futures, begun = waiting(gathering, [ONE])
    assert begun == 1
    first = gathering.take()
    assert list(first) == [ONE]
    assert gathering.find(ONE) is futures[ONE]
    _, begun = waiting(gathering, [Want(f"more-{number}", ("mythos",)) for number in range(1000)])
    assert begun == MOST_FLIGHTS - 1
    gathering.landed(first, [TOKEN])
    assert futures[ONE].result() == TOKEN
    assert gathering.find(ONE) is None
    assert [len(gathering.take()) for _ in range(3)] == [MOST_AT_ONCE, MOST_AT_ONCE, 0]
    assert gathering.flights == MOST_FLIGHTS - 1


def test_a_batch_is_for_the_same_models_so_that_nobody_is_refused_for_anothers():
    gathering = Gathering()
    waiting(gathering, [*wants(3), *wants(2, ("oracle",)), Want("last", ("mythos",))])
    first = gathering.take()
    assert {want.models for want in first} == {("mythos",)}
    assert len(first) == 4
    assert {want.models for want in gathering.take()} == {("oracle",)}


def test_a_failure_is_for_those_who_were_asked_for():
    gathering = Gathering()
    futures, _ = waiting(gathering, wants(2))
    batch = gathering.take()
    late, _ = waiting(gathering, [ONE])
    gathering.failed(batch, LookupError("no"))
    for future in futures.values():
        with pytest.raises(LookupError):
            future.result(0)
    assert not late[ONE].done()


def test_who_no_longer_waits_is_left_alone():
    gathering = Gathering()
    futures, _ = waiting(gathering, wants(2))
    for future in futures.values():
        assert future.cancel()
    gathering.landed(gathering.take(), [TOKEN, TOKEN])
    futures, _ = waiting(gathering, wants(1))
    next(iter(futures.values())).cancel()
    gathering.failed(gathering.take(), LookupError("no"))


def test_as_many_as_there_is_room_for_are_asked_for_again():
    gathering = Gathering()
    futures, _ = waiting(gathering, wants(10))
    full = LookupError("room for 4")
    assert gathering.trim(gathering.take(), 4, full)
    assert [future.done() for future in futures.values()] == [False] * 4 + [True] * 6
    batch = gathering.take()
    assert len(batch) == 4
    for room in (0, -1, 4, 5):
        assert not gathering.trim(batch, room, full)
    gathering.landed(batch, [TOKEN] * 4)


def test_fewer_are_asked_for_where_so_many_are_refused():
    gathering = Gathering()
    futures, _ = waiting(gathering, wants(10))
    assert gathering.too_many(gathering.take())
    batch = gathering.take()
    assert [want.test for want in batch] == [f"case-{number}" for number in range(5)]
    gathering.landed(batch, [TOKEN] * 5)
    assert len(gathering.take()) == 5
    one, _ = waiting(gathering, [Want("alone", ("mythos",))])
    assert not gathering.too_many(gathering.take())
    assert not next(iter(one.values())).done()
    assert sum(future.done() for future in futures.values()) == 5
