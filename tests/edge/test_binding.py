"""A stolen bound token is useless: a real broker, and services in front of a model by gRPC and by HTTP."""

import asyncio
import base64
import ssl
import threading
from concurrent import futures
from contextlib import contextmanager
from urllib.parse import quote

import grpc
import grpc.aio
import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from broker.sdk import Client, DpopKey, Spec
from broker.sdk.asgi import BearerMiddleware
from broker.sdk.asking import OwnCertificate
from broker.sdk.failures import failure_of
from broker.sdk.grpc_interceptor import PROOF, AioBearerInterceptor, BearerInterceptor
from broker.token.binding import Bound, Method, ShownCertificate
from broker.token.claims import TOKEN_TYP, decode_claims
from broker.token.jws import parse_jws
from broker.v1 import tokens_pb2
from tests.served import POLICY, Served, request_id
from tests.waiting import eventually

ORIGIN = "https://models.example"
CALL = "/models.Models/Ask"
BOUND_POLICY = POLICY.replace("users: [alice]\n", "users: [alice, dora, max, ann, audra]\n", 1).replace(
    "grants:\n",
    "grants:\n"
    + "".join(
        f"  - {{id: {user}-s, partner: acme, realm: evaluation, models: [mythos], environments: [acme-ci], "
        f"users: [{user}], ttl: {{default: 10m, max: 1h}}, {extra}}}\n"
        for user, extra in (
            ("max", "binding: mtls"),
            ("dora", "binding: dpop"),
            ("ann", "binding: any"),
            ("audra", "binding: mtls, mode: audit"),
        )
    ),
    1,
)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with Served(tmp_path_factory.mktemp("served"), policy=BOUND_POLICY) as served:
        yield served


@pytest.fixture(scope="module")
def client(served):
    with Client.connect(served.endpoint, identity=served.identity("acme")) as client:
        yield client


@pytest.fixture(scope="module")
def verifier(served):
    with served.verifier() as verifier:
        yield verifier


@pytest.fixture(scope="module")
def key():
    return DpopKey()


def der(papers) -> bytes:
    return ssl.PEM_cert_to_DER_cert(papers.certificate.read_text().strip())


def minted(client, binding, user="alice"):
    return client.mint(realm="evaluation", partner="acme", models=["mythos"], user=user, binding=binding)


def to_key(key) -> Bound:
    return Bound(Method.DPOP, key.thumbprint)


def claims_of(token):
    return decode_claims(parse_jws(token, typ=TOKEN_TYP).payload)


def reason_of(call):
    try:
        call()
    except grpc.RpcError as error:
        return failure_of(error).reason
    return "DONE"


def test_a_token_says_to_what_it_is_bound(served, client, key):
    own = Bound.to_certificate(ShownCertificate.of_der(der(served.papers["acme"])).sha256)
    other = Bound.to_certificate(b"o" * 32)
    assert claims_of(minted(client, OwnCertificate()).text).cnf == own.cnf
    assert claims_of(minted(client, other).text).cnf == other.cnf
    assert claims_of(minted(client, to_key(key)).text).cnf == {"jkt": key.thumbprint}
    assert claims_of(minted(client, None).text).cnf is None
    batch = [Spec("evaluation", "acme", ["mythos"], "alice", binding=one) for one in (other, None, OwnCertificate())]
    assert [claims_of(one.text).cnf for one in client.mint_batch(batch)] == [other.cnf, None, own.cnf]


@pytest.mark.parametrize(
    ("binding", "field"),
    [
        (tokens_pb2.Binding(), "binding"),
        (tokens_pb2.Binding(jkt=""), "binding"),
        (tokens_pb2.Binding(jkt="a" * 42), "binding"),
        (tokens_pb2.Binding(jkt="a" * 42 + "="), "binding"),
        (tokens_pb2.Binding(x5t_s256=b"a" * 31), "binding"),
        (tokens_pb2.Binding(x5t_s256=b"a" * 33), "binding"),
    ],
    ids=str,
)
def test_p7_a_binding_to_nothing_is_refused_and_named(served, binding, field):
    request = tokens_pb2.MintRequest(request_id=request_id(), spec=served.spec(binding=binding))
    with pytest.raises(grpc.RpcError) as caught:
        served.tokens().Mint(request, timeout=10)
    failure = failure_of(caught.value)
    assert (failure.reason, failure.metadata["field"]) == ("INVALID", field)
    assert failure.hint


