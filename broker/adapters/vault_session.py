"""The broker's session with Vault (or OpenBao): logged in, renewed, bounded in time, quick to say that it is away."""

import ipaddress
import random
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import hvac.exceptions
import requests
from hvac.adapters import JSONAdapter

from broker.adapters.circuit import Circuit, Passage
from broker.adapters.vault_http import bounded, make_session
from broker.adapters.vault_login import Login, VaultToken, lookup_self, renew_self, revoke_self
from broker.errors import ConfigInvalid, Failure, SignerUnavailable
from broker.service.metering import Meter
from broker.service.ports import Clock

Answer = TypeVar("Answer")
NS_PER_S = 1_000_000_000
TICK_S = 1.0
# While Vault is away, a try must end soon: with the second between two tries it is found within 5 s of its return.
PROBE_CONNECT_S = 1.0
PROBE_READ_S = 2.0
# Renewed between half and seven tenths of the life, so that many brokers do not come at once.
RENEW_FROM, RENEW_JITTER = 0.5, 0.2
# Without other calls, so often is looked whether Vault is there and our token good; each tick while it is away.
LOOK_EVERY_NS = 5 * NS_PER_S
_TOO_SLOW = "does not answer in time"


@dataclass(frozen=True, slots=True)
class VaultServer:
    """Where Vault is. Plain HTTP is for loopback alone (an agent beside us, a test)."""

    address: str
    ca_file: Path | None = None
    namespace: str | None = None
    connect_timeout_s: float = 2.0
    read_timeout_s: float = 5.0
    pool_size: int = 8

    def __post_init__(self) -> None:
        try:
            url = urlsplit(self.address)
            # Reading it checks it.
            is_port = url.port != 0
        except ValueError:
            raise ConfigInvalid("vault.address", ("must be https://host:port",)) from None
        if not is_port or url.scheme not in ("http", "https") or not url.hostname or url.query or url.fragment:
            raise ConfigInvalid("vault.address", ("must be https://host:port",))
        if url.username is not None:
            raise ConfigInvalid("vault.address", ("must hold no user name",))
        if url.scheme == "http" and not _is_loopback(url.hostname):
            raise ConfigInvalid("vault.address", ("must be https: only loopback may be reached without TLS",))


@dataclass(frozen=True, slots=True)
class _Held:
    token: VaultToken
    renew_at_ns: int | None
    full_life_s: int


@dataclass(frozen=True, slots=True)
class _Fault:
    """Why there is no answer. `is_up`: Vault itself refused, so it is not away."""

    outcome: str
    text: str
    cause: Exception
    is_up: bool = False


class Refused(SignerUnavailable):
    """Vault is there, and refuses what was asked: a policy, a key or a version is not as the broker needs it."""


