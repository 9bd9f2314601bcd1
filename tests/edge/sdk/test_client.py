"""The client and its asyncio twin against a real server."""

import asyncio
import inspect
import threading
from collections.abc import Callable
from typing import Any

import grpc
import pytest

from broker.errors import (
    ConfigInvalid,
    Defect,
    Failure,
    Invalid,
    NotGranted,
    Overloaded,
    Rejected,
    RunEnded,
    SignerUnavailable,
    StoreUnavailable,
    Unauthenticated,
)
from broker.sdk import AsyncClient, Client, Identity, Spec
from broker.sdk.async_client import AsyncRun
from broker.sdk.client import Run
from broker.sdk.failures import DETAILS_KEY, Unreachable, failure_of
from broker.v1 import details_pb2
from tests.feed_server import eventually
from tests.token_server import AWAY, REFUSED, SILENT, TokenServer

ACME = {"realm": "evaluation", "partner": "acme", "models": ["mythos"], "user": "bob"}


@pytest.fixture
def broker(keys, server_certificate):
    with TokenServer(keys, server_certificate) as one:
        yield one


class Twin:
    """A client of either kind, called in the same way."""

    def __init__(self, kind: str, endpoint: str, identity: Identity | None, timeout_s: float = 10) -> None:
        self.runner = asyncio.Runner()
        cls: Any = Client if kind == "sync" else AsyncClient
        self.client = cls.connect(endpoint, identity=identity, timeout_s=timeout_s)

    def do(self, name: str, *args: Any, **fields: Any) -> Any:
        done = getattr(self.client, name)(*args, **fields)
        return self.runner.run(done) if inspect.iscoroutine(done) else done

    def in_run(self, work: Callable[[Callable[..., str], Any], None], **fields: Any) -> None:
        """Run `work` in a thread, with a function that returns a token of the run, inside `with`."""
        self.in_run_of(self.client.run(**fields), work)

    def in_run_of(self, run: Run | AsyncRun, work: Callable[[Callable[..., str], Any], None]) -> None:
        if isinstance(run, Run):
            with run:
                work(run.token, run)
            return
        self.runner.run(self._in_async_run(run, work))

    async def _in_async_run(self, run: AsyncRun, work: Callable[[Callable[..., str], Any], None]) -> None:
        loop = asyncio.get_running_loop()

        def token(**fields: Any) -> str:
            return asyncio.run_coroutine_threadsafe(run.token(**fields), loop).result(20)

        async with run:
            await asyncio.to_thread(work, token, run)

    def close(self) -> None:
        self.do("close")
        self.runner.run(asyncio.sleep(0.05))
        self.runner.close()


@pytest.fixture(params=["sync", "aio"])
def kind(request) -> str:
    return request.param


@pytest.fixture
def twin(kind, broker, identity):
    one = Twin(kind, broker.endpoint, identity)
    yield one
    one.close()


def test_a_token_is_minted_as_asked(twin, broker):
    minted = twin.do("mint", **ACME, lifetime_s=60)
    assert minted.text.count(".") == 2
    assert (minted.index, minted.grant) == (11, "acme-evals")
    assert minted.expires_at.tzinfo is not None
    [request] = broker.named("Mint")
    assert (request.spec.realm, request.spec.partner, request.spec.user) == ("evaluation", "acme", "bob")
    assert list(request.spec.models) == ["mythos"]
    assert request.spec.lifetime.seconds == 60
    assert not request.spec.HasField("workload")


def test_a_workload_can_act_for_a_user(twin, broker):
    twin.do("mint", **ACME, workload="nightly")
    [request] = broker.named("Mint")
    assert (request.spec.user, request.spec.workload) == ("bob", "nightly")


def test_p12_a_minted_token_does_not_show_its_text(twin):
    minted = twin.do("mint", **ACME)
    assert minted.text not in repr(minted)


def test_a_batch_is_minted_in_order(twin, broker):
    specs = [Spec(**{**ACME, "user": None, "workload": f"job-{number}"}) for number in range(3)]
    assert [minted.index for minted in twin.do("mint_batch", specs)] == [11, 12, 13]
    [request] = broker.named("MintBatch")
    assert [spec.workload for spec in request.specs] == ["job-0", "job-1", "job-2"]


def test_a_run_is_opened_kept_and_closed_by_hand(twin):
    opened = twin.do("open_run", realm="evaluation", partner="acme", models=["mythos"], lease_s=30)
    assert (opened.realm, opened.partner, opened.models, opened.state) == ("evaluation", "acme", ("mythos",), "open")
    assert twin.do("keep_run", opened.id).id == opened.id
    assert twin.do("close_run", opened.id).state == "closed"


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({**ACME, "models": "mythos"}, "models: must be a list"),
    ],
)
def test_p7_what_cannot_be_asked_is_not_sent(fields, complaint, twin, broker):
    with pytest.raises(Invalid, match=complaint):
        twin.do("mint", **fields)
    assert broker.calls == []