def test_a_grant_that_demands_a_binding_gives_no_token_without_it(served, client, key):
    ways = {"none": None, "mtls": Bound.to_certificate(b"o" * 32), "dpop": to_key(key)}
    for user, allowed in (("max", {"mtls"}), ("dora", {"dpop"}), ("ann", {"mtls", "dpop"}), ("audra", set(ways))):
        for way, binding in ways.items():
            if way in allowed:
                assert minted(client, binding, user).grant == f"{user}-s"
                continue
            spec = served.spec(user=user)
            if binding is not None:
                spec.binding.jkt = key.thumbprint if way == "dpop" else ""
                if way == "mtls":
                    spec.binding.x5t_s256 = b"o" * 32
            with pytest.raises(grpc.RpcError) as caught:
                served.tokens().Mint(tokens_pb2.MintRequest(request_id=request_id(), spec=spec), timeout=10)
            assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
            failure = failure_of(caught.value)
            assert failure.reason == "BINDING_NEEDED", (user, way)
            assert failure.metadata["binding"] == {"max": "mtls", "dora": "dpop", "ann": "any"}[user]
            assert failure.hint


@contextmanager
def grpc_service(served, verifier, **options):
    server = grpc.server(
        futures.ThreadPoolExecutor(4), interceptors=(BearerInterceptor(verifier, lambda *_: "mythos", **options),)
    )
    answer = grpc.unary_unary_rpc_method_handler(lambda *_: PROOF.get().claims.jti.encode())
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("models.Models", {"Ask": answer}),))
    own = served.authority.server("model-service")
    credentials = grpc.ssl_server_credentials(
        [(own.key.read_bytes(), own.certificate.read_bytes())],
        root_certificates=own.ca.read_bytes(),
        require_client_auth=True,
    )
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()

    def ask(name: str, *metadata: tuple[str, str]):
        with grpc.secure_channel(f"127.0.0.1:{port}", served.identity(name).credentials()) as channel:
            return channel.unary_unary(CALL)(b"", metadata=metadata, timeout=10).decode()

    try:
        yield ask
    finally:
        server.stop(None).wait(10)


def test_a_stolen_token_that_is_bound_to_a_certificate_is_useless_at_a_grpc_service(served, client, verifier):
    bound, free = minted(client, OwnCertificate(), "max"), minted(client, None)
    served.until_accepted(verifier, free.text)
    with grpc_service(served, verifier) as ask:
        for _ in range(2):
            assert ask("acme", ("authorization", f"Bearer {bound.text}")) == bound.id
            assert reason_of(lambda: ask("globex", ("authorization", f"Bearer {bound.text}"))) == "NOT_HOLDER"
            # What is not bound is as good as before, for whoever has it.
            assert ask("globex", ("authorization", f"Bearer {free.text}")) == free.id
        with pytest.raises(grpc.RpcError) as caught:
            ask("globex", ("authorization", f"Bearer {bound.text}"))
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_a_stolen_token_that_is_bound_to_a_certificate_is_useless_at_a_grpc_service_of_asyncio(
    served, client, verifier
):
    bound = minted(client, OwnCertificate(), "max")
    served.until_accepted(verifier, minted(client, None).text)
    own = served.authority.server("aio-service")

    async def answer(*_):
        return PROOF.get().claims.jti.encode()

    async def asked():
        server = grpc.aio.server(interceptors=(AioBearerInterceptor(verifier, lambda *_: "mythos"),))
        handlers = {"Ask": grpc.unary_unary_rpc_method_handler(answer)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("models.Models", handlers),))
        credentials = grpc.ssl_server_credentials(
            [(own.key.read_bytes(), own.certificate.read_bytes())], own.ca.read_bytes(), require_client_auth=True
        )
        port = server.add_secure_port("127.0.0.1:0", credentials)
        await server.start()
        found = []
        for name in ("acme", "globex"):
            async with grpc.aio.secure_channel(f"127.0.0.1:{port}", served.identity(name).credentials()) as channel:
                try:
                    call = channel.unary_unary(CALL)(
                        b"", metadata=(("authorization", f"Bearer {bound.text}"),), timeout=10
                    )
                    found.append((await call).decode())
                except grpc.aio.AioRpcError as refused:
                    found.append(failure_of(refused).reason)
        await server.stop(None)
        return found

    assert asyncio.run(asked()) == [bound.id, "NOT_HOLDER"]


