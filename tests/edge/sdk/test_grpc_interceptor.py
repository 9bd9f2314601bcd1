"""The gRPC interceptors, sync and asyncio, in real servers in front of a model."""

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent import futures

import grpc
import grpc.aio
import pytest

from broker.errors import Expired, Malformed, NotAllowed, Revoked, Stale
from broker.sdk.bearer import NoToken
from broker.sdk.failures import failure_of
from broker.sdk.grpc_interceptor import PROOF, AioBearerInterceptor, BearerInterceptor
from tests.feed_server import eventually

KINDS = ("uu", "us", "su", "ss")


def model_of(details, request) -> str:
    # The model is named in the request where there is one, else in the path's last word.
    return request.decode() if request else details.method.rpartition("-")[2]


class Service:
    """Answers with who was accepted; streams without end until it is ended."""

    def __init__(self) -> None:
        self.ended = threading.Event()
        self.blocks = threading.Event()

    def handlers(self) -> grpc.GenericRpcHandler:
        return grpc.method_handlers_generic_handler(
            "model",
            {
                "uu": grpc.unary_unary_rpc_method_handler(lambda request, context: PROOF.get().claims.partner.encode()),
                "us": grpc.unary_stream_rpc_method_handler(self.stream),
                "su-mythos": grpc.stream_unary_rpc_method_handler(lambda requests, context: b"".join(requests)),
                "ss-mythos": grpc.stream_stream_rpc_method_handler(lambda requests, context: iter(requests)),
                "stuck": grpc.unary_unary_rpc_method_handler(self.stuck),
                "open": grpc.unary_unary_rpc_method_handler(lambda request, context: str(PROOF.get(None)).encode()),
            },
        )

    def stream(self, request, context) -> Iterator[bytes]:
        try:
            while not self.blocks.wait(0.01):
                yield b"more"
        finally:
            self.ended.set()

    def stuck(self, request, context) -> bytes:
        self.blocks.wait(10)
        return b"late"


class AioService(Service):
    def handlers(self) -> grpc.GenericRpcHandler:
        async def uu(request, context):
            return PROOF.get().claims.partner.encode()

        async def su(requests, context):
            return b"".join([request async for request in requests])

        async def ss(requests, context):
            async for request in requests:
                yield request

        async def us(request, context):
            try:
                while True:
                    await asyncio.sleep(0.01)
                    yield b"more"
            finally:
                self.ended.set()

        async def writes(request, context):
            try:
                while True:
                    await asyncio.sleep(0.01)
                    await context.write(b"more")
            finally:
                self.ended.set()

        async def stuck(request, context):
            try:
                await asyncio.sleep(10)
            finally:
                self.ended.set()

        async def fails(request, context):
            await context.abort(grpc.StatusCode.DATA_LOSS, "the model's own")

        async def opened(request, context):
            return str(PROOF.get(None)).encode()

        return grpc.method_handlers_generic_handler(
            "model",
            {
                "uu": grpc.unary_unary_rpc_method_handler(uu),
                "us": grpc.unary_stream_rpc_method_handler(us),
                "writes": grpc.unary_stream_rpc_method_handler(writes),
                "su-mythos": grpc.stream_unary_rpc_method_handler(su),
                "ss-mythos": grpc.stream_stream_rpc_method_handler(ss),
                "stuck": grpc.unary_unary_rpc_method_handler(stuck),
                "fails": grpc.unary_unary_rpc_method_handler(fails),
                "open": grpc.unary_unary_rpc_method_handler(opened),
            },
        )


def serve_sync(service, verifier):
    server = grpc.server(
        futures.ThreadPoolExecutor(4),
        interceptors=(BearerInterceptor(verifier, model_of, open_methods=("/model/open",)),),
    )
    server.add_generic_rpc_handlers((service.handlers(),))
    port = server.add_insecure_port("localhost:0")
    server.start()
    return port, lambda: server.stop(None).wait(10)


