"""An HTTP proxy with TLS in front of Vault that may alter answers, or make up its own."""

import http.client
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType

from tests.authority import Issued


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer on its way back."""

    status: int
    body: bytes
    headers: tuple[tuple[str, str], ...] = (("Content-Type", "application/json"),)


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as it came."""

    method: str
    path: str
    headers: dict[str, str] = field(repr=False)
    body: bytes


Alter = Callable[[Asked, Answered], Answered]


def unaltered(_asked: Asked, answered: Answered) -> Answered:
    return answered


def failing(status: int, body: bytes = b'{"errors":["injected"]}') -> Alter:
    """Answer everything with this status."""
    return lambda _asked, answered: replace(answered, status=status, body=body)


class AlteringProxy:
    """Terminates TLS, asks `upstream_port` over TLS, and passes on what `alter` makes of the answer."""

    def __init__(self, upstream_port: int, issued: Issued) -> None:
        self.alter: Alter = unaltered
        self.asked: list[Asked] = []
        trusting = ssl.create_default_context(cafile=str(issued.ca))
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _pass_on(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                asked = Asked(self.command, self.path, dict(self.headers), body)
                proxy.asked.append(asked)
                upstream = http.client.HTTPSConnection("127.0.0.1", upstream_port, timeout=10, context=trusting)
                try:
                    kept = {k: v for k, v in self.headers.items() if k.lower().startswith(("x-vault", "content-type"))}
                    upstream.request(self.command, self.path, body or None, kept)
                    answer = upstream.getresponse()
                    answered = proxy.alter(asked, Answered(answer.status, answer.read()))
                finally:
                    upstream.close()
                self.send_response(answered.status)
                for name, value in answered.headers:
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(answered.body)))
                self.end_headers()
                self.wfile.write(answered.body)

            do_GET = do_POST = do_PUT = _pass_on  # noqa: N815 - the library's names

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        serving.load_cert_chain(issued.certificate, issued.key)
        self._server.socket = serving.wrap_socket(self._server.socket, server_side=True)
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()

    def __enter__(self) -> "AlteringProxy":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=5)
