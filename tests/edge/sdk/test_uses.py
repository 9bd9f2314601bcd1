"""Uses that last: they end when the token would no longer be accepted."""

import asyncio
import threading
import time

import pytest

from broker.errors import Expired, Revoked, Stale
from tests.feed_server import eventually


def test_a_use_is_cancelled_by_a_matching_revocation_and_by_no_other(server, verifier, keys):
    called = threading.Event()
    with (
        verifier.use(keys.mint(user="al", sub="acme/user/al"), "mythos") as als,
        verifier.use(keys.mint(), "mythos") as bobs,
    ):
        bobs.on_cancel(called.set)
        als.on_cancel(lambda: pytest.fail("al is not concerned"))
        assert not bobs.cancelled.is_set()
        assert bobs.check() == bobs.proof
        index = server.revoke(user="bob")
        assert bobs.cancelled.wait(10)
        assert isinstance(bobs.reason, Revoked)
        with pytest.raises(Revoked):
            bobs.check()
        assert called.wait(10)
        eventually(lambda: server.acked_head > index, "the acknowledgement")
        assert not als.cancelled.is_set()
        assert als.reason is None


def test_p4_an_acknowledged_revocation_has_ended_the_uses(server, verifier, keys):
    with verifier.use(keys.mint(), "mythos") as use:
        index = server.revoke(partner="acme")
        while server.acked_head <= index:
            pass
        assert use.cancelled.is_set()


def test_p5_a_use_ends_when_the_lease_lapses(server, verifier, keys):
    with verifier.use(keys.mint(), "mythos") as use:
        server.heartbeats = False
        began = time.monotonic()
        assert use.cancelled.wait(10)
        assert time.monotonic() - began < 3
        assert isinstance(use.reason, Stale)
        # And it stays ended when the broker is back.
        server.heartbeats = True
        verifier.wait_fresh(10)
        assert use.cancelled.is_set()


def test_a_use_ends_with_its_token(server, verifier, keys):
    now_s = int(time.time())
    first = keys.mint(iat=now_s, nbf=now_s - 5, exp=now_s + 2)
    with verifier.use(keys.mint(), "mythos") as long, verifier.use(first, "mythos") as short:
        assert short.cancelled.wait(10)
        assert isinstance(short.reason, Expired)
        assert not long.cancelled.is_set()


def test_a_use_begins_only_with_an_accepted_token(server, verifier, keys):
    use = verifier.use(keys.mint(), "other")
    with pytest.raises(RuntimeError, match="begins with"):
        _ = use.proof
    with pytest.raises(Exception, match="does not cover"), use:
        pytest.fail("it began")
    assert verifier.state().uses == 0


def test_a_use_that_ended_is_let_go_and_its_callback_is_not_called(server, verifier, keys):
    called = []
    with verifier.use(keys.mint(), "mythos") as use:
        use.on_cancel(lambda: called.append(1))
        assert verifier.state().uses == 1
    assert verifier.state().uses == 0
    index = server.revoke(partner="acme")
    eventually(lambda: server.acked_head > index, "the acknowledgement")
    assert called == []
    assert not use.cancelled.is_set()


def test_a_callback_that_comes_late_is_called_at_once(server, verifier, keys):
    with verifier.use(keys.mint(), "mythos") as use:
        server.revoke(partner="acme")
        assert use.cancelled.wait(10)
        called = []
        use.on_cancel(lambda: called.append(1))
        assert called == [1]


def test_a_callback_that_fails_or_hangs_keeps_nothing_alive(server, verifier, keys):
    never, called = threading.Event(), threading.Event()
    with verifier.use(keys.mint(), "mythos") as one, verifier.use(keys.mint(), "mythos") as two:
        one.on_cancel(lambda: 1 / 0)
        two.on_cancel(called.set)
        server.revoke(partner="acme")
        assert called.wait(10)
    with verifier.use(keys.mint(idx=50), "mythos") as hanging:
        hanging.on_cancel(lambda: never.wait(10))
        index = server.revoke(user="bob", partner="acme", model="mythos")
        # Index 11 kills nothing of index 50; the realm's key does.
        server.revoke(key=keys.token.kid)
        assert hanging.cancelled.wait(10)
        eventually(lambda: server.acked_head > index + 1, "the acknowledgement")
        never.set()


def test_closing_the_verifier_ends_all_uses(server, verifier, keys):
    with verifier.use(keys.mint(), "mythos") as use:
        verifier.close()
        assert use.cancelled.is_set()
        assert isinstance(use.reason, Stale)
    with pytest.raises(Stale), verifier.use(keys.mint(), "mythos"):
        pytest.fail("it began")


def test_asyncio_waits_for_the_end_of_a_use(server, verifier, keys):
    async def main() -> None:
        async with verifier.use(keys.mint(), "mythos") as use:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await use.wait_cancelled()
            waiting = [asyncio.create_task(use.wait_cancelled()) for _ in range(3)]
            await asyncio.to_thread(server.revoke, partner="acme")
            async with asyncio.timeout(10):
                reasons = await asyncio.gather(*waiting)
            assert all(isinstance(reason, Revoked) for reason in reasons)
            assert isinstance(await use.wait_cancelled(), Revoked)
        assert verifier.state().uses == 0

    asyncio.run(main())


def test_p4_no_revocation_slips_between_the_verdict_and_the_hold(server, verifier, keys):
    for number in range(30):
        token = keys.mint(user=f"user-{number}", sub=f"acme/user/user-{number}")
        revoking = threading.Thread(target=server.revoke, kwargs={"user": f"user-{number}"})
        revoking.start()
        try:
            with verifier.use(token, "mythos") as use:
                assert use.cancelled.wait(10)
        except Revoked:
            pass
        revoking.join()
