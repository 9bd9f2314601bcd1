"""A thousand tests in parallel, by threads and by asyncio, against a real broker: each its token, in few calls."""

import asyncio
import json
import sqlite3
import stat
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from broker.errors import ConfigInvalid, LimitReached, NotGranted, RunEnded, RunProofRefused
from broker.ledger.entry import decode_entry
from broker.sdk import AsyncClient, Client, Revoked, Spec
from broker.sdk.run_key import RunKey, read_kept_run
from broker.token.claims import TOKEN_TYP, decode_claims
from broker.token.jws import parse_jws
from tests.served import POLICY, Served, wait_until
from tests.waiting import eventually

TESTS = 1000
RUN = {"realm": "evaluation", "partner": "acme", "models": ["mythos"], "user": "alice"}
LIMITED = POLICY.replace(
    "users: [bob], ttl: {default: 10m, max: 30m}}",
    "users: [bob], ttl: {default: 10m, max: 30m}, limits: {batch: 40, live_tokens: 300, tokens_per_run: 250}}",
)


@pytest.fixture(scope="module")
def broker(tmp_path_factory):
    assert LIMITED != POLICY
    with Served(tmp_path_factory.mktemp("herd"), policy=LIMITED) as broker:
        yield broker


def claims_of(token):
    return decode_claims(parse_jws(token, typ=TOKEN_TYP).payload)


def calls(broker, method):
    """How often the broker was called, as its own log says."""
    lines = (json.loads(line) for line in broker.log.read_text().splitlines() if line.startswith("{"))
    return sum(line.get("method", "") == f"TokenService/{method}" for line in lines)


def mint_calls(broker):
    return calls(broker, "Mint") + calls(broker, "MintBatch")


def test_a_thousand_threads_get_a_thousand_tokens_in_few_calls(broker):
    before = mint_calls(broker)
    with Client.connect(broker.endpoint, identity=broker.identity("acme")) as client, client.run(**RUN) as run:
        ready = threading.Barrier(TESTS)

        def one(number):
            ready.wait(60)
            return run.token(test=f"case-{number}")

        with ThreadPoolExecutor(TESTS) as pool:
            tokens = list(pool.map(one, range(TESTS)))
        assert [claims_of(token).test for token in tokens] == [f"case-{number}" for number in range(TESTS)]
        assert {claims_of(token).run for token in tokens} == {run.id}
        assert len(set(tokens)) == TESTS
        # All of them once more: held, so nobody is asked.
        assert [run.token(test=f"case-{number}") for number in range(TESTS)] == tokens
    assert 2 <= mint_calls(broker) - before <= 50


def test_a_thousand_coroutines_get_a_thousand_tokens_in_few_calls(broker):
    before = mint_calls(broker)

    async def main():
        async with (
            AsyncClient.connect(broker.endpoint, identity=broker.identity("acme")) as client,
            client.run(**RUN) as run,
        ):
            names = [f"case-{number}" for number in range(TESTS)]
            tokens = await asyncio.gather(*(run.token(test=name) for name in [*names, *names]))
            assert [claims_of(token).test for token in tokens] == [*names, *names]
            assert len(set(tokens)) == TESTS

    asyncio.run(main())
    assert 2 <= mint_calls(broker) - before <= 10


def test_the_example_of_the_design_works_as_written(broker):
    identity = broker.identity("acme")
    with (
        broker.verifier() as verifier,
        Client.connect(broker.endpoint, identity=identity) as client,
        client.run(realm="evaluation", partner="acme", models=["mythos"]) as run,
    ):
        token = run.token(test="case-7")
        broker.until_accepted(verifier, token)
        claims = verifier.verify(token, model="mythos").claims
        assert (claims.workload, claims.run, claims.test) == ("nightly", run.id, "case-7")
        # For one of the run's models alone.
        assert claims_of(run.token(test="case-7", models=["mythos@blue"])).models == ("mythos@blue",)
    with pytest.raises(RunEnded):
        run.token(test="case-8")
    wait_until(lambda: is_revoked(broker, token))


def is_revoked(broker, token):
    with broker.verifier() as verifier:
        try:
            verifier.verify(token, model="mythos")
        except Revoked:
            return True
        return False


def test_a_limit_on_a_batch_makes_the_batches_smaller_and_the_others_are_told_by_name(broker):
    run_of_bob = {**RUN, "partner": "globex", "user": "bob"}
    with Client.connect(broker.endpoint, identity=broker.identity("globex")) as client:
        with client.run(**run_of_bob) as run, ThreadPoolExecutor(200) as pool:
            assert len(set(pool.map(lambda number: run.token(test=f"case-{number}"), range(200)))) == 200
            # Of a hundred more, those for whom there is room: the others do not take it with them.
            more = list(pool.map(lambda number: limit_of(run, f"more-{number}"), range(100)))
            assert (more.count(""), more.count("tokens_per_run")) == (50, 50)
        # The closed run's tokens are live no more.
        with client.run(**run_of_bob) as run:
            assert run.token()