def serve_aio(service, verifier):
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def start():
        server = grpc.aio.server(
            interceptors=(AioBearerInterceptor(verifier, model_of, open_methods=("/model/open",)),)
        )
        server.add_generic_rpc_handlers((service.handlers(),))
        port = server.add_insecure_port("localhost:0")
        await server.start()
        return server, port

    server, port = asyncio.run_coroutine_threadsafe(start(), loop).result(10)

    def stop():
        asyncio.run_coroutine_threadsafe(server.stop(None), loop).result(10)
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0.05), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()

    return port, stop


@pytest.fixture(params=["sync", "aio"])
def model(request, verifier):
    """A channel to a model's service, and the service."""
    service = Service() if request.param == "sync" else AioService()
    port, stop = (serve_sync if request.param == "sync" else serve_aio)(service, verifier)
    with grpc.insecure_channel(f"localhost:{port}") as channel:
        yield channel, service
    service.blocks.set()
    stop()


@pytest.fixture
def aio_model(verifier):
    service = AioService()
    port, stop = serve_aio(service, verifier)
    with grpc.insecure_channel(f"localhost:{port}") as channel:
        yield channel, service
    stop()


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),)


def call(channel, token=None, model: bytes = b"mythos", method: str = "uu", metadata=None):
    return channel.unary_unary(f"/model/{method}")(
        model, metadata=bearer(token) if metadata is None else metadata, timeout=10
    )


def refused(work) -> tuple[grpc.StatusCode, object]:
    with pytest.raises(grpc.RpcError) as caught:
        work()
    return caught.value.code(), failure_of(caught.value)


def test_a_good_token_passes_and_the_handler_knows_whose_it_is(model, keys):
    channel, _ = model
    assert call(channel, keys.mint()) == b"acme"
    token = keys.mint()
    stream = channel.stream_unary("/model/su-mythos")(iter([b"a", b"b"]), metadata=bearer(token), timeout=10)
    assert stream == b"ab"
    both = channel.stream_stream("/model/ss-mythos")(iter([b"a", b"b"]), metadata=bearer(token), timeout=10)
    assert list(both) == [b"a", b"b"]


def test_p7_every_kind_of_call_is_refused_without_a_token(model):
    channel, _ = model
    for work in (
        lambda: channel.unary_unary("/model/uu")(b"mythos", timeout=10),
        lambda: list(channel.unary_stream("/model/us")(b"mythos", timeout=10)),
        lambda: channel.stream_unary("/model/su-mythos")(iter([b"a"]), timeout=10),
        lambda: list(channel.stream_stream("/model/ss-mythos")(iter([b"a"]), timeout=10)),
    ):
        code, why = refused(work)
        assert code is grpc.StatusCode.UNAUTHENTICATED
        assert why.reason == "MALFORMED"


@pytest.mark.parametrize(
    "values",
    [
        [],
        ["Bearer {0}", "Bearer {0}"],
        ["Bearer {0}", "Basic abc"],
        ["{0}"],
        ["Bearer"],
        ["Bearer  {0}"],
        ["Bearer {0},Bearer {0}"],
        ["Bearer {0} "],
        ["DPoPs {0}"],
        ["Bearer x y"],
    ],
)
def test_b18_exactly_one_authorization_is_taken(values, model, keys):
    channel, _ = model
    token = keys.mint()
    metadata = tuple(("authorization", value.format(token)) for value in values)
    code, why = refused(lambda: call(channel, metadata=metadata))
    assert (code, type(why)) == (grpc.StatusCode.UNAUTHENTICATED, Malformed)
    assert token not in str(why)


