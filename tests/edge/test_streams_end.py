"""Running uses are cut: a fake model streams words through FastAPI and gRPC, and a real broker revokes."""

import asyncio
import threading
import time
from concurrent import futures
from contextlib import contextmanager

import grpc
import grpc.aio
import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from fastapi.responses import StreamingResponse

from broker.sdk.asgi import BearerMiddleware
from broker.sdk.failures import failure_of
from broker.sdk.grpc_interceptor import AioBearerInterceptor, BearerInterceptor
from tests.served import Served, wait_until

LEASE_S = 3.0
# A machine under load; the bound itself is what the broker and the verifier count, not this test.
GRACE_S = 5.0


class Model:
    """Streams words for ever, and knows whether it still does."""

    def __init__(self) -> None:
        self.running = 0
        self.ended = threading.Event()

    async def words(self):
        self.running += 1
        try:
            while True:
                await asyncio.sleep(0.01)
                yield b"word "
        finally:
            self.running -= 1
            self.ended.set()

    def words_sync(self):
        self.running += 1
        try:
            while True:
                time.sleep(0.01)
                yield b"word "
        finally:
            self.running -= 1
            self.ended.set()


class Reader:
    """A client that reads in a thread until the stream ends, and keeps how it ended."""

    def __init__(self, read) -> None:
        self.words = 0
        self.failure: Exception | None = None
        self.has_ended = threading.Event()

        def run() -> None:
            try:
                for _ in read():
                    self.words += 1
            except Exception as failure:
                self.failure = failure
            self.has_ended.set()

        threading.Thread(target=run, daemon=True).start()
        wait_until(lambda: self.words > 3 or self.has_ended.is_set())
        assert not self.has_ended.is_set(), self.failure


@contextmanager
def over_fastapi(model, verifier, token):
    app = FastAPI()

    @app.get("/{name}/complete")
    async def complete(name: str) -> StreamingResponse:
        return StreamingResponse(model.words(), media_type="text/plain")

    guarded = BearerMiddleware(app, verifier, lambda scope, body: scope["path"].split("/")[1])
    server = uvicorn.Server(uvicorn.Config(guarded, port=0, log_level="critical"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_until(lambda: server.started)
    url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/mythos/complete"

    def read():
        with httpx.stream("GET", url, headers={"Authorization": f"Bearer {token}"}, timeout=30) as answer:
            assert answer.status_code == 200
            yield from answer.iter_bytes()

    try:
        yield read
    finally:
        server.should_exit = server.force_exit = True
        thread.join(10)


def handlers(stream):
    return (grpc.method_handlers_generic_handler("model", {"Complete": grpc.unary_stream_rpc_method_handler(stream)}),)


def reading_grpc(port, token):
    def read():
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield from channel.unary_stream("/model/Complete")(
                b"mythos", metadata=(("authorization", f"Bearer {token}"),), timeout=30
            )

    return read


@contextmanager
def over_grpc(model, verifier, token):
    interceptor = BearerInterceptor(verifier, lambda details, request: request.decode())
    server = grpc.server(futures.ThreadPoolExecutor(4), interceptors=(interceptor,))
    server.add_generic_rpc_handlers(handlers(lambda request, context: model.words_sync()))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield reading_grpc(port, token)
    finally:
        server.stop(None).wait(10)


@contextmanager
def over_grpc_aio(model, verifier, token):
    ports = futures.Future()
    halt = threading.Event()

    async def serve():
        interceptor = AioBearerInterceptor(verifier, lambda details, request: request.decode())
        server = grpc.aio.server(interceptors=(interceptor,))

        async def complete(request, context):
            async for word in model.words():
                yield word

        server.add_generic_rpc_handlers(handlers(complete))
        ports.set_result(server.add_insecure_port("127.0.0.1:0"))
        await server.start()
        await asyncio.to_thread(halt.wait, 60)
        await server.stop(None)

    thread = threading.Thread(target=asyncio.run, args=(serve(),), daemon=True)
    thread.start()
    try:
        yield reading_grpc(ports.result(10), token)
    finally:
        halt.set()
        thread.join(10)


@pytest.fixture(scope="module")
def broker(tmp_path_factory):
    with Served(tmp_path_factory.mktemp("served"), with_feed_door=True) as served:
        yield served


@pytest.fixture
def verifier(broker):
    with broker.verifier() as verifier:
        yield verifier


DOORS = pytest.mark.parametrize("door", [over_fastapi, over_grpc, over_grpc_aio])


def assert_cut(door, reader, model, reason):
    assert reader.has_ended.wait(LEASE_S + GRACE_S)
    # On the server, too: what stands behind the stream has stopped.
    assert model.ended.wait(GRACE_S)
    wait_until(lambda: model.running == 0, GRACE_S)
    if door is over_fastapi:
        # The answer breaks off: no client may take it for whole.
        assert isinstance(reader.failure, httpx.RemoteProtocolError)
    else:
        assert isinstance(reader.failure, grpc.RpcError)
        wanted = grpc.StatusCode.PERMISSION_DENIED if reason == "REVOKED" else None
        assert wanted in (None, reader.failure.code())
        assert failure_of(reader.failure).reason == reason


@DOORS
def test_p4_a_revocation_ends_a_running_stream_on_both_sides_and_is_told_in_the_completion(broker, verifier, door):
    token = broker.mint()
    broker.until_accepted(verifier, token.token)
    model = Model()
    with door(model, verifier, token.token) as read:
        reader = Reader(read)
        assert verifier.state().uses == 1
        events = broker.revoke(wait=True, partner="acme")
        broker.reinstate(partner="acme")
        assert_cut(door, reader, model, "REVOKED")
        assert verifier.state().uses == 0
    assert events[-1].complete.uses_cut == 1


@DOORS
def test_the_end_of_the_token_ends_a_running_stream(broker, verifier, door):
    from google.protobuf.duration_pb2 import Duration

    token = broker.mint(lifetime=Duration(seconds=3))
    broker.until_accepted(verifier, token.token)
    model = Model()
    with door(model, verifier, token.token) as read:
        assert_cut(door, Reader(read), model, "EXPIRED")


@DOORS
def test_p5_a_lapsed_lease_ends_a_running_stream(broker, verifier, door):
    token = broker.mint()
    broker.until_accepted(verifier, token.token)
    model = Model()
    with door(model, verifier, token.token) as read:
        reader = Reader(read)
        broker.kill()
        try:
            assert_cut(door, reader, model, "STALE")
        finally:
            broker.start()


def test_a_use_that_ends_by_itself_leaves_nothing_behind(broker, verifier):
    token = broker.mint()
    broker.until_accepted(verifier, token.token)
    with verifier.use(token.token, model="mythos"):
        pass
    threads = threading.active_count()
    calls: list[str] = []
    for _ in range(200):
        with verifier.use(token.token, model="mythos") as use:
            use.on_cancel(lambda: calls.append("cut"))
    assert verifier.state().uses == 0
    assert threading.active_count() <= threads
    events = broker.revoke(wait=True, token=token.id)
    assert events[-1].complete.uses_cut == 0
    assert not calls
