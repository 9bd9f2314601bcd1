"""The ASGI middleware in front of a Starlette application, in a real uvicorn."""

import asyncio
import http.client
import json
import threading
import time

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route, WebSocketRoute

from broker.sdk.asgi import BearerMiddleware
from tests.feed_server import eventually


async def who(request):
    body = await request.body()
    return JSONResponse({"partner": request.scope["broker.proof"].claims.partner, "body": len(body)})


async def endless(request):
    async def chunks():
        try:
            while True:
                await asyncio.sleep(0.01)
                yield b"more\n"
        finally:
            request.app.state.ended.set()

    return StreamingResponse(chunks())


async def stuck(request):
    try:
        await asyncio.sleep(30)
    finally:
        request.app.state.ended.set()


async def blocking(request):
    """As models are called that know nothing of asyncio: a generator that runs in threads."""

    def chunks():
        try:
            while not request.app.state.halt.wait(0.01):
                yield b"more\n"
        finally:
            request.app.state.ended.set()

    return StreamingResponse(chunks())


async def flood(request):
    async def chunks():
        try:
            while True:
                yield bytes(1 << 20)
        finally:
            request.app.state.ended.set()

    return StreamingResponse(chunks())


async def finite(request):
    async def chunks():
        for _ in range(3):
            yield b"more\n"

    return StreamingResponse(chunks(), headers={"tasks": str(len(asyncio.all_tasks()))})


async def fails(request):
    raise LookupError("the application's own")


async def socket_(websocket):
    await websocket.accept()
    while True:
        await websocket.send_text(await websocket.receive_text())


def by_path(scope, body: bytes) -> str:
    return scope["path"].split("/")[1]


def by_body(scope, body: bytes) -> str:
    return json.loads(body)["model"]


class Served:
    def __init__(self, verifier, model_of, **options) -> None:
        self.app = Starlette(
            routes=[
                Route("/{model}/who", who, methods=["GET", "POST"]),
                Route("/{model}/endless", endless),
                Route("/{model}/stuck", stuck),
                Route("/{model}/blocking", blocking),
                Route("/{model}/flood", flood),
                Route("/{model}/finite", finite),
                Route("/{model}/fails", fails),
                WebSocketRoute("/{model}/socket", socket_),
            ]
        )
        self.app.state.ended = threading.Event()
        self.app.state.halt = threading.Event()
        guarded = BearerMiddleware(self.app, verifier, model_of, **options)
        config = uvicorn.Config(guarded, port=0, log_level="critical", lifespan="on", ws="auto")
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        eventually(lambda: self.server.started, "the server")
        self.port = self.server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def close(self) -> None:
        self.app.state.halt.set()
        self.server.should_exit = True
        self.server.force_exit = True
        self.thread.join(10)


@pytest.fixture
def served(verifier):
    one = Served(verifier, by_path)
    yield one
    one.close()


@pytest.fixture
def reading(verifier):
    one = Served(verifier, by_body, max_body_bytes=1000)
    yield one
    one.close()


def get(served, path: str, *values: str) -> httpx.Response:
    return httpx.get(served.url + path, headers=[("Authorization", value) for value in values], timeout=10)


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def test_a_good_token_passes_and_the_application_knows_whose_it_is(served, keys):
    answer = get(served, "/mythos/who", f"Bearer {keys.mint()}")
    assert (answer.status_code, answer.json()) == (200, {"partner": "acme", "body": 0})


@pytest.mark.parametrize(
    "values",
    [
        ["Bearer {0}", "Bearer {0}"],
        ["{0}"],
        ["Bearer"],
        ["Bearer {0}, Bearer {0}"],
        ["Bearer  {0}"],
        ["Basic {0}"],
    ],
)
def test_b18_exactly_one_authorization_is_taken(values, served, keys):
    token = keys.mint()
    answer = get(served, "/mythos/who", *(value.format(token) for value in values))
    assert answer.status_code == 401
    assert answer.json()["error"] == "MALFORMED"
    assert 'error="invalid_token"' in answer.headers["www-authenticate"]
    assert token not in answer.text


def test_p7_without_a_token_the_challenge_says_nothing_more(served):
    answer = get(served, "/mythos/who")
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == 'Bearer realm="evaluation"'
    assert answer.headers["cache-control"] == "no-store"