def test_answers_tell_retry_from_stop(model, server, keys):
    channel, _ = model
    old = keys.mint(iat=keys.now_s - 700, nbf=keys.now_s - 705, exp=keys.now_s - 5)
    code, why = refused(lambda: call(channel, old))
    assert (code, type(why)) == (grpc.StatusCode.UNAUTHENTICATED, Expired)
    assert why.hint == "mint a new one"
    code, why = refused(lambda: call(channel, keys.mint(), b"other"))
    assert (code, type(why)) == (grpc.StatusCode.PERMISSION_DENIED, NotAllowed)
    index = server.revoke(partner="acme")
    eventually(lambda: server.acked_head > index, "the acknowledgement")
    code, why = refused(lambda: call(channel, keys.mint()))
    assert (code, type(why)) == (grpc.StatusCode.PERMISSION_DENIED, Revoked)
    assert why.metadata["index"] == str(index)


def test_p5_a_stale_verifier_answers_unavailable(model, server, verifier, keys):
    channel, _ = model
    server.heartbeats = server.sends_snapshot = False
    eventually(lambda: not verifier.state().is_fresh, "the end of the lease")
    code, why = refused(lambda: call(channel, keys.mint()))
    assert (code, type(why)) == (grpc.StatusCode.UNAVAILABLE, Stale)


def test_a_call_that_names_no_model_is_refused(model, keys):
    channel, _ = model
    code, why = refused(lambda: call(channel, keys.mint(), b"\xff"))
    assert (code, type(why)) == (grpc.StatusCode.PERMISSION_DENIED, NotAllowed)


def test_a_method_that_is_open_needs_no_token_and_an_unknown_one_stays_unknown(model, keys):
    channel, _ = model
    assert call(channel, metadata=(), method="open") == b"None"
    call(channel, keys.mint())
    assert call(channel, metadata=(), method="open") == b"None"
    code, _ = refused(lambda: call(channel, keys.mint(), method="nothing"))
    assert code is grpc.StatusCode.UNIMPLEMENTED


def test_a_running_stream_is_cut_when_its_token_is_revoked(model, server, verifier, keys):
    channel, service = model
    stream = channel.unary_stream("/model/us")(b"mythos", metadata=bearer(keys.mint()), timeout=20)
    assert next(stream) == b"more"
    assert verifier.state().uses == 1
    server.revoke(partner="acme")
    code, why = refused(lambda: list(stream))
    assert (code, type(why)) == (grpc.StatusCode.PERMISSION_DENIED, Revoked)
    assert service.ended.wait(10)
    eventually(lambda: verifier.state().uses == 0, "the end of the use")


def test_a_blocked_call_is_cut_too(model, server, verifier, keys):
    channel, service = model
    began = time.monotonic()
    waiting = channel.unary_unary("/model/stuck").future(b"mythos", metadata=bearer(keys.mint()), timeout=20)
    eventually(lambda: verifier.state().uses == 1, "the call")
    server.revoke(partner="acme")
    code, _ = refused(waiting.result)
    expected = grpc.StatusCode.PERMISSION_DENIED if isinstance(service, AioService) else grpc.StatusCode.CANCELLED
    assert code is expected
    assert time.monotonic() - began < 5


def test_a_client_that_goes_away_ends_the_use(model, verifier, keys):
    channel, service = model
    stream = channel.unary_stream("/model/us")(b"mythos", metadata=bearer(keys.mint()), timeout=20)
    next(stream)
    stream.cancel()
    assert service.ended.wait(10)
    eventually(lambda: verifier.state().uses == 0, "the end of the use")


def test_a_handler_that_writes_instead_of_yielding_is_cut(aio_model, server, keys):
    channel, service = aio_model
    stream = channel.unary_stream("/model/writes")(b"mythos", metadata=bearer(keys.mint()), timeout=20)
    assert next(stream) == b"more"
    server.revoke(partner="acme")
    code, _ = refused(lambda: list(stream))
    assert code is grpc.StatusCode.PERMISSION_DENIED
    assert service.ended.wait(10)


def test_a_handlers_own_failure_passes(aio_model, keys):
    channel, _ = aio_model
    code, _ = refused(lambda: call(channel, keys.mint(), method="fails"))
    assert code is grpc.StatusCode.DATA_LOSS


def test_no_token_is_told_apart_from_a_bad_one():
    assert issubclass(NoToken, Malformed)
