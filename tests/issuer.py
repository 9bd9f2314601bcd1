"""A small OIDC issuer on loopback, which is as hostile as a test tells it to be."""

import base64
import hashlib
import json
import ssl
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlencode

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from tests.authority import Issued

AUDIENCE = "broker"


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def number(value: int) -> str:
    return b64(value.to_bytes((value.bit_length() + 7) // 8, "big"))


class SigningKey:
    """A key of an issuer, RS256 or ES256."""

    def __init__(self, kid: str, alg: str = "ES256") -> None:
        self.kid = kid
        self.alg = alg
        self.key: Any = (
            ec.generate_private_key(ec.SECP256R1())
            if alg == "ES256"
            else rsa.generate_private_key(public_exponent=65537, key_size=2048)
        )

    def jwk(self, **changes: Any) -> dict[str, Any]:
        numbers = self.key.public_key().public_numbers()
        if self.alg == "ES256":
            public = {
                "kty": "EC",
                "crv": "P-256",
                "x": b64(numbers.x.to_bytes(32, "big")),
                "y": b64(numbers.y.to_bytes(32, "big")),
            }
        else:
            public = {"kty": "RSA", "n": number(numbers.n), "e": number(numbers.e)}
        return {**public, "kid": self.kid, "alg": self.alg, "use": "sig", **changes}

    def sign(self, claims: dict[str, Any] | bytes, *, header: dict[str, Any] | bytes | None = None) -> str:
        if header is None:
            header = {"alg": self.alg, "kid": self.kid, "typ": "JWT"}
        parts = [part if isinstance(part, bytes) else json.dumps(part).encode() for part in (header, claims)]
        signed = ".".join(b64(part) for part in parts)
        return f"{signed}.{b64(self.raw(signed.encode()))}"

    def raw(self, message: bytes) -> bytes:
        if self.alg == "ES256":
            r, s = decode_dss_signature(self.key.sign(message, ec.ECDSA(hashes.SHA256())))
            return r.to_bytes(32, "big") + s.to_bytes(32, "big")
        filling: Any = padding.PKCS1v15()
        if self.alg.startswith("PS"):
            filling = padding.PSS(padding.MGF1(hashes.SHA256()), 32)
        signature: bytes = self.key.sign(message, filling, hashes.SHA256())
        return signature


class Issuer:
    """Serves discovery and keys. Set `answer` to do something else; `asked` counts requests by path."""

    def __init__(self, papers: Issued, *, path: str = "", host: str = "127.0.0.1") -> None:
        self.papers = papers
        self.path = path
        self.host = host
        self.port = 0
        self.keys = [SigningKey("one")]
        self.more_keys: list[Any] = []
        self.discovery: dict[str, Any] = {}
        self.asked: list[str] = []
        self.sent = 0
        self.answers: dict[str, Callable[[BaseHTTPRequestHandler], None]] = {}
        self.over = threading.Event()
        self.read_now: Callable[[], float] = time.time
        self._server: ThreadingHTTPServer | None = None

    @property
    def url(self) -> str:
        return f"https://{self.host}:{self.port}{self.path}"

    @property
    def place(self) -> str:
        """As `identity.allow_private` names it."""
        return f"{self.host}:{self.port}"

    def __enter__(self) -> "Issuer":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.stop()

    def start(self) -> None:
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                issuer._answer(self)

            do_POST = do_GET  # noqa: N815 - the library's name

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:
                """Clients that go away are what the tests are about."""

        self._server = Server(("127.0.0.1", self.port), Handler)
        self.port = self._server.server_address[1]
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.papers.certificate, self.papers.key)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """Be down: nobody listens at the port."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def claims(self, **changes: Any) -> dict[str, Any]:
        now = int(self.read_now())
        claims = {"iss": self.url, "aud": AUDIENCE, "sub": "u-1", "iat": now, "nbf": now, "exp": now + 600, **changes}
        return {name: value for name, value in claims.items() if value is not None}

    def token(self, *, key: SigningKey | None = None, header: Any = None, **changes: Any) -> str:
        return (key or self.keys[0]).sign(self.claims(**changes), header=header)

    def github_token(self, **changes: Any) -> str:
        claims = {
            "sub": "repo:octo-org/octo-repo:ref:refs/heads/main",
            "repository": "octo-org/octo-repo",
            "repository_owner": "octo-org",
            "repository_id": "456",
            "repository_owner_id": "123",
            "ref": "refs/heads/main",
            "event_name": "push",
            **changes,
        }
        return self.token(**claims)

    def pod_token(self, **changes: Any) -> str:
        account = {"name": "evals", "uid": UID}
        claims = {
            "sub": "system:serviceaccount:acme:evals",
            "kubernetes.io": {"namespace": "acme", "serviceaccount": account, "pod": {"name": "p", "uid": "x"}},
            **changes,
        }
        return self.token(**claims)

    def key_set(self) -> dict[str, Any]:
        return {"keys": [*(key.jwk() for key in self.keys), *self.more_keys]}

    def fetches(self) -> int:
        """How often the key set was asked for."""
        return sum(path.endswith("/jwks") for path in self.asked)

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        path = request.path.partition("?")[0]
        self.asked.append(path)
        if path in self.answers:
            self.answers[path](request)
        elif path == f"{self.path}/.well-known/openid-configuration":
            found = {"issuer": self.url, "jwks_uri": f"{self.url}/jwks", **self.discovery}
            self.reply(request, {name: value for name, value in found.items() if value is not None})
        elif path == f"{self.path}/jwks":
            self.reply(request, self.key_set())
        else:
            self.reply(request, {}, status=404)

    def reply(self, request: BaseHTTPRequestHandler, document: Any, *, status: int = 200, **headers: str) -> None:
        data = document if isinstance(document, bytes) else json.dumps(document).encode()
        request.send_response(status)
        for name, value in headers.items():
            request.send_header(name, value)
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        request.wfile.write(data)

    # Logins of humans.

    def offer_logins(self, subject: str, **claims: Any) -> None:
        """Let `subject` log in by browser and by device; whoever comes is that one. `claims` go into the token."""
        self.logins: dict[str, dict[str, str]] = {}
        self.approved = threading.Event()
        self._human = {"sub": subject, **claims}
        for name, answer in (("authorize", self._authorize), ("token", self._exchange), ("device", self._device)):
            self.answers[f"{self.path}/{name}"] = answer
        self.discovery |= {
            "authorization_endpoint": f"{self.url}/authorize?tenant=1",
            "token_endpoint": f"{self.url}/token",
            "device_authorization_endpoint": f"{self.url}/device",
            "code_challenge_methods_supported": ["S256"],
        }

    def _authorize(self, request: BaseHTTPRequestHandler) -> None:
        asked = dict(parse_qsl(request.path.partition("?")[2]))
        assert asked["response_type"] == "code"
        assert asked["code_challenge_method"] == "S256"
        code = f"code-{len(self.logins)}"
        self.logins[code] = asked
        back = urlencode({"code": code, "state": asked["state"], "iss": self.url})
        self.redirect(request, f"{asked['redirect_uri']}?{back}")

    def _device(self, request: BaseHTTPRequestHandler) -> None:
        asked = self._form(request)
        self.logins["device-1"] = {"client_id": asked["client_id"]}
        where = f"{self.url}/activate"
        answer = {"device_code": "device-1", "user_code": "WDJB-MJHT", "verification_uri": where, "expires_in": 600}
        self.reply(request, {**answer, "interval": 0})

    def _exchange(self, request: BaseHTTPRequestHandler) -> None:
        asked = self._form(request)
        begun = self.logins.get(asked.get("code") or asked.get("device_code", ""), {})
        is_ours = begun.get("client_id") == asked["client_id"]
        if asked["grant_type"] == "authorization_code":
            is_ours = is_ours and begun["redirect_uri"] == asked["redirect_uri"]
            is_ours = is_ours and begun["code_challenge"] == s256(asked["code_verifier"])
        elif not self.approved.is_set():
            self.reply(request, {"error": "authorization_pending"}, status=400)
            return
        if not is_ours:
            self.reply(request, {"error": "invalid_grant"}, status=400)
            return
        now = int(self.read_now())
        claims = {"aud": asked["client_id"], "nonce": begun.get("nonce"), "auth_time": now, **self._human}
        self.reply(request, {"id_token": self.token(**claims), "token_type": "Bearer", "access_token": "x"})

    def _form(self, request: BaseHTTPRequestHandler) -> dict[str, str]:
        return dict(parse_qsl(request.rfile.read(int(request.headers["Content-Length"])).decode()))

    # Ways to be hostile: each is an answer for `answers`.

    def hang(self, _request: BaseHTTPRequestHandler) -> None:
        self.over.wait(30)

    def trickle(self, request: BaseHTTPRequestHandler) -> None:
        """Send a byte now and then, so that no socket's timeout ever runs out."""
        request.send_response(200)
        request.send_header("Content-Length", "1000")
        request.end_headers()
        for _ in range(1000):
            request.wfile.write(b" ")
            request.wfile.flush()
            if self.over.wait(0.05):
                return

    def huge(self, request: BaseHTTPRequestHandler, *, says_so: bool = False, size: int = 10 << 20) -> None:
        request.send_response(200)
        if says_so:
            request.send_header("Content-Length", str(size))
        else:
            request.send_header("Transfer-Encoding", "chunked")
        request.end_headers()
        block = b" " * 65_536
        for _ in range(size // len(block)):
            request.wfile.write(block if says_so else b"10000\r\n" + block + b"\r\n")
            request.wfile.flush()
            self.sent += len(block)
        request.wfile.write(b"" if says_so else b"0\r\n\r\n")

    def redirect(self, request: BaseHTTPRequestHandler, to: str) -> None:
        self.reply(request, b"", status=302, Location=to)

    def review(self, request: BaseHTTPRequestHandler, status: Any, *, seen: list[Any]) -> None:
        """Answer a TokenReview with `status`, and keep what was asked and with which credentials."""
        body = json.loads(request.rfile.read(int(request.headers["Content-Length"])))
        seen.append((request.headers["Authorization"], body))
        self.reply(request, {**body, "status": status}, status=201)


UID = "6f1d9c3e-0b1a-4c5d-8e2f-3a4b5c6d7e8f"


def s256(verifier: str) -> str:
    """PKCE (RFC 7636 §4.6)."""
    return b64(hashlib.sha256(verifier.encode("ascii")).digest())
