"""A circuit breaker: while the other side is away, one call a second tries it and the others fail at once."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from broker.errors import SignerUnavailable
from broker.service.ports import Clock

PROBE_EVERY_NS = 1_000_000_000


class Passage:
    """One call's leave to try. Say `good` or `bad` once; saying nothing leaves the circuit as it was."""

    def __init__(self, circuit: "Circuit", *, era: int, is_probe: bool) -> None:
        self._circuit = circuit
        self._era = era
        self.is_probe = is_probe

    def good(self) -> None:
        """The other side answered."""
        self._era = self._circuit.closed()

    def bad(self, problem: str) -> None:
        """It did not. `problem` is shown to callers."""
        self._circuit.opened(problem, self._era)

    def must_go_on(self) -> None:
        """Raise SignerUnavailable if another call has found meanwhile that the other side is away."""
        if not self.is_probe:
            self._circuit.must_be_closed()


class Circuit:
    """Safe for use by several threads. `what` names the other side in errors."""

    def __init__(self, what: str, clock: Clock) -> None:
        self._what = what
        self._clock = clock
        self._lock = threading.Lock()
        self._problem = ""
        self._is_probing = False
        self._next_probe_ns = 0
        self._era = 0

    @contextmanager
    def passage(self) -> Iterator[Passage]:
        """Let the caller try.

        Raises:
            SignerUnavailable: At once: the other side is away and it is not time to probe.
        """
        with self._lock:
            now_ns = self._clock.boottime_ns()
            is_probe = bool(self._problem)
            if is_probe and (self._is_probing or now_ns < self._next_probe_ns):
                raise self._away()
            if is_probe:
                self._is_probing = True
                self._next_probe_ns = now_ns + PROBE_EVERY_NS
            passage = Passage(self, era=self._era, is_probe=is_probe)
        try:
            yield passage
        finally:
            if is_probe:
                with self._lock:
                    self._is_probing = False

    def closed(self) -> int:
        """The other side answers; return the era that begins or goes on with it."""
        with self._lock:
            self._era += bool(self._problem)
            self._problem = ""
            return self._era

    def opened(self, problem: str, era: int) -> None:
        """The other side is away, as a call of `era` found."""
        with self._lock:
            # A call that hung since before the recovery says nothing about the time after it.
            if era != self._era:
                return
            if not self._problem:
                self._next_probe_ns = self._clock.boottime_ns() + PROBE_EVERY_NS
            self._problem = problem

    def problem(self) -> str:
        """Return why the other side is away, or nothing."""
        with self._lock:
            return f"{self._what} {self._problem}" if self._problem else ""

    def must_be_closed(self) -> None:
        """Raise SignerUnavailable while the other side is away."""
        with self._lock:
            if self._problem:
                raise self._away()

    def _away(self) -> SignerUnavailable:
        return SignerUnavailable(f"{self._what} {self._problem}")
