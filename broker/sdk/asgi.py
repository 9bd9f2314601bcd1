"""ASGI middleware for a service in front of a model: no request passes without a token for what it asks."""

import asyncio
import hashlib
import json
import logging
import traceback
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from contextlib import AsyncExitStack
from typing import Any
from urllib.parse import quote

from broker.errors import Malformed, NotAllowed, NotHolder, Rejected
from broker.sdk.bearer import NoToken, sent_token
from broker.sdk.showing import certificate_in_header, certificate_shown, checked_origin, shown_by
from broker.sdk.uses import Use
from broker.sdk.verifier import Verifier
from broker.token.binding import ShownCertificate

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
ModelOf = Callable[[Scope, bytes], str]
"""Returns the model that will be dispatched to. Raising ValueError, KeyError or TypeError refuses the request."""

log = logging.getLogger("broker.sdk")

POLICY_VIOLATION = 1008
# An application that does not end when it is cancelled is left behind.
END_WITHIN_S = 5.0
# In which proxies tell of a client's certificate. Where no proxy was named, a client can set them itself.
_CERTIFICATE_HEADERS = frozenset({b"client-cert", b"client-cert-chain"})


class TooLarge(Malformed):
    """The body is larger than the middleware may read."""

    http_status = 413


class BearerMiddleware:
    """Verifies each HTTP request and WebSocket, and holds the use: when it is cancelled, the answer ends.

    Whatever `model_of` returns is what is authorised, so it must look where the application looks. When
    the model is named in the body, `max_body_bytes` lets the middleware read it; the application then
    gets the same bytes. `scope["broker.proof"]` is the proof.

    Tokens that are bound to a DPoP key need `origin`, the `https://HOST[:PORT]` that clients call; the Host
    header is not believed, because a proof for another service would come with that one's name. Tokens that
    are bound to a certificate need a server that tells of it (ASGI's `tls` extension), or a proxy in front that
    sets `certificate_header` and lets nobody else set it. Without that name, such headers (RFC 9440) are removed.
    """

    def __init__(
        self,
        app: App,
        verifier: Verifier,
        model_of: ModelOf,
        *,
        max_body_bytes: int = 0,
        origin: str = "",
        certificate_header: str = "",
    ) -> None:
        self._app = app
        self._origin = checked_origin(origin)
        self._certificate_header = certificate_header.lower().encode("ascii")
        self._not_for_app = _CERTIFICATE_HEADERS - {self._certificate_header}
        self._verifier = verifier
        self._model_of = model_of
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection. Lifespan passes; a kind of connection that is not known does not."""
        match scope["type"]:
            case "lifespan":
                await self._app(scope, receive, send)
            case "http" | "websocket":
                await self._guard(scope, receive, send)
            case kind:
                raise RuntimeError(f"cannot authorise a connection of type {kind}")

    async def _guard(self, scope: Scope, receive: Receive, send: Send) -> None:
        door = _Door(scope["type"] == "websocket", send, checks_dpop=bool(self._origin))
        async with AsyncExitStack() as held:
            try:
                sent = sent_token(_values(scope, b"authorization"), _values(scope, b"dpop"))
                shown = shown_by(sent, scope.get("method", "GET"), self._origin, _path(scope)) or self._certificate(
                    scope
                )
                body = b""
                if self._max_body_bytes and not door.is_websocket:
                    body, receive = await self._read(receive)
                # Of what was read here, a receipt says which request it was.
                hashed = hashlib.sha256(body).digest() if self._max_body_bytes and not door.is_websocket else None
                use = door.use = await held.enter_async_context(
                    self._verifier.use(sent.token, self._model(scope, body), proof=shown, request_hash=hashed)
                )
            except Rejected as why:
                await door.shut(why, self._verifier.realm)
                return
            use.count()
            scope["broker.proof"] = use.proof
            scope["headers"] = [one for one in scope["headers"] if one[0].lower() not in self._not_for_app]
            refusal = await self._serve(scope, receive, door, use)
        if refusal is not None:
            await door.shut(refusal, self._verifier.realm)

    def _certificate(self, scope: Scope) -> ShownCertificate | None:
        if self._certificate_header:
            # The proxy speaks to us, so the TLS of this connection is the proxy's own.
            values = _values(scope, self._certificate_header)
            return certificate_in_header(values[0].decode("latin-1")) if len(values) == 1 else None
        chain = (scope.get("extensions") or {}).get("tls", {}).get("client_cert_chain") or ()
        first = next(iter(chain), None)
        return certificate_shown(first) if isinstance(first, str) else None

    def _model(self, scope: Scope, body: bytes) -> str:
        try:
            return self._model_of(scope, body)
        except (ValueError, KeyError, TypeError) as bad:
            raise NotAllowed("the request names no model", hint="name the model to call") from bad

    async def _read(self, receive: Receive) -> tuple[bytes, Receive]:
        """Read the body, and return it with a `receive` that gives it again."""
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if len(body) > self._max_body_bytes:
                raise TooLarge(f"the body is larger than {self._max_body_bytes} bytes")
            if message["type"] != "http.request" or not message.get("more_body", False):
                break
        again: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return again.pop() if again else await receive()

        return body, replay

    async def _serve(self, scope: Scope, receive: Receive, door: "_Door", use: Use) -> Rejected | None:
        """Run the application until it ends or the use is cancelled; return why it was."""
        serving = asyncio.ensure_future(self._app(scope, receive, door.send))
        cancelled = asyncio.ensure_future(use.wait_cancelled())
        try:
            await asyncio.wait({serving, cancelled}, return_when=asyncio.FIRST_COMPLETED)
            if serving.done():
                await serving
                return None
            door.is_cut = True
            return cancelled.result()
        finally:
            serving.cancel()
            cancelled.cancel()
            await asyncio.wait({serving, cancelled}, timeout=END_WITHIN_S)
            if door.is_cut and serving.done():
                _let_go(serving, door.ended_in)
                door.ended_in.clear()


def _values(scope: Scope, header: bytes) -> list[bytes]:
    return [value for name, value in scope["headers"] if name.lower() == header]


def _path(scope: Scope) -> str:
    """Return the path as it was sent: decoded, two URLs would be one."""
    raw = scope.get("raw_path")
    path = raw.decode("latin-1") if isinstance(raw, bytes) else quote(scope["path"])
    return path.partition("?")[0]


def _let_go(served: "asyncio.Future[None]", ended_in: Sequence[BaseException]) -> None:
    """Free what the frames of an application that was cut hold on to.

    A generator that waits at its `yield` gets no exception: it ends when nobody refers to it any more, and
    tracebacks in circles would keep it until the garbage collector comes by.
    """
    try:
        served.result()
    except BaseException as error:  # noqa: BLE001 - it was cut, so what it ended with is of no interest
        log.debug("an application that was cut ended with %r", error)
        left: list[BaseException | None] = [error, *ended_in]
        seen: set[int] = set()
        while left:
            one = left.pop()
            if one is None or id(one) in seen:
                continue
            seen.add(id(one))
            traceback.clear_frames(one.__traceback__)
            one.__traceback__ = None
            left += (one.__cause__, one.__context__)
            left += getattr(one, "exceptions", ())


class _Door:
    """The way out to the client, which can be cut."""

    def __init__(self, is_websocket: bool, send: Send, *, checks_dpop: bool = False) -> None:
        self.is_websocket = is_websocket
        self._checks_dpop = checks_dpop
        self.is_cut = False
        # With what the application was stopped while it sent, in whichever of its tasks.
        self.ended_in: list[BaseException] = []
        self._send = send
        self._has_begun = False
        # Its receipt tells how much went out.
        self.use: Use | None = None

    async def send(self, message: Message) -> None:
        """Pass a message of the application on; nothing once it is cut."""
        if self.is_cut:
            raise OSError("the token is no longer accepted")
        self._has_begun = True
        try:
            await self._send(message)
        except BaseException as error:
            self._stopped(error)
            raise
        if self.use is not None:
            self.use.count(calls=0, size=len(message.get("body") or message.get("bytes") or message.get("text") or b""))

    def _stopped(self, error: BaseException) -> None:
        if self.is_cut:
            self.ended_in.append(error)

    async def shut(self, why: Rejected, realm: str) -> None:
        """Answer with the refusal, or end what has begun: without its end, so that no client takes it for whole."""
        if self.is_websocket:
            await self._send({"type": "websocket.close", "code": POLICY_VIOLATION, "reason": why.reason})
        elif not self._has_begun:
            await self._answer(why, realm)

    async def _answer(self, why: Rejected, realm: str) -> None:
        body = json.dumps({"error": why.reason, "message": why.message, "hint": why.hint}).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"cache-control", b"no-store"),
        ]
        if why.http_status in (401, 403):
            headers.append((b"www-authenticate", challenge(why, realm).encode("ascii")))
            if self._checks_dpop and why.http_status == 401:  # noqa: PLR2004 - as below
                headers.append((b"www-authenticate", dpop_challenge(why, realm).encode("ascii")))
        if why.retry_after_s is not None:
            headers.append((b"retry-after", str(max(1, round(why.retry_after_s))).encode()))
        await self._send({"type": "http.response.start", "status": why.http_status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})


def challenge(why: Rejected, realm: str) -> str:
    """Return the `WWW-Authenticate` value of RFC 6750 §3. Without a token it says nothing about why."""
    if isinstance(why, NoToken):
        return f'Bearer realm="{realm}"'
    error = "insufficient_scope" if why.http_status == 403 else "invalid_token"  # noqa: PLR2004 - the status of the RFC
    return f'Bearer realm="{realm}", error="{error}", error_description="{_quotable(why)}"'


def dpop_challenge(why: Rejected, realm: str) -> str:
    """Return the `WWW-Authenticate` value of RFC 9449 §7.1."""
    if isinstance(why, NoToken):
        return f'DPoP realm="{realm}", algs="ES256"'
    error = "invalid_dpop_proof" if isinstance(why, NotHolder) else "invalid_token"
    return f'DPoP realm="{realm}", error="{error}", error_description="{_quotable(why)}", algs="ES256"'


def _quotable(why: Rejected) -> str:
    # RFC 6750 §3: printable ASCII without quote and backslash.
    return "".join(char if " " <= char <= "~" and char not in '"\\' else "?" for char in why.message)
