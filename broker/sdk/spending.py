"""How often each token was used, for those that may be used only so often: counted by each verifier by itself."""

import threading
from collections.abc import Callable

from broker.errors import UsedUp
from broker.token.claims import MAX_LIFETIME_S, Claims

SWEEP_FIRST = 1024


class Spending:
    """Counts uses by token id. Safe for threads. What has expired is forgotten as the rest grows.

    A token and all that were derived from it are counted together, or children would multiply its uses.
    """

    def __init__(self, now_s: Callable[[], float | None]) -> None:
        self._now_s = now_s
        self._turn = threading.Lock()
        # Id of the first token to uses so far, and until when they matter.
        self._spent: dict[str, tuple[int, int]] = {}
        self._sweep_at = SWEEP_FIRST

    def __len__(self) -> int:
        return len(self._spent)

    def spend(self, claims: Claims) -> None:
        """Count one use of a token that was accepted. Raises UsedUp when it was the last one before."""
        if claims.uses is None:
            return
        with self._turn:
            first = claims.parents[0] if claims.parents else claims.jti
            used, keep_until = self._spent.get(first, (0, 0))
            if used >= claims.uses:
                raise UsedUp(
                    f"the token may be used {claims.uses} times at a verifier, and was",
                    metadata={"uses": str(claims.uses)},
                )
            # How long the first one lives, its children do not say.
            ends = claims.iat + MAX_LIFETIME_S if claims.parents else claims.exp
            self._spent[first] = (used + 1, max(keep_until, ends))
            if len(self._spent) >= self._sweep_at:
                self._sweep()

    def forget_after_fork(self) -> None:
        """In a child: the lock may be held by a thread that is no more. What was used before stays used."""
        self._turn = threading.Lock()

    def _sweep(self) -> None:
        now_s = self._now_s()
        if now_s is not None:
            # An expired token is refused before anybody asks how often it was used.
            self._spent = {jti: spent for jti, spent in self._spent.items() if spent[1] > now_s}
        self._sweep_at = max(SWEEP_FIRST, 2 * len(self._spent))
