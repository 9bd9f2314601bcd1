"""Logging a human in at an OIDC provider: by the browser on this machine (PKCE), or by a code on another one."""

import base64
import hashlib
import hmac
import html
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, urlencode, urlsplit

from broker.edge.cli.problems import Misused, Unusable
from broker.errors import Malformed, Unauthenticated
from broker.https import Answer, Reach, ask
from broker.token.foreign import check_claims, foreign_json, parse_foreign

DEVICE_GRANT = "urn:ietf:params:oauth:grant-type:device_code"
# So that the provider says when the human gave proof of themselves (auth_time); approvals want that to be recent.
MAX_AGE_S = 86_400
SCOPE = "openid"
OK = 200
SLOWER_S = 5
DEFAULT_EVERY_S = 5
ASK_S = 10.0

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class LoggedIn:
    """A checked ID token. `is_bound`: its nonce is the thumbprint that was sent along."""

    token: str
    subject: str
    ends_at_s: int
    is_bound: bool


class Provider:
    """One issuer, as its discovery document says it is. `nonce` is what every login here is bound to."""

    def __init__(self, issuer: str, client_id: str, ca: Path | None, nonce: str) -> None:
        """Read the discovery document. Raises IssuerUnavailable, Unusable."""
        self._issuer = issuer
        self._client_id = client_id
        self._nonce = nonce
        # Whom the human chose is asked wherever it is; the CA is what vouches for it.
        self._reach = Reach(private=None, ca_file=ca)
        found = self._document(ask(f"{issuer}/.well-known/openid-configuration", self._reach, timeout_s=ASK_S))
        if found.get("issuer") != issuer:
            raise _not_as_it_should(issuer, "its discovery document is about another issuer")
        self._found = found

    def log_in_by_browser(
        self,
        open_browser: Callable[[str], object],
        say: Say,
        within_s: float,
        now: Callable[[], datetime],
        *,
        is_fresh: bool = False,
    ) -> LoggedIn:
        """Authorization code with PKCE, on a loopback redirect (RFC 8252 §7.3, RFC 7636).

        With `is_fresh` the provider is to ask the human again, although it knows them from a while ago.

        Raises:
            Unusable, IssuerUnavailable: Nobody came back in time, the provider refused, or what it gave is not right.
        """
        verifier, state = secrets.token_urlsafe(48), secrets.token_urlsafe(24)
        with _Redirect(state, self._issuer) as redirect:
            query = urlencode(
                {
                    "response_type": "code",
                    "client_id": self._client_id,
                    "redirect_uri": redirect.uri,
                    "scope": SCOPE,
                    "state": state,
                    "nonce": self._nonce,
                    "code_challenge": _s256(verifier),
                    "code_challenge_method": "S256",
                    # Not 0, which some providers take for no number.
                    **({"prompt": "login", "max_age": "60"} if is_fresh else {"max_age": str(MAX_AGE_S)}),
                }
            )
            endpoint = self._endpoint("authorization_endpoint")
            url = f"{endpoint}{'&' if '?' in endpoint else '?'}{query}"
            say(f"log in at: {url}")
            open_browser(url)
            code = redirect.code(within_s)
            uri = redirect.uri
        answer = self._post(
            "token_endpoint",
            grant_type="authorization_code",
            code=code,
            redirect_uri=uri,
            client_id=self._client_id,
            code_verifier=verifier,
        )
        if answer.status != OK:
            raise self._refused(answer)
        return self._checked(self._document(answer), now(), must_be_bound=True)

    def log_in_by_device(self, say: Say, within_s: float, now: Callable[[], datetime]) -> LoggedIn:
        """Device authorization (RFC 8628): the human types a code on a machine that has a browser.

        Raises:
            Unusable, IssuerUnavailable: As `log_in_by_browser`.
        """
        answer = self._post("device_authorization_endpoint", client_id=self._client_id, scope=SCOPE, nonce=self._nonce)
        if answer.status != OK:
            raise self._refused(answer)
        found = self._document(answer)
        device, user, where = (_text(found, name) for name in ("device_code", "user_code", "verification_uri"))
        every = found.get("interval", DEFAULT_EVERY_S)
        every_s = float(every) if isinstance(every, int) and 0 <= every <= 60 else DEFAULT_EVERY_S  # noqa: PLR2004 - a minute
        say(f"on any machine, open {where} and type: {user}")
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            time.sleep(max(every_s, 0.2))
            answer = self._post(
                "token_endpoint", grant_type=DEVICE_GRANT, device_code=device, client_id=self._client_id
            )
            if answer.status == OK:
                return self._checked(self._document(answer), now(), must_be_bound=False)
            error = self._document(answer).get("error")
            if error == "slow_down":
                every_s += SLOWER_S
            elif error != "authorization_pending":
                raise self._refused(answer)
        raise Unusable("nobody logged in in time", reason="CONTEXT", hint="broker login --device, and be quicker")

    def _checked(self, found: Mapping[str, Any], now: datetime, *, must_be_bound: bool) -> LoggedIn:
        """Check the ID token (OpenID Connect Core §3.1.3.7); it came from the issuer itself, so TLS vouches for it."""
        text = _text(found, "id_token")
        try:
            token = parse_foreign(text)
            ends_at_s = check_claims(token.claims, issuer=self._issuer, audience=self._client_id, now=now)
        except (Malformed, Unauthenticated) as bad:
            raise _not_as_it_should(self._issuer, bad.message) from None
        nonce = token.claims.get("nonce")
        # A token that was made for another login must not become this one's.
        if nonce != self._nonce and (must_be_bound or nonce is not None):
            raise _not_as_it_should(self._issuer, "its token is of another login (nonce)")
        return LoggedIn(text, str(token.claims["sub"]), ends_at_s, nonce is not None)

    def _post(self, endpoint: str, **fields: str) -> Answer:
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        body = urlencode(fields).encode("ascii")
        return ask(self._endpoint(endpoint), self._reach, body=body, headers=headers, timeout_s=ASK_S)

    def _endpoint(self, name: str) -> str:
        url = self._found.get(name)
        if not isinstance(url, str) or not url.startswith("https://") or not url.isascii() or not url.isprintable():
            what = "device logins" if name.startswith("device") else name
            raise Misused(f"{self._issuer} offers no {what}", hint="log in the other way, with or without --device")
        return url

    def _document(self, answer: Answer) -> Mapping[str, Any]:
        try:
            found = foreign_json(answer.body)
        except Malformed as bad:
            raise _not_as_it_should(self._issuer, bad.message) from bad
        if not isinstance(found, dict):
            raise _not_as_it_should(self._issuer, "it answers with something else than an object")
        return found

    def _refused(self, answer: Answer) -> Unusable:
        found = self._document(answer)
        why = str(found.get("error_description") or found.get("error") or f"status {answer.status}")[:200]
        return Unusable(f"{self._issuer} refused the login: {why}", reason="CONTEXT", hint="try again")


