"""HTTP connections on which a call ends by its deadline, however slowly the bytes come."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from http.cookiejar import DefaultCookiePolicy
from pathlib import Path
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool


class Bounded:
    """One call under way. `is_over`: its time ran out, and its connections were cut."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._connections: list[HTTPConnection] = []
        self._is_done = False
        self.is_over = False

    def uses(self, connection: HTTPConnection) -> None:
        """Note a connection that the call sends on."""
        with self._lock:
            self._connections.append(connection)

    def cut(self) -> None:
        """End the call: whoever reads or writes on its connections gets an error now."""
        with self._lock:
            if self._is_done:
                return
            self.is_over = True
            for connection in self._connections:
                if connection.sock is not None:
                    with suppress(OSError):
                        # Not the TLS socket's own shutdown, after which it would read on in plain.
                        socket.socket.shutdown(connection.sock, socket.SHUT_RDWR)

    def done(self) -> None:
        """The connections are somebody else's now."""
        with self._lock:
            self._is_done = True


# Connections are made deep inside requests, in the thread of the call.
_UNDER_WAY: ContextVar[Bounded | None] = ContextVar("call", default=None)


@contextmanager
def bounded(within_s: float) -> Iterator[Bounded]:
    """End what is sent inside the block after `within_s`.

    A socket's timeout starts again with each byte, so that a trickle would hold a thread for minutes.
    """
    call = Bounded()
    before = _UNDER_WAY.set(call)
    timer = threading.Timer(within_s, call.cut)
    timer.name, timer.daemon = "vault-deadline", True
    timer.start()
    try:
        yield call
    finally:
        call.done()
        timer.cancel()
        _UNDER_WAY.reset(before)


def make_session(ca_file: Path | None, pool_size: int) -> requests.Session:
    """Return a session that heeds nothing in the environment and keeps no cookie."""
    http = requests.Session()
    # The environment could name a proxy, another CA or a .netrc.
    http.trust_env = False
    http.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
    http.verify = str(ca_file) if ca_file is not None else True
    http.mount("https://", _Adapter(pool_connections=1, pool_maxsize=pool_size))
    http.mount("http://", _Adapter(pool_connections=1, pool_maxsize=pool_size))
    return http


def _note(connection: HTTPConnection) -> None:
    call = _UNDER_WAY.get()
    if call is not None:
        call.uses(connection)


class _Plain(HTTPConnection):
    def request(self, *args: Any, **kwargs: Any) -> None:
        _note(self)
        super().request(*args, **kwargs)


class _Encrypted(HTTPSConnection):
    def request(self, *args: Any, **kwargs: Any) -> None:
        _note(self)
        super().request(*args, **kwargs)


class _PlainPool(HTTPConnectionPool):
    ConnectionCls = _Plain


class _EncryptedPool(HTTPSConnectionPool):
    ConnectionCls = _Encrypted


class _Adapter(HTTPAdapter):
    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {"http": _PlainPool, "https": _EncryptedPool}
