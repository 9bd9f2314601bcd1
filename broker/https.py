"""HTTPS requests to other parties: bounded in time and size, to a checked address, without redirects."""

import http.client
import ipaddress
import re
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from broker.errors import ConfigInvalid, IssuerUnavailable

TIMEOUT_S = 2.0
MAX_ANSWER_BYTES = 1 << 20
HTTPS_PORT = 443

_URL = re.compile(
    r"https://(?P<host>[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?|\[[0-9a-f:.]+\])(?::(?P<port>[1-9][0-9]{0,4}))?"
    r"(?P<path>/(?:(?![#\\\"<>])[!-~])*)?",
    re.ASCII,
)
# Ways to write an IPv4 address in IPv6, of which the inner one would be reached.
_WRAPPED = tuple(ipaddress.ip_network(net) for net in ("2002::/16", "2001::/32", "64:ff9b::/96", "64:ff9b:1::/48"))


@dataclass(frozen=True, slots=True)
class Reach:
    """Whom requests may go to. `private`: the `host:port` that may have a private address; None: any may.

    `ca_file` stands in place of the system's CAs.
    """

    private: frozenset[str] | None = frozenset()
    ca_file: Path | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer. It is no redirect."""

    status: int
    body: bytes


def ask(
    url: str,
    reach: Reach,
    *,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    timeout_s: float = TIMEOUT_S,
    max_bytes: int = MAX_ANSWER_BYTES,
) -> Answer:
    """GET `url`, or POST `body` to it. Only looking up the name is not bounded by `timeout_s`.

    Raises:
        IssuerUnavailable: No answer in time, one that is too large or a redirect, or an address that must not be.
    """
    match = _URL.fullmatch(url)
    if match is None:
        raise IssuerUnavailable(f"{ascii(url)[:200]} is not an https URL that is asked")
    host, port, path = match["host"].strip("[]"), int(match["port"] or HTTPS_PORT), match["path"] or "/"
    try:
        addresses = _addresses(host, port, reach)
        call = _Call(time.monotonic() + timeout_s)
        with call:
            return _answer(call, addresses, (host, port, path), reach, body, dict(headers or {}), max_bytes)
    except ssl.SSLCertVerificationError as bad:
        raise IssuerUnavailable(
            f"the certificate of {host}:{port} is not accepted: {bad.verify_message}",
            hint="name the CA that it is from (ca_file)",
        ) from bad
    except (OSError, http.client.HTTPException, ValueError, OverflowError) as bad:
        what = "no answer in time" if isinstance(bad, TimeoutError) else type(bad).__name__
        raise IssuerUnavailable(f"{host}:{port} did not answer as it should: {what}") from bad


def must_be_authorities(field: str, ca_file: Path | None) -> None:
    """Refuse a file without certificates now, instead of at the first request. Raises ConfigInvalid."""
    if ca_file is None:
        return
    try:
        ssl.create_default_context(cafile=str(ca_file))
    except OSError as bad:
        raise ConfigInvalid(field, (f"{ca_file} holds no certificate in PEM",)) from bad


def is_public(address: str) -> bool:
    """Tell whether an IP address is one of the Internet's: not this machine's, not a network's own, no wrapped one."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            return is_public(str(ip.ipv4_mapped))
        if any(ip in net for net in _WRAPPED):
            return False
    return ip.is_global and not ip.is_multicast and not ip.is_unspecified


class _Call:
    """One request under way, whose socket is cut when its time is over: a socket's timeout begins anew at each byte."""

    def __init__(self, deadline_s: float) -> None:
        self._deadline_s = deadline_s
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._timer = threading.Timer(self.left_s(), self._cut)
        self._timer.name, self._timer.daemon = "https-deadline", True
        self.is_over = False

    def left_s(self) -> float:
        """Return how long it may still take, a moment at least."""
        return max(0.001, self._deadline_s - time.monotonic())

    def uses(self, used: socket.socket) -> None:
        """Note the socket that is used from now on. Raises TimeoutError."""
        with self._lock:
            self._socket = used
            if self.is_over:
                raise TimeoutError

    def __enter__(self) -> Self:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()

    def _cut(self) -> None:
        with self._lock:
            self.is_over = True
            if self._socket is not None:
                with suppress(OSError):
                    # Not the TLS socket's own shutdown, after which it would read on in plain.
                    socket.socket.shutdown(self._socket, socket.SHUT_RDWR)


class _Connection(http.client.HTTPSConnection):
    """Connects to addresses that were looked up and checked before, so that a name cannot change in between."""

    def __init__(self, host: str, port: int, addresses: list[str], call: _Call, context: ssl.SSLContext) -> None:
        super().__init__(host, port, context=context)
        self._addresses = addresses
        self._call = call
        self._tls = context

    def connect(self) -> None:
        for position, address in enumerate(self._addresses):
            try:
                plain = socket.create_connection((address, self.port), timeout=self._call.left_s())
                break
            except OSError:
                if position == len(self._addresses) - 1:
                    raise
        self.sock = plain
        self._call.uses(plain)
        wrapped = self._tls.wrap_socket(plain, server_hostname=self.host, do_handshake_on_connect=False)
        self.sock = wrapped
        self._call.uses(wrapped)
        wrapped.settimeout(self._call.left_s())
        wrapped.do_handshake()


def _addresses(host: str, port: int, reach: Reach) -> list[str]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = list(dict.fromkeys(str(one[4][0]) for one in found))
    if reach.private is not None and f"{host}:{port}" not in reach.private:
        # One private address among public ones is how a name is pointed inside: none of them is used.
        for address in addresses:
            if not is_public(address):
                raise IssuerUnavailable(
                    f"{host}:{port} has the private address {address}",
                    hint=f'if that is meant, add "{host}:{port}" to identity.allow_private in the configuration',
                )
    return addresses


def _answer(
    call: _Call,
    addresses: list[str],
    where: tuple[str, int, str],
    reach: Reach,
    body: bytes | None,
    headers: dict[str, str],
    max_bytes: int,
) -> Answer:
    host, port, path = where
    context = ssl.create_default_context(cafile=str(reach.ca_file) if reach.ca_file is not None else None)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    connection = _Connection(host, port, addresses, call, context)
    try:
        connection.request(
            "GET" if body is None else "POST",
            path,
            body,
            {"Accept": "application/json", "Connection": "close"} | headers,
        )
        answer = connection.getresponse()
        if 300 <= answer.status < 400:  # noqa: PLR2004 - RFC 9110 §15.4
            raise IssuerUnavailable(f"{host}:{port} redirects, which is not followed", hint="configure the last URL")
        if answer.length is not None and answer.length > max_bytes:
            raise IssuerUnavailable(f"{host}:{port} answers with more than {max_bytes} bytes")
        data = answer.read(max_bytes + 1)
        if len(data) > max_bytes:
            raise IssuerUnavailable(f"{host}:{port} answers with more than {max_bytes} bytes")
        if call.is_over:
            raise TimeoutError
        return Answer(answer.status, data)
    except (OSError, http.client.HTTPException) as cut:
        if call.is_over:
            raise TimeoutError from cut
        raise
    finally:
        connection.close()