class VaultSession:
    """Calls Vault for everybody in this process. Safe for use by several threads.

    It reads neither VAULT_* nor proxy variables nor ~/.vault-token, and follows no redirect, which would
    carry the token elsewhere. No error holds a token, a secret id or Vault's own words (P12).
    """

    def __init__(
        self,
        server: VaultServer,
        login: Login,
        clock: Clock,
        meter: Meter,
        *,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._server = server
        self._login = login
        self._clock = clock
        self._meter = meter
        self._jitter = jitter
        self._circuit = Circuit("Vault", clock)
        self._login_turn = threading.Lock()
        self._held: _Held | None = None
        self._asked_ns = clock.boottime_ns()
        self._closing = threading.Event()
        self._http = make_session(server.ca_file, server.pool_size)
        self._thread = threading.Thread(target=self._run, name="vault-renewal", daemon=True)

    def start(self) -> None:
        """Log in and renew in the background. A Vault that is away is not an error."""
        self._thread.start()

    def call(
        self, operation: str, work: Callable[[JSONAdapter], object], *, read_timeout_s: float | None = None
    ) -> Mapping[str, Any]:
        """Do `work`, one call by hvac, and return the answer's JSON object.

        Vault may have done it although there is no answer. A refused token is replaced, once.

        Raises:
            SignerUnavailable: No answer in time, Vault is away, or it refused; the cause is kept.
        """
        with self._circuit.passage() as passage:
            token = self._token(passage)
            answer = self._try(operation, passage, work, token, read_timeout_s)
            if isinstance(answer, _Fault) and answer.outcome == "forbidden":
                fresh = self._replaced(passage, token)
                if fresh is not token:
                    answer = self._try(operation, passage, work, fresh, read_timeout_s)
        if isinstance(answer, _Fault):
            raise _unavailable(operation, answer)
        if not isinstance(answer, Mapping):
            raise SignerUnavailable(f"Vault answered something that makes no sense, asked to {operation}")
        return answer

    def problem(self) -> str:
        """Return why Vault cannot be asked now, or nothing. Never does I/O; holds no secret."""
        return self._circuit.problem()

    def close(self) -> None:
        """End the session: give the token back if it is ours, as far as Vault can be reached."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join(timeout=10)
        held, self._held = self._held, None
        if held is not None and held.token.is_ours:
            with suppress(Failure), self._circuit.passage() as passage:
                self._try("revoke-self", passage, revoke_self, held.token, PROBE_READ_S)
        self._http.close()

    def _token(self, passage: Passage) -> VaultToken:
        held = self._held
        if held is not None:
            return held.token
        with self._login_turn:
            return self._held.token if self._held is not None else self._log_in(passage)

    def _replaced(self, passage: Passage, refused: VaultToken) -> VaultToken:
        """Return another token, or `refused` itself if it is good and only what was asked is not allowed."""
        with self._login_turn:
            if self._held is not None and self._held.token is not refused:
                return self._held.token
            # Logging in at every refusal would fill Vault with tokens.
            looked = self._try("lookup-self", passage, lookup_self, refused)
            if not isinstance(looked, _Fault):
                return refused
            if looked.outcome != "forbidden":
                raise _unavailable("lookup-self", looked)
            return self._log_in(passage)

    def _log_in(self, passage: Passage) -> VaultToken:
        if self._closing.is_set():
            raise SignerUnavailable("the Vault session is closed")
        passage.must_go_on()
        answer = self._try("login", passage, self._login.log_in, None)
        if isinstance(answer, _Fault):
            raise _unavailable("login", answer)
        self._hold(answer, full_life_s=answer.lasts_s)
        return answer

    def _hold(self, token: VaultToken, *, full_life_s: int) -> None:
        share = RENEW_FROM + RENEW_JITTER * self._jitter()
        due_ns = self._clock.boottime_ns() + int(token.lasts_s * share * NS_PER_S)
        self._held = _Held(token, due_ns if token.lasts_s else None, full_life_s)

    def _run(self) -> None:
        while not self._closing.is_set():
            # What fails here is tried again at the next tick; who calls is told meanwhile.
            with suppress(Failure):
                self._look_after()
            self._closing.wait(TICK_S)

    def _look_after(self) -> None:
        held = self._held
        if held is not None and (held.renew_at_ns is None or self._clock.boottime_ns() < held.renew_at_ns):
            # So that people see that Vault is away before the broker needs it, and it is found when it is back.
            if self.problem() or self._clock.boottime_ns() - self._asked_ns >= LOOK_EVERY_NS:
                self.call("lookup-self", lookup_self)
            return
        with self._circuit.passage() as passage, self._login_turn:
            if self._held is not held:
                return
            # A life that can no longer be renewed to half of what it was is near its maximum.
            if held is None or not held.token.is_renewable or held.token.lasts_s * 2 < held.full_life_s:
                self._log_in(passage)
                return
            token = held.token
            answer = self._try("renew-self", passage, lambda vault: renew_self(vault, token), token)
            if not isinstance(answer, _Fault):
                self._hold(answer, full_life_s=held.full_life_s)
            elif answer.is_up:
                self._log_in(passage)

    def _try(
        self,
        operation: str,
        passage: Passage,
        work: Callable[[JSONAdapter], Answer],
        token: VaultToken | None,
        read_timeout_s: float | None = None,
    ) -> Answer | _Fault:
        begun_ns = self._asked_ns = self._clock.boottime_ns()
        answer = self._ask(work, token, self._timeouts(passage, read_timeout_s))
        outcome = answer.outcome if isinstance(answer, _Fault) else "ok"
        self._meter.vault_called(operation, outcome, (self._clock.boottime_ns() - begun_ns) / NS_PER_S)
        # A login that is refused counts as well: who comes back at once with the same secret is told the same.
        if isinstance(answer, _Fault) and (operation == "login" or not answer.is_up):
            passage.bad(answer.text)
        else:
            passage.good()
        self._meter.vault_up(is_up=not self._circuit.problem())
        return answer

    def _ask(
        self, work: Callable[[JSONAdapter], Answer], token: VaultToken | None, timeouts: tuple[float, float]
    ) -> Answer | _Fault:
        """The one place where hvac's and requests' errors become ours."""
        with bounded(sum(timeouts)) as call:
            try:
                answer = work(self._adapter(token, timeouts))
                if isinstance(answer, requests.Response) and answer.status_code != requests.codes.no_content:
                    raise ValueError("an answer that is not JSON, or a redirect")
            except Failure:
                raise
            except Exception as problem:  # noqa: BLE001 - a strange body makes hvac raise AttributeError and TypeError too
                fault = _fault(problem)
                return replace(fault, outcome="timeout", text=_TOO_SLOW, is_up=False) if call.is_over else fault
        return answer

    def _timeouts(self, passage: Passage, read_timeout_s: float | None) -> tuple[float, float]:
        connect_s, read_s = self._server.connect_timeout_s, read_timeout_s or self._server.read_timeout_s
        if passage.is_probe:
            return min(connect_s, PROBE_CONNECT_S), min(read_s, PROBE_READ_S)
        return connect_s, read_s

    def _adapter(self, token: VaultToken | None, timeouts: tuple[float, float]) -> JSONAdapter:
        # The Client would look into the environment; its adapter does not, and costs nothing to make.
        return JSONAdapter(
            base_uri=self._server.address,
            token=token.value if token is not None else None,
            timeout=timeouts,  # type: ignore[arg-type]  # requests takes the pair, the stub does not know
            allow_redirects=False,
            session=self._http,
            namespace=self._server.namespace,
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _unavailable(operation: str, fault: _Fault) -> SignerUnavailable:
    kind = Refused if fault.is_up and operation != "login" else SignerUnavailable
    failure = kind(f"Vault {fault.text}, asked to {operation}")
    failure.__cause__ = fault.cause
    return failure


def _fault(problem: Exception) -> _Fault:
    """Say in our own words what happened: theirs may quote what was sent."""
    _withhold(problem)
    match problem:
        case hvac.exceptions.Forbidden():
            return _Fault("forbidden", "denied permission (403: see the broker's Vault policy)", problem, is_up=True)
        case hvac.exceptions.InvalidRequest() | hvac.exceptions.Unauthorized():
            return _Fault("refused", "refused (400: see the key, the role and the secret)", problem, is_up=True)
        case hvac.exceptions.InvalidPath():
            return _Fault("refused", "knows no such key or mount (404)", problem, is_up=True)
        case hvac.exceptions.VaultDown():
            return _Fault("sealed", "is sealed or not ready (503)", problem)
        case hvac.exceptions.RateLimitExceeded():
            return _Fault("busy", "is a standby or limits the rate (429)", problem)
        case hvac.exceptions.VaultError():
            return _Fault("failed", f"failed ({type(problem).__name__})", problem)
        case requests.exceptions.SSLError():
            return _Fault("untrusted", "cannot be trusted: its certificate is not from vault.ca_file", problem)
        case requests.exceptions.Timeout():
            return _Fault("timeout", _TOO_SLOW, problem)
        case requests.RequestException() | OSError():
            return _Fault("unreachable", "cannot be reached", problem)
        case _:
            return _Fault("odd", "answered something that makes no sense", problem)


def _withhold(problem: Exception) -> None:
    """Take out of a cause what may hold a secret (P12): what was sent, and a body that is not a list of errors."""
    if isinstance(problem, requests.RequestException):
        problem.request = problem.response = None
    if isinstance(problem, hvac.exceptions.VaultError):
        problem.text = problem.json = None
        if not problem.errors:
            problem.args = ("",)
