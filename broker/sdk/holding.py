"""Whether whoever shows a bound token holds its key: checked at each use, each DPoP proof accepted once."""

import threading
from collections.abc import Callable

from broker.errors import Stale
from broker.token.binding import Shown, check_holder
from broker.token.claims import Claims
from broker.token.dpop import DpopProof, Replays
from broker.token.verification import Time

MS_PER_S = 1000


class Holding:
    """Judges for one verifier. Safe for threads. `now` is the broker's clock, None where none is known."""

    def __init__(self, now: Callable[[], Time | None]) -> None:
        self._now = now
        self._turn = threading.Lock()
        self._seen = Replays()

    def check(self, token: str, claims: Claims, shown: Shown | None) -> None:
        """Accept a token that is bound to nothing or to what is shown. Raises NotHolder, Stale."""
        now = self._now()
        if now is None:
            raise Stale("the verifier has not heard from the broker")
        earliest_s = now.earliest_ms // MS_PER_S

        def remember(proof: DpopProof) -> None:
            # One after the other: a proof that is shown twice at the same time is accepted once.
            with self._turn:
                self._seen.add(proof, earliest_s)

        check_holder(
            token, claims.cnf, shown, earliest_s=earliest_s, latest_s=-(-now.latest_ms // MS_PER_S), remember=remember
        )

    def forget_after_fork(self) -> None:
        """In a child: the lock may be held by a thread that is no more. What was shown before stays used."""
        self._turn = threading.Lock()
