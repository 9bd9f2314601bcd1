"""How a call is repeated: with the same request id, on some broker, until a deadline. Pure but for the dice."""

import random
from dataclasses import dataclass

import grpc

from broker.errors import Failure, RunProofRefused
from broker.sdk.failures import FailedCall, Unreachable, failure_of
from broker.sdk.run_key import RunKey

# The call may have been done or not; with the same request id, repeating it does nothing twice.
RETRYABLE = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED})
# Of a silent broker no more is waited for, when another one may answer.
ATTEMPT_S = 5.0
FIRST_S = 0.1
MOST_S = 2.0


@dataclass(slots=True)
class Attempts:
    """The attempts of one call. Instants are of one monotonic clock, in seconds."""

    deadline_s: float
    made: int = 0
    proven_again: bool = False
    told: Failure | None = None
    """What a broker itself gave as the reason of an attempt, the last time that one did."""

    def timeout_s(self, now_s: float) -> float:
        """Return how long the next attempt may take."""
        return max(0.001, min(ATTEMPT_S, self.deadline_s - now_s))

    def rest_s(self, code: grpc.StatusCode, now_s: float) -> float | None:
        """Return how long to wait before the next attempt (full jitter), or None: give up."""
        self.made += 1
        rest_s = random.uniform(0, min(MOST_S, FIRST_S * 2 ** min(self.made, 10)))
        return rest_s if code in RETRYABLE and now_s + rest_s < self.deadline_s else None

    def may_prove_again(self, failure: Failure, key: RunKey | None) -> bool:
        """Tell whether the proof was refused for our clock, once: the broker told its own, which is gone by now on."""
        if key is None or self.proven_again or not isinstance(failure, RunProofRefused):
            return False
        self.proven_again = key.learn_clock(failure.metadata.get("now", ""))
        return self.proven_again

    def failure(self, failed: FailedCall) -> Failure:
        """Return what to raise if `failed` was the last attempt.

        An attempt that our own deadline cut short says nothing; what a broker said before it does.
        """
        failure = failure_of(failed)
        if not isinstance(failure, Unreachable):
            self.told = failure
        return self.told or failure
