"""Proofs of runs' keys: each is looked at once, and accepted once."""

import threading
from collections import deque

from broker.errors import Malformed, Overloaded, RunProofRefused
from broker.service.calling import RunProof
from broker.service.known_runs import KnownRuns
from broker.service.ports import Clock, RunRecord
from broker.token.keys import Jwk, load_jwk, thumbprint
from broker.token.run_proof import REMEMBER_S, check_run_proof, parse_run_proof

MAX_REMEMBERED = 1_000_000


class SeenOnce:
    """Ids that were used within a window. Safe for threads; its size is bounded."""

    def __init__(self, window_s: float, capacity: int = MAX_REMEMBERED) -> None:
        self._window_s = window_s
        self._capacity = capacity
        self._turn = threading.Lock()
        self._seen: set[str] = set()
        self._order: deque[tuple[float, str]] = deque()

    def is_first(self, name: str, now_s: float) -> bool:
        """Tell whether `name` is used for the first time within the window. Raises Overloaded."""
        with self._turn:
            while self._order and self._order[0][0] <= now_s - self._window_s:
                self._seen.discard(self._order.popleft()[1])
            if name in self._seen:
                return False
            if len(self._seen) >= self._capacity:
                # What cannot be remembered could be used twice (P7).
                raise Overloaded("too many proofs of runs' keys are in use")
            self._seen.add(name)
            self._order.append((now_s, name))
            return True


class RunKeys:
    """Judges proofs. A proof is remembered by the process that took it.

    At another broker of the same store, or after a restart, a proof that is sent again comes with its request, which
    is a repeat and does nothing twice; a mint's entry has the id of its proof, so that it is not even answered.
    """

    def __init__(self, runs: KnownRuns, clock: Clock) -> None:
        self.runs = runs
        self._clock = clock
        self._seen = SeenOnce(REMEMBER_S)

    def must_prove(self, text: str | None, *, key: Jwk, method: str, run: str | None, request: bytes) -> None:
        """Refuse a call that does not prove to have `key`, for this very request and the first time.

        Raises:
            RunProofRefused, Overloaded: Refused.
        """
        if text is None:
            raise RunProofRefused("the run has a key, and the call does not prove to have it")
        now_s = self._clock.now().timestamp()
        claims = check_run_proof(parse_run_proof(text), key, method=method, run=run, request=request, now_s=now_s)
        # By the broker's steady clock, so that nothing is forgotten early; a key's own ids are no other's.
        if not self._seen.is_first(f"{thumbprint(key)} {claims.jti}", self._clock.boottime_ns() / 1e9):
            raise RunProofRefused("the run proof was used before")

    def run_of(self, text: str) -> str | None:
        """Return the run that a proof says to be for, of which nothing is believed yet. Raises RunProofRefused."""
        return parse_run_proof(text).claims.run

    def caller(self, text: str, run: RunRecord | None, *, method: str, request: bytes, network: str) -> RunProof:
        """Return who calls, when the proof of a run's key is all that there is to say so.

        Raises:
            RunProofRefused, Overloaded: Refused.
        """
        if run is None or run.key is None:
            raise RunProofRefused("the run proof is of no run that has a key", hint="open a new run")
        self.must_prove(text, key=run.key, method=method, run=run.id, request=request)
        return RunProof(
            run=run.id,
            principal=run.opened_by,
            partner=run.partner,
            environment=run.environment,
            user=run.user,
            workload=run.workload,
            key=thumbprint(run.key),
            network=network,
        )


def checked_key(jwk: object) -> Jwk:
    """Return a run's public key, out of what a caller sent. Raises RunProofRefused."""
    try:
        load_jwk(jwk)
    except Malformed as bad:
        raise RunProofRefused(f"run_key: {bad.message}", hint="send a public JWK of a P-256 key") from bad
    assert isinstance(jwk, dict)  # noqa: S101 - load_jwk looked
    return jwk