def test_a_stolen_token_that_is_bound_to_a_key_is_useless_at_a_grpc_service(served, client, verifier, key):
    bound = minted(client, to_key(key), "dora")
    served.until_accepted(verifier, minted(client, None).text)
    dpop = ("authorization", f"DPoP {bound.text}")
    with grpc_service(served, verifier, origin=ORIGIN) as ask:
        proof = key.proof("POST", ORIGIN + CALL, bound.text)
        # Whose connection it is does not matter here.
        assert ask("globex", dpop, ("dpop", proof)) == bound.id
        for metadata in (
            (dpop, ("dpop", proof)),
            (dpop,),
            (dpop, ("dpop", DpopKey().proof("POST", ORIGIN + CALL, bound.text))),
            (dpop, ("dpop", key.proof("POST", f"{ORIGIN}/models.Models/Other", bound.text))),
            (dpop, ("dpop", key.proof("POST", f"https://evil.example{CALL}", bound.text))),
            (dpop, ("dpop", key.proof("POST", ORIGIN + CALL, bound.text)), ("dpop", "another")),
            (("authorization", f"Bearer {bound.text}"),),
            (("authorization", f"Bearer {bound.text}"), ("dpop", key.proof("POST", ORIGIN + CALL, bound.text))),
        ):
            assert reason_of(lambda metadata=metadata: ask("acme", *metadata)) == "NOT_HOLDER", metadata
    with grpc_service(served, verifier) as ask:
        # A service that does not know by what name it is called cannot check, and refuses.
        fresh = ("dpop", key.proof("POST", ORIGIN + CALL, bound.text))
        assert reason_of(lambda: ask("acme", dpop, fresh)) == "NOT_HOLDER"


@contextmanager
def http_service(verifier, *, told=None, **options):
    """`told` stands for the server: it puts the client's certificate into the scope, as the TLS layer does."""

    async def who(request):
        headers = [name for name, _ in request.headers.items()]
        return JSONResponse({"id": request.scope["broker.proof"].claims.jti, "headers": headers})

    app = Starlette(routes=[Route("/v1/{rest:path}", who, methods=["GET", "POST"])])
    guarded = BearerMiddleware(app, verifier, lambda *_: "mythos", **options)

    async def server(scope, receive, send):
        if told is not None and scope["type"] == "http":
            scope = {**scope, "extensions": {"tls": {"client_cert_chain": told}}}
        await guarded(scope, receive, send)

    running = uvicorn.Server(uvicorn.Config(server, port=0, log_level="critical", lifespan="off"))
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    eventually(lambda: running.started, "the server is up")
    port = running.servers[0].sockets[0].getsockname()[1]

    def ask(path: str, *headers: tuple[str, str], method: str = "POST"):
        return httpx.request(method, f"http://127.0.0.1:{port}{path}", headers=list(headers), timeout=10)

    try:
        yield ask
    finally:
        running.should_exit = True
        thread.join(10)