def test_p2_an_unavailable_broker_is_asked_again_with_the_same_request_id(twin, broker):
    broker.failures = [AWAY, AWAY, AWAY]
    minted = twin.do("mint", **ACME)
    requests = broker.named("Mint")
    assert len(requests) == 4
    assert len({request.request_id for request in requests}) == 1
    # The work was done at the first call, and once.
    assert minted.index == 11
    twin.do("mint", **ACME)
    assert broker.named("Mint")[-1].request_id != requests[0].request_id


def test_a_refusal_is_not_repeated(twin, broker):
    broker.failures = [REFUSED]
    with pytest.raises(NotGranted, match="no grant covers it") as caught:
        twin.do("mint", **ACME)
    assert "broker explain" in caught.value.hint
    assert len(broker.calls) == 1


def test_what_stays_unavailable_is_given_up_at_the_deadline(kind, broker, identity):
    one = Twin(kind, broker.endpoint, identity, timeout_s=3)
    broker.failures = [(grpc.StatusCode.UNAVAILABLE, SignerUnavailable("sealed"))] * 50
    with pytest.raises(SignerUnavailable, match="sealed"):
        one.do("mint", **ACME)
    one.close()
    half = Twin(kind, broker.endpoint, identity, timeout_s=3)
    broker.failures = [(grpc.StatusCode.UNAVAILABLE, SignerUnavailable("sealed")), *[SILENT] * 50]
    # The last attempt is cut short by our own deadline, which is no reason.
    with pytest.raises(SignerUnavailable, match="sealed"):
        half.do("mint", **ACME)
    half.close()
    broker.failures = []
    nobody = Twin(kind, "127.0.0.1:1", identity, timeout_s=0.3)
    with pytest.raises(Unreachable):
        nobody.do("mint", **ACME)
    nobody.close()


def test_another_endpoint_is_asked_when_one_is_dead_or_silent(
    kind, broker, keys, server_certificate, identity, monkeypatch
):
    monkeypatch.setattr("broker.sdk.retrying.ATTEMPT_S", 0.3)
    with TokenServer(keys, server_certificate) as silent:
        silent.failures = [SILENT] * 5
        one = Twin(kind, f"127.0.0.1:1, {silent.endpoint}, {broker.endpoint}", identity)
        assert one.do("mint", **ACME).index == 11
        assert silent.named("Mint")[0].request_id == broker.named("Mint")[0].request_id
        one.close()


def test_p8_without_a_certificate_nothing_is_answered(kind, broker):
    one = Twin(kind, broker.endpoint, None, timeout_s=0.3)
    with pytest.raises(Unreachable):
        one.do("mint", **ACME)
    one.close()


def test_files_that_cannot_be_read_are_an_error_at_once(kind):
    with pytest.raises(ConfigInvalid, match=r"/nowhere/ca.*/nowhere/k.*/nowhere/c"):
        Twin(kind, "127.0.0.1:1", Identity("/nowhere/c", "/nowhere/k", "/nowhere/ca"))


def test_a_run_gives_each_test_its_token_and_keeps_it_until_it_is_about_to_end(twin, broker):
    def work(token, run) -> None:
        first = token(test="case-1")
        assert token(test="case-1") == first
        assert token(test="case-2") != first
        assert token() not in (first, token(test="case-2"))
        assert {(mint.spec.run, mint.spec.test) for mint in broker.named("Mint")} == {
            (run.id, "case-1"),
            (run.id, "case-2"),
            (run.id, ""),
        }

    twin.in_run(work, **ACME)
    assert len(broker.named("OpenRun")) == 1
    assert len(broker.named("Mint")) == 3
    assert len(broker.named("CloseRun")) == 1


def test_a_token_is_renewed_before_its_end(twin, broker):
    broker.life_s = 1

    def work(token, run) -> None:
        first = token(test="case-1")
        eventually(lambda: token(test="case-1") != first, "the renewal")

    twin.in_run(work, **ACME)
    assert len(broker.named("Mint")) == 2


def test_a_run_is_kept_alive_and_no_longer_than_its_block(twin, broker):
    broker.lease_s = 1

    def work(token, run) -> None:
        broker.failures = [(grpc.StatusCode.RESOURCE_EXHAUSTED, Overloaded("busy"))]
        eventually(lambda: len(broker.named("KeepRun")) >= 3, "the run is kept")
        assert {keep.run for keep in broker.named("KeepRun")} == {run.id}

    twin.in_run(work, **ACME)
    kept = len(broker.named("KeepRun"))
    threading.Event().wait(0.7)
    assert len(broker.named("KeepRun")) == kept