def test_answers_tell_retry_from_stop(served, server, verifier, keys):
    old = keys.mint(iat=keys.now_s - 700, nbf=keys.now_s - 705, exp=keys.now_s - 5)
    answer = get(served, "/mythos/who", f"Bearer {old}")
    assert (answer.status_code, answer.json()["error"]) == (401, "EXPIRED")
    assert answer.headers["www-authenticate"].startswith('Bearer realm="evaluation", error="invalid_token"')
    answer = get(served, "/other/who", f"Bearer {keys.mint()}")
    assert (answer.status_code, answer.json()["error"]) == (403, "NOT_ALLOWED")
    assert 'error="insufficient_scope"' in answer.headers["www-authenticate"]
    index = server.revoke(partner="acme")
    eventually(lambda: server.acked_head > index, "the acknowledgement")
    answer = get(served, "/mythos/who", f"Bearer {keys.mint()}")
    assert (answer.status_code, answer.json()["error"]) == (403, "REVOKED")
    # Stopped, for a new connection's snapshot would bring one more lease.
    server.stop()
    eventually(lambda: not verifier.state().is_fresh, "the end of the lease")
    answer = get(served, "/mythos/who", f"Bearer {keys.mint(idx=99)}")
    assert (answer.status_code, answer.json()["error"]) == (503, "STALE")
    assert answer.headers["retry-after"] == "1"
    assert "www-authenticate" not in answer.headers


def test_the_model_that_is_authorised_is_the_one_in_the_body(reading, keys):
    headers = {"Authorization": f"Bearer {keys.mint()}"}

    def post(content: bytes) -> httpx.Response:
        return httpx.post(f"{reading.url}/mythos/who?model=mythos", content=content, headers=headers, timeout=10)

    good = json.dumps({"model": "mythos", "prompt": "x" * 500}).encode()
    answer = post(good)
    # The application gets the same bytes.
    assert (answer.status_code, answer.json()["body"]) == (200, len(good))
    assert post(b'{"model": "other"}').status_code == 403
    for nothing in (b"", b"{}", b"[]", b"\xff", b'{"model": 7}'):
        answer = post(nothing)
        assert (answer.status_code, answer.json()["error"]) == (403, "NOT_ALLOWED")
    answer = post(b'{"model": "mythos", "prompt": "' + b"x" * 2000 + b'"}')
    assert answer.status_code == 413


def test_a_running_answer_is_cut_when_its_token_is_revoked(served, server, verifier, keys):
    headers = {"Authorization": f"Bearer {keys.mint()}"}
    with httpx.stream("GET", f"{served.url}/mythos/endless", headers=headers, timeout=20) as answer:
        lines = answer.iter_lines()
        assert next(lines) == "more"
        assert verifier.state().uses == 1
        server.revoke(partner="acme")
        # Without the end of its encoding, so that nobody takes it for whole.
        with pytest.raises(httpx.RemoteProtocolError):
            list(lines)
    assert served.app.state.ended.wait(10)
    eventually(lambda: verifier.state().uses == 0, "the end of the use")


def test_p4_a_generator_that_runs_in_threads_is_stopped_too(served, server, verifier, keys):
    with httpx.stream("GET", served.url + "/mythos/blocking", headers=bearer(keys.mint()), timeout=10) as answer:
        chunks = answer.iter_bytes()
        next(chunks)
        server.revoke(partner="acme")
        with pytest.raises(httpx.RemoteProtocolError):
            list(chunks)
    assert served.app.state.ended.wait(10)
    assert verifier.state().uses == 0


def test_p4_an_answer_that_nobody_reads_is_stopped_too(served, server, verifier, keys):
    # The application waits for the client, not for the model: the cut finds it between two chunks.
    with httpx.stream("GET", served.url + "/mythos/flood", headers=bearer(keys.mint()), timeout=10) as answer:
        assert answer.status_code == 200
        assert not served.app.state.ended.is_set()
        server.revoke(partner="acme")
        assert served.app.state.ended.wait(10)
        eventually(lambda: verifier.state().uses == 0, "the use is let go")


def test_answers_that_end_by_themselves_leave_no_task_thread_or_callback(served, server, verifier, keys):
    def tasks() -> int:
        answer = get(served, "/mythos/finite", f"Bearer {keys.mint()}")
        assert answer.content == b"more\n" * 3
        return int(answer.headers["tasks"])

    first = tasks()
    threads = threading.active_count()
    assert max(tasks() for _ in range(30)) <= first + 1
    assert threading.active_count() <= threads
    eventually(lambda: not verifier._uses.is_holding, "the uses are let go")
    index = server.revoke(partner="acme")
    eventually(lambda: server.acked_head > index, "the acknowledgement")
    assert sum(cut.uses for ack in server.streams[-1].acks for cut in ack.cuts) == 0


def test_an_answer_that_has_not_begun_becomes_the_refusal(served, server, verifier, keys):
    token = keys.mint()
    revoking = threading.Thread(
        target=lambda: (eventually(lambda: verifier.state().uses == 1, "the request"), server.revoke(partner="acme"))
    )
    revoking.start()
    answer = get(served, "/mythos/stuck", f"Bearer {token}")
    revoking.join()
    assert (answer.status_code, answer.json()["error"]) == (403, "REVOKED")
    assert served.app.state.ended.wait(10)


