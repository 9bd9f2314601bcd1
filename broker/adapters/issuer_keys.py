"""The key set of one issuer: found by discovery, kept fresh in the background, believed for a bounded time."""

import random
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future

from broker.errors import Failure, IssuerUnavailable, Malformed
from broker.service.ports import Clock
from broker.token.foreign import ForeignKey, foreign_json, read_key_set

NS_PER_S = 1_000_000_000
# A key that its issuer took back is believed for so long at most, while the issuer can be asked.
REFRESH_AFTER_S = 300.0
# While it cannot be asked, the last good set is believed for so long. Then nothing is.
BELIEVED_S = 3600.0
# Whoever sends unknown key ids makes us ask no more often than this.
UNKNOWN_KEY_EVERY_S = 10.0
FIRST_REST_S = 1.0
LONGEST_REST_S = 60.0

Fetch = Callable[[str], bytes]
"""GETs a URL, or raises IssuerUnavailable."""


class IssuerKeys:
    """Safe for use by several threads. Nothing here waits: one thread of its own fetches, and the future tells.

    The set comes from `jwks`, or from where the issuer's discovery document says (OpenID Connect Discovery §4).
    """

    def __init__(
        self, issuer: str, fetch: Fetch, clock: Clock, *, unknown_every_s: float = UNKNOWN_KEY_EVERY_S
    ) -> None:
        self._issuer = issuer
        self._fetch = fetch
        self._clock = clock
        self._unknown_every_ns = int(unknown_every_s * NS_PER_S)
        self._lock = threading.Lock()
        self._keys: Mapping[str, ForeignKey] = {}
        self._fetched_ns: int | None = None
        self._began_ns = 0
        self._flight: Future[None] | None = None
        self._failures = 0
        self._next_try_ns = 0
        self._problem = ""
        self._fix = ""

    def find(self, kid: str) -> ForeignKey | None:
        """Return the key of this id, or None: there is none in the set in hand.

        Raises:
            IssuerUnavailable: No set is in hand that may still be believed.
        """
        with self._lock:
            now_ns = self._clock.boottime_ns()
            age_ns = None if self._fetched_ns is None else now_ns - self._fetched_ns
            if age_ns is None or age_ns > REFRESH_AFTER_S * NS_PER_S:
                self._start(now_ns)
            if age_ns is None or age_ns > BELIEVED_S * NS_PER_S:
                raise IssuerUnavailable(
                    f"the keys of {self._issuer} are not known: {self._problem or 'they are being fetched'}",
                    hint=self._fix,
                )
            return self._keys.get(kid)

    def wanted(self) -> Future[None] | None:
        """Ask the issuer again, because a key is not in hand; return what ends when it was asked, with its failure.

        None: it was asked so recently, or failed so recently, that it is not asked now.
        """
        with self._lock:
            now_ns = self._clock.boottime_ns()
            if self._flight is None and self._fetched_ns is not None:
                since_ns = now_ns - self._began_ns
                if since_ns < self._unknown_every_ns:
                    return None
            self._start(now_ns)
            return self._flight

    def problem(self) -> str:
        """Return why the issuer cannot be asked now, or nothing."""
        with self._lock:
            return self._problem

    def _start(self, now_ns: int) -> None:
        """Begin to fetch, unless that is under way or failed a moment ago. The lock is held."""
        if self._flight is not None or now_ns < self._next_try_ns:
            return
        flight: Future[None] = Future()
        self._flight, self._began_ns = flight, now_ns
        threading.Thread(target=self._fly, args=(flight,), name="issuer-keys", daemon=True).start()

    def _fly(self, flight: Future[None]) -> None:
        failure: Exception | None = None
        keys: Mapping[str, ForeignKey] = {}
        try:
            keys = self._read()
        except Exception as problem:  # noqa: BLE001 - whatever it is, who waits must be told
            failure = problem
        with self._lock:
            now_ns = self._clock.boottime_ns()
            self._flight = None
            if failure is None:
                # As of when it was asked, not of when it answered.
                self._keys, self._fetched_ns = keys, self._began_ns
                self._failures, self._next_try_ns, self._problem, self._fix = 0, 0, "", ""
            else:
                self._failures += 1
                rest_s = min(LONGEST_REST_S, FIRST_REST_S * 2 ** min(self._failures - 1, 10))
                self._next_try_ns = now_ns + int(rest_s * random.uniform(0.5, 1.0) * NS_PER_S)
                told = failure if isinstance(failure, Failure) else IssuerUnavailable(type(failure).__name__)
                self._problem, self._fix = told.message, told.hint
        if failure is None:
            flight.set_result(None)
        else:
            flight.set_exception(failure)

    def _read(self) -> Mapping[str, ForeignKey]:
        where = f"{self._issuer}/.well-known/openid-configuration"
        try:
            found = foreign_json(self._fetch(where))
        except Malformed as bad:
            raise IssuerUnavailable(f"{where}: {bad.message}") from bad
        # OpenID Connect Discovery §4.3: exactly, or one issuer could speak for another.
        if not isinstance(found, dict) or found.get("issuer") != self._issuer:
            raise IssuerUnavailable(f"{where} is not about the issuer {self._issuer}")
        address = found.get("jwks_uri")
        if not isinstance(address, str):
            raise IssuerUnavailable(f"{where} names no jwks_uri")
        try:
            return read_key_set(self._fetch(address))
        except Malformed as bad:
            raise IssuerUnavailable(f"the key set of {self._issuer} cannot be used: {bad.message}") from bad