def test_a_stolen_token_that_is_bound_to_a_key_is_useless_at_an_http_service(served, client, verifier, key):
    bound, free = minted(client, to_key(key), "dora"), minted(client, None)
    served.until_accepted(verifier, free.text)
    dpop, url = ("Authorization", f"DPoP {bound.text}"), f"{ORIGIN}/v1/a%20b"
    with http_service(verifier, origin="https://Models.example:443") as ask:
        proof = key.proof("POST", url, bound.text)
        assert ask("/v1/a%20b?c=d", dpop, ("DPoP", proof)).json()["id"] == bound.id
        assert ask("/v1/a%20b", ("Authorization", f"Bearer {free.text}")).json()["id"] == free.id
        fresh = lambda: ("DPoP", key.proof("POST", url, bound.text))  # noqa: E731
        for headers, why in (
            ((dpop, ("DPoP", proof)), "before"),
            ((dpop,), "no DPoP proofs"),
            ((dpop, fresh(), fresh()), "2 DPoP proofs"),
            ((("Authorization", f"Bearer {bound.text}"), fresh()), "must come with it"),
            ((("Authorization", f"DPoP {free.text}"), ("DPoP", key.proof("POST", url, free.text))), "no key"),
            ((dpop, ("DPoP", key.proof("GET", url, bound.text))), "method"),
            ((dpop, ("DPoP", DpopKey().proof("POST", url, bound.text))), "another key"),
            # A service that is given a token and a proof cannot pass them on under its own name.
            (
                (dpop, ("DPoP", key.proof("POST", "https://evil.example/v1/a", bound.text)), ("Host", "evil.example")),
                "URL",
            ),
        ):
            answer = ask("/v1/a%20b", *headers)
            assert (answer.status_code, answer.json()["error"]) == (401, "NOT_HOLDER"), headers
            assert why in answer.json()["message"]
            challenges = answer.headers.get_list("www-authenticate")
            assert any(one.startswith("DPoP ") and 'error="invalid_dpop_proof"' in one for one in challenges)
            assert all('algs="ES256"' in one for one in challenges if one.startswith("DPoP "))
        assert ask("/v1/other", dpop, fresh()).status_code == 401
        assert ask("/v1/a%20b", dpop, fresh(), method="GET").status_code == 401
        nothing = ask("/v1/a%20b").headers.get_list("www-authenticate")
        assert nothing == ['Bearer realm="evaluation"', 'DPoP realm="evaluation", algs="ES256"']
    with http_service(verifier) as ask:
        assert ask("/v1/a", dpop, ("DPoP", key.proof("POST", f"{ORIGIN}/v1/a", bound.text))).status_code == 401
        # No challenge for what is not offered.
        assert not any(one.startswith("DPoP") for one in ask("/v1/a").headers.get_list("www-authenticate"))


def test_a_stolen_token_that_is_bound_to_a_certificate_is_useless_at_an_http_service(served, client, verifier):
    bound = minted(client, OwnCertificate(), "max")
    served.until_accepted(verifier, minted(client, None).text)
    bearer = ("Authorization", f"Bearer {bound.text}")
    own, other = (served.papers[name].certificate.read_text() for name in ("acme", "globex"))
    field = ":" + base64.b64encode(der(served.papers["acme"])).decode() + ":"
    with http_service(verifier, told=[own]) as ask:
        assert ask("/v1/a", bearer).json()["id"] == bound.id
    with http_service(verifier, told=[other, own]) as ask:
        # Only the leaf counts, and a header says nothing.
        assert ask("/v1/a", bearer).status_code == 401
        assert ask("/v1/a", bearer, ("Client-Cert", field)).status_code == 401
    with http_service(verifier) as ask:
        assert ask("/v1/a", bearer, ("Client-Cert", field)).json()["error"] == "NOT_HOLDER"
        free = ("Authorization", f"Bearer {minted(client, None).text}")
        # Nor does the application see what a client says of its own certificate.
        assert "client-cert" not in ask("/v1/a", free, ("Client-Cert", field), ("X-Other", "a")).json()["headers"]
    for header, value in (("Client-Cert", field), ("X-Client-Cert", quote(own))):
        with http_service(verifier, certificate_header=header, told=[other]) as ask:
            assert ask("/v1/a", bearer, (header, value)).json()["id"] == bound.id
            assert ask("/v1/a", bearer).status_code == 401
            assert ask("/v1/a", bearer, (header, value), (header, value)).status_code == 401
            assert ask("/v1/a", bearer, (header, quote(other))).status_code == 401
            assert ask("/v1/a", bearer, (header, "nonsense")).status_code == 401