def test_p5_a_running_answer_is_cut_when_the_lease_lapses(served, server, keys):
    headers = {"Authorization": f"Bearer {keys.mint()}"}
    with httpx.stream("GET", f"{served.url}/mythos/endless", headers=headers, timeout=20) as answer:
        server.heartbeats = False
        began = time.monotonic()
        with pytest.raises(httpx.RemoteProtocolError):
            list(answer.iter_lines())
        assert time.monotonic() - began < 3


def test_a_client_that_goes_away_ends_the_use(served, verifier, keys):
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=10)
    connection.request("GET", "/mythos/endless", headers={"Authorization": f"Bearer {keys.mint()}"})
    connection.getresponse().read(5)
    connection.sock.close() if connection.sock else None
    connection.close()
    assert served.app.state.ended.wait(10)
    eventually(lambda: verifier.state().uses == 0, "the end of the use")


def test_an_applications_own_failure_passes(served, verifier, keys):
    assert get(served, "/mythos/fails", f"Bearer {keys.mint()}").status_code == 500
    eventually(lambda: verifier.state().uses == 0, "the end of the use")


def test_a_connection_of_an_unknown_kind_is_not_let_through(verifier):
    async def app(scope, receive, send):
        pytest.fail("it was let through")

    guarded = BearerMiddleware(app, verifier, by_path)
    with pytest.raises(RuntimeError, match="of type telepathy"):
        asyncio.run(guarded({"type": "telepathy"}, None, None))


class _Client:
    """The other end of an ASGI connection, for WebSockets: the server has no library for them installed."""

    def __init__(self, guarded, scope) -> None:
        self.sent: asyncio.Queue = asyncio.Queue()
        self.incoming: asyncio.Queue = asyncio.Queue()
        self.task = asyncio.create_task(guarded(scope, self.incoming.get, self.sent.put))

    async def next(self) -> dict:
        async with asyncio.timeout(10):
            return await self.sent.get()


def test_a_websocket_is_guarded_and_closed_when_its_token_is_revoked(verifier, server, keys):
    async def main() -> None:
        guarded = BearerMiddleware(Starlette(routes=[WebSocketRoute("/{model}/socket", socket_)]), verifier, by_path)
        scope = {"type": "websocket", "path": "/mythos/socket", "headers": [], "query_string": b"", "subprotocols": []}
        refused = _Client(guarded, dict(scope))
        assert await refused.next() == {"type": "websocket.close", "code": 1008, "reason": "MALFORMED"}
        await refused.task
        headers = [(b"authorization", f"Bearer {keys.mint()}".encode())]
        client = _Client(guarded, {**scope, "headers": headers})
        await client.incoming.put({"type": "websocket.connect"})
        assert (await client.next())["type"] == "websocket.accept"
        await client.incoming.put({"type": "websocket.receive", "text": "hello"})
        assert (await client.next())["text"] == "hello"
        await asyncio.to_thread(server.revoke, partner="acme")
        assert await client.next() == {"type": "websocket.close", "code": 1008, "reason": "REVOKED"}
        await client.task

    asyncio.run(main())


def test_an_application_that_goes_on_after_the_cut_reaches_nobody(verifier, server, keys):
    async def main() -> None:
        outcome: list[BaseException] = []

        async def stubborn(scope, receive, send):
            await send({"type": "http.response.start", "status": 200, "headers": []})
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                try:
                    await send({"type": "http.response.body", "body": b"late"})
                except OSError as shut:
                    outcome.append(shut)

        guarded = BearerMiddleware(stubborn, verifier, by_path)
        headers = [(b"authorization", f"Bearer {keys.mint()}".encode())]
        client = _Client(guarded, {"type": "http", "path": "/mythos/x", "headers": headers})
        assert (await client.next())["type"] == "http.response.start"
        await asyncio.to_thread(server.revoke, partner="acme")
        async with asyncio.timeout(10):
            await client.task
        assert client.sent.empty()
        assert outcome

    asyncio.run(main())


def test_a_body_that_ends_with_a_disconnect_is_no_body(verifier, keys):
    async def main() -> None:
        async def app(scope, receive, send):
            pytest.fail("it was let through")

        guarded = BearerMiddleware(app, verifier, by_body, max_body_bytes=100)
        headers = [(b"authorization", f"Bearer {keys.mint()}".encode())]
        client = _Client(guarded, {"type": "http", "path": "/", "headers": headers})
        await client.incoming.put({"type": "http.request", "body": b'{"model": "my', "more_body": True})
        await client.incoming.put({"type": "http.disconnect"})
        assert (await client.next())["status"] == 403

    asyncio.run(main())