def test_a_run_that_an_admin_ended_gives_no_token(twin, broker):
    broker.lease_s = 1

    def work(token, run) -> None:
        token(test="case-1")
        broker.ended.add(run.id)

        def ended() -> bool:
            try:
                token(test="case-1")
            except RunEnded:
                return True
            return False

        eventually(ended, "the end of the run")
        broker.ended.clear()

    twin.in_run(work, **ACME)


def test_after_its_block_a_run_gives_no_token(twin):
    runs: list[Any] = []
    twin.in_run(lambda token, run: runs.append(run), **ACME)
    with pytest.raises(RunEnded):
        done = runs[0].token()
        twin.runner.run(done)


def test_a_run_that_cannot_be_closed_says_so_unless_the_block_failed_itself(twin, broker):
    def fine(token, run) -> None:
        broker.failures = [REFUSED]

    def fails(token, run) -> None:
        broker.failures = [REFUSED]
        raise LookupError("the block's own")

    with pytest.raises(NotGranted):
        twin.in_run(fine, **ACME)
    with pytest.raises(LookupError, match="the block's own"):
        twin.in_run(fails, **ACME)


def test_a_client_is_closed_at_the_end_of_its_block(kind, broker, identity):
    if kind == "sync":
        with Client.connect(broker.endpoint, identity=identity) as client:
            client.mint(**ACME)
        client.close()
        return

    async def main() -> None:
        async with AsyncClient.connect(broker.endpoint, identity=identity) as client:
            await client.mint(**ACME)
        await client.close()
        await asyncio.sleep(0.05)

    asyncio.run(main())


def test_many_threads_share_a_run(broker, identity):
    broker.failures = [AWAY] * 5
    with Client.connect(broker.endpoint, identity=identity) as client, client.run(**ACME) as run:
        found: list[str] = []
        threads = [
            threading.Thread(target=lambda number=number: found.append(run.token(test=f"case-{number % 3}")))
            for number in range(12)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert len(found) == 12
        assert len(set(found)) == 3


class Failed:
    """What gRPC raises, with whatever a server or a proxy may have sent."""

    def __init__(self, code: grpc.StatusCode, details: str | None = "text", trailing: Any = ()) -> None:
        self._parts = code, details, trailing

    def code(self) -> grpc.StatusCode:
        return self._parts[0]

    def details(self) -> str | None:
        return self._parts[1]

    def trailing_metadata(self) -> Any:
        return self._parts[2]


def detailed(reason: str, *, domain: str = "broker", message: str = "told", **metadata: str) -> Any:
    info = details_pb2.ErrorInfoDetail(reason=reason, domain=domain, metadata=metadata)
    status = details_pb2.StatusDetails(code=3, message=message)
    status.details.add(type_url="type.googleapis.com/google.rpc.RetryInfo", value=b"")
    status.details.add(type_url="type.googleapis.com/google.rpc.ErrorInfo", value=info.SerializeToString())
    return (("x", "y"), (DETAILS_KEY, status.SerializeToString()))


def test_every_reason_becomes_its_class():
    for cls in _all(Failure):
        if cls.__module__ == "broker.errors" and cls not in (ConfigInvalid, Rejected):
            failure = failure_of(Failed(grpc.StatusCode.UNKNOWN, "text", detailed(cls.reason, hint="do that")))
            assert type(failure) is cls, cls.reason
            assert failure.hint == "do that"


def test_an_invalid_field_is_named_once():
    trailing = detailed("INVALID", message="partner: is unknown", field="partner")
    failure = failure_of(Failed(grpc.StatusCode.INVALID_ARGUMENT, "text", trailing))
    assert isinstance(failure, Invalid)
    assert (failure.field, failure.problem, failure.message) == ("partner", "is unknown", "partner: is unknown")


@pytest.mark.parametrize(
    ("failed", "cls"),
    [
        (Failed(grpc.StatusCode.UNAVAILABLE), Unreachable),
        (Failed(grpc.StatusCode.UNAVAILABLE, None, None), StoreUnavailable),
        (Failed(grpc.StatusCode.UNAUTHENTICATED), Unauthenticated),
        (Failed(grpc.StatusCode.UNKNOWN), Defect),
        (Failed(grpc.StatusCode.INTERNAL, "text", ((DETAILS_KEY, b"\xff"),)), Defect),
        (Failed(grpc.StatusCode.INTERNAL, "text", detailed("NEW_REASON")), Defect),
        (Failed(grpc.StatusCode.UNAVAILABLE, "text", detailed("REVOKED", domain="elsewhere")), Unreachable),
    ],
)
def test_p7_what_is_not_the_brokers_is_judged_by_its_code(failed, cls):
    assert isinstance(failure_of(failed), cls)


def _all(of: type[Failure]):
    for cls in of.__subclasses__():
        yield cls
        yield from _all(cls)