def limit_of(run, test):
    """The limit for which there is no token, or nothing."""
    try:
        run.token(test=test)
    except LimitReached as reached:
        return reached.metadata["limit"]
    return ""


def test_everything_that_is_missing_is_told_when_the_run_is_opened(broker):
    with (
        Client.connect(broker.endpoint, identity=broker.identity("acme")) as client,
        pytest.raises(NotGranted, match="2 problems") as caught,
        client.run(**{**RUN, "models": ["mythos", "sphinx", "chimera"]}),
    ):
        pass
    assert sorted(name for name in caught.value.metadata if name.startswith("problem")) == ["problem-1", "problem-2"]


def test_a_run_goes_on_after_the_harness_and_the_broker_were_restarted(broker, tmp_path):
    file = tmp_path / "run.key"
    with Client.connect(broker.endpoint, identity=broker.identity("acme")) as client:
        with client.run(**RUN, key_file=file) as run:
            before = run.token(test="case-1")
            run.leave()
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        broker.kill()
        broker.start()
        wait_until(broker.mint)
    with Client.connect(broker.endpoint, identity=broker.identity("acme")) as client:
        # Another run is not written over it.
        with pytest.raises(ConfigInvalid, match="is there already"), client.run(**RUN, key_file=file):
            pass
        with client.resume(file) as resumed:
            assert resumed.id == run.id
            assert claims_of(resumed.token(test="case-1")).run == claims_of(before).run
        assert not file.exists()


def test_a_run_resumed_with_another_key_is_refused(broker, tmp_path):
    file, forged = tmp_path / "run.key", tmp_path / "forged.key"
    with Client.connect(broker.endpoint, identity=broker.identity("acme")) as client:
        with client.run(**RUN, key_file=file) as run:
            run.leave()
        document = json.loads(file.read_text())
        document["key"] = RunKey.new().to_pem()
        forged.touch(mode=0o600)
        forged.write_text(json.dumps(document))
        with pytest.raises(RunProofRefused, match="another key"), client.resume(forged):
            pass
        for mode, why in ((0o644, "chmod 600"), (0o600, "is not a run's key file")):
            forged.chmod(mode)
            if mode == 0o600:
                forged.write_text(file.read_text()[:-20])
            with pytest.raises(ConfigInvalid, match=why):
                client.resume(forged)
        with pytest.raises(ConfigInvalid, match="No such file"):
            client.resume(tmp_path / "nowhere")
        assert "PRIVATE" not in repr(read_kept_run(file))
        with client.resume(file) as run:
            assert run.token()


def test_p4_a_run_that_nobody_keeps_is_ended_and_its_tokens_die(broker):
    with (
        broker.verifier() as verifier,
        Client.connect(broker.endpoint, identity=broker.identity("acme")) as client,
    ):
        opened = client.open_run(realm="evaluation", partner="acme", models=["mythos"], lease_s=10)
        token = client.mint(**RUN, run=opened.id).text
        broker.until_accepted(verifier, token)

        def is_dead():
            try:
                verifier.verify(token, model="mythos")
            except Revoked:
                return True
            return False

        eventually(is_dead, "the lapse of the run", within_s=60)
        with pytest.raises(RunEnded):
            client.mint_batch([Spec(**RUN, run=opened.id)])
    with closing(sqlite3.connect(broker.folder / "data" / "ledger.db")) as store:
        entries = [decode_entry(data) for (data,) in store.execute("SELECT entry FROM ledger")]
    ends = [
        entry.kind
        for entry in entries
        if isinstance(selector := entry.body.get("selector"), dict) and selector.get("run") == opened.id
    ]
    assert ends == ["run-lapsed"]


@pytest.mark.parametrize("off_s", [-7200, 7200])
def test_b5_a_harness_with_a_wrong_clock_goes_by_the_brokers(broker, off_s):
    with Client.connect(broker.endpoint, identity=broker.identity("acme")) as client:
        run = client.run(**RUN)
        run._state.key._now_s = lambda: time.time() + off_s
        with run:
            assert run.token(test="case-1")

    async def main():
        async with AsyncClient.connect(broker.endpoint, identity=broker.identity("acme")) as client:
            run = client.run(**RUN)
            run._state.key._now_s = lambda: time.time() + off_s
            async with run:
                assert await run.token(test="case-1")

    asyncio.run(main())
