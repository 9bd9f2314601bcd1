"""Runs of the SDK when a broker is away, refuses, or is asked by who does not wait for the answer."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import grpc
import pytest

from broker.errors import ConfigInvalid, Invalid, LimitReached, NotGranted, RunEnded, StoreUnavailable
from broker.sdk import AsyncClient, Client
from tests.edge.sdk.test_client import ACME, Twin
from tests.feed_server import eventually
from tests.token_server import AWAY, REFUSED, TokenServer

FULL = (grpc.StatusCode.RESOURCE_EXHAUSTED, LimitReached("too many at once", metadata={"limit": "batch"}))
OVER = (grpc.StatusCode.FAILED_PRECONDITION, RunEnded("the lease of the run has run out"))


@pytest.fixture
def broker(keys, server_certificate):
    with TokenServer(keys, server_certificate) as one:
        yield one


@pytest.fixture(params=["sync", "aio"])
def twin(request, broker, identity):
    one = Twin(request.param, broker.endpoint, identity, timeout_s=1)
    yield one
    one.close()


def test_a_token_that_is_due_for_renewal_does_while_no_broker_is_there(twin, broker):
    def work(token, run) -> None:
        first = token(test="case-1")
        held = run._state.wallet._held
        [(want, one)] = held.items()
        held[want] = replace(one, renew_at_s=0.0)
        broker.failures = [AWAY] * 1000
        assert token(test="case-1") == first
        assert len(broker.failures) < 1000
        held[want] = replace(one, renew_at_s=0.0, ends_at_s=0.0)
        with pytest.raises(StoreUnavailable):
            token(test="case-1")
        broker.failures = []
        assert token(test="case-1") != first

    twin.in_run(work, **ACME)


def test_a_batch_that_is_too_large_is_asked_for_in_halves(broker, identity):
    with Client.connect(broker.endpoint, identity=identity) as client, client.run(**ACME) as run:
        ready = threading.Barrier(40)

        def one(number: int) -> str:
            ready.wait(20)
            return run.token(test=f"case-{number}")

        run.token()
        broker.failures = [FULL] * 2

        def patient(number: int) -> str:
            try:
                return one(number)
            except LimitReached:
                # The first call may have been for one token alone, and that was told to who asked for it.
                return run.token(test=f"case-{number}")

        with ThreadPoolExecutor(40) as pool:
            tokens = list(pool.map(patient, range(40)))
        assert len(set(tokens)) == 40


def test_a_refusal_is_told_to_all_who_waited_and_remembered_by_nobody(twin, broker):
    def work(token, run) -> None:
        broker.failures = [REFUSED]
        with pytest.raises(NotGranted):
            token(test="case-1")
        assert token(test="case-1")
        with pytest.raises(Invalid, match="test"):
            token(test="not a name")

    twin.in_run(work, **ACME)


def test_a_run_whose_mint_is_told_that_it_is_over_is_over(twin, broker):
    def work(token, run) -> None:
        token(test="case-1")
        broker.failures = [OVER]
        with pytest.raises(RunEnded):
            token(test="case-2")
        calls = len(broker.calls)
        # Also for what is still held: it is dead.
        with pytest.raises(RunEnded):
            token(test="case-1")
        assert len(broker.calls) == calls

    twin.in_run(work, **ACME)


def test_a_run_whose_key_cannot_be_kept_is_closed_again(twin, broker, tmp_path):
    with pytest.raises(ConfigInvalid, match="key_file"):
        twin.in_run(lambda token, run: None, **ACME, key_file=tmp_path / "no" / "folder")
    assert len(broker.named("OpenRun")) == len(broker.named("CloseRun")) == 1


def test_one_who_is_cancelled_does_not_take_the_token_from_the_others(broker, identity):
    async def main() -> None:
        async with (
            AsyncClient.connect(broker.endpoint, identity=identity) as client,
            client.run(**ACME) as run,
        ):
            impatient = asyncio.create_task(run.token(test="case-1"))
            patient = asyncio.create_task(run.token(test="case-1"))
            await asyncio.sleep(0)
            impatient.cancel()
            assert await patient
            assert impatient.cancelled()
            # All of them, and then a failure that nobody waits for.
            broker.failures = [REFUSED]
            lost = asyncio.create_task(run.token(test="case-2"))
            await asyncio.sleep(0)
            lost.cancel()
            await asyncio.gather(lost, return_exceptions=True)
            # Nobody waits for it, but it goes on; what is asked next must not meet its failure.
            await asyncio.to_thread(eventually, lambda: not broker.failures, "the failure that nobody waits for")
            assert await run.token(test="case-3")

    asyncio.run(main())


def test_a_run_that_is_left_is_not_closed_and_goes_on_by_its_file(twin, broker, tmp_path):
    file = tmp_path / "run.key"
    ids = []

    def leave(token, run) -> None:
        ids.append(run.id)
        run.leave()

    twin.in_run(leave, **ACME, key_file=file)
    assert broker.named("CloseRun") == []
    assert file.exists()
    resumed = twin.client.resume(file)
    twin.in_run_of(resumed, lambda token, run: ids.append(run.id))
    assert ids[0] == ids[1]
    assert broker.named("CloseRun")[0].run == ids[0]
    eventually(lambda: not file.exists(), "the end of the key file")