class _Redirect:
    """Where the browser comes back to: a port of this machine, for one answer with the right state."""

    def __init__(self, state: str, issuer: str) -> None:
        redirect = self
        self._state = state
        self._issuer = issuer
        self._came = threading.Event()
        self._code = ""
        self._error = ""

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                redirect._answer(self)

            def log_message(self, *_: object) -> None:
                """Say nothing: the code is in the line."""

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self._place = f"127.0.0.1:{self._server.server_address[1]}"
        self.uri = f"http://{self._place}/callback"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def code(self, within_s: float) -> str:
        """Wait for the code. Raises Unusable."""
        if not self._came.wait(within_s):
            raise Unusable("nobody logged in in time", reason="CONTEXT", hint="broker login, and be quicker")
        if self._error:
            raise Unusable(f"{self._issuer} refused the login: {self._error}", reason="CONTEXT", hint="try again")
        return self._code

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        url = urlsplit(request.path)
        given = {name: values[0] for name, values in parse_qs(url.query).items() if len(values) == 1}
        # A page of somebody else's that sends the browser here does not know the state, and ends nothing.
        is_ours = (
            url.path == "/callback"
            and request.headers.get("Host") == self._place
            and hmac.compare_digest(given.get("state", "").encode(), self._state.encode())
            # RFC 9207: which issuer it comes from, where it says so.
            and given.get("iss", self._issuer) == self._issuer
            and not self._came.is_set()
        )
        if not is_ours:
            _page(request, 400, "This is not the login that was begun.")
            return
        self._code, self._error = given.get("code", ""), given.get("error", "")[:200]
        if not self._code and not self._error:
            self._error = "it sent no code"
        _page(request, OK, "The login failed." if self._error else "You are logged in; close this window.")
        self._came.set()


def _page(request: BaseHTTPRequestHandler, status: int, text: str) -> None:
    data = f"<!doctype html><title>broker login</title><p>{html.escape(text)}".encode()
    request.send_response(status)
    request.send_header("Content-Type", "text/html; charset=utf-8")
    request.send_header("Content-Length", str(len(data)))
    request.send_header("Cache-Control", "no-store")
    request.send_header("Referrer-Policy", "no-referrer")
    request.end_headers()
    request.wfile.write(data)


def _s256(verifier: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(verifier.encode("ascii")).digest()).rstrip(b"=").decode("ascii")


def _text(found: Mapping[str, Any], name: str) -> str:
    value = found.get(name)
    if not isinstance(value, str) or not value:
        raise Unusable(f"the provider's answer has no {name}", reason="CONTEXT", hint="try again")
    return value


def _not_as_it_should(issuer: str, why: str) -> Unusable:
    return Unusable(f"{issuer} does not answer as it should: {why}", reason="CONTEXT", hint="check --issuer")
