"""Tokens of one run: held until they are about to end, and asked for together by all who miss one at the same time.

Pure but for the dice, and not safe for threads: `Run` has a lock around it, `AsyncRun` its event loop.
"""

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from broker.sdk.asking import life_s

# A token is renewed at some moment between these parts of its life, so that those that were minted together are
# not all renewed together, and early enough for a broker that is away for a while.
RENEW_FROM, RENEW_TO = 0.6, 0.8
# Until then it can still be used, when no new one is to be had.
USABLE = 0.95
# So many tokens are asked for in one call, and so many calls are under way at once.
MOST_AT_ONCE = 500
MOST_FLIGHTS = 2
SWEEP_ABOVE = 1024


@dataclass(frozen=True, slots=True)
class Want:
    """What one token of a run is for."""

    test: str | None
    models: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Held:
    """A token with the instants, in monotonic seconds, at which it is to be renewed and no longer to be used."""

    text: str
    renew_at_s: float
    ends_at_s: float


class Wallet:
    """The tokens of one run. Instants are monotonic seconds."""

    def __init__(self, fraction: Callable[[], float] = random.random) -> None:
        self._fraction = fraction
        self._held: dict[Want, Held] = {}

    def __len__(self) -> int:
        return len(self._held)

    def get(self, want: Want, now_s: float) -> str | None:
        """Return the token, or None: ask for a new one."""
        held = self._held.get(want)
        return held.text if held is not None and now_s < held.renew_at_s else None

    def spare(self, want: Want, now_s: float) -> str | None:
        """Return a token that should have been renewed and can still be used, or None."""
        held = self._held.get(want)
        return held.text if held is not None and now_s < held.ends_at_s else None

    def put(self, want: Want, text: str, asked_s: float) -> None:
        """Hold a token that was asked for at `asked_s`: its life began after that. Raises Malformed."""
        if len(self._held) >= SWEEP_ABOVE:
            self._held = {name: held for name, held in self._held.items() if asked_s < held.ends_at_s}
        life = life_s(text)
        renew = RENEW_FROM + (RENEW_TO - RENEW_FROM) * self._fraction()
        self._held[want] = Held(text, asked_s + life * renew, asked_s + life * USABLE)


class Settled(Protocol):
    """What futures of threads and of event loops have in common."""

    def done(self) -> bool:
        """Tell whether it has a result."""

    def set_result(self, result: str, /) -> None:
        """Give it one."""

    def set_exception(self, exception: BaseException, /) -> None:
        """Or a failure."""


F = TypeVar("F", bound=Settled)


class Gathering(Generic[F]):
    """Who waits for which token: one future for each, however many wait, and a bounded number of calls for them all.

    The first that misses a token is asked for at once; what is missed while that call is under way goes together
    into the next.
    """

    def __init__(self) -> None:
        self._waiting: dict[Want, F] = {}
        self._flying: dict[Want, F] = {}
        self._most = MOST_AT_ONCE
        self.flights = 0

    def find(self, want: Want) -> F | None:
        """Return what somebody else waits for already."""
        return self._waiting.get(want) or self._flying.get(want)

    def add(self, want: Want, future: F) -> bool:
        """Wait for a token; return whether another call is to be begun for it, which is counted from here on."""
        self._waiting[want] = future
        if self.flights >= MOST_FLIGHTS:
            return False
        self.flights += 1
        return True

    def take(self) -> dict[Want, F]:
        """Return what to ask for next, all for the same models; nothing ends the call that was begun."""
        batch: dict[Want, F] = {}
        for want, future in self._waiting.items():
            if len(batch) == self._most:
                break
            # One decision for all of them: nobody is refused for what another asked.
            if not batch or want.models == next(iter(batch)).models:
                batch[want] = future
        for want in batch:
            del self._waiting[want]
        self._flying |= batch
        if not batch:
            self.flights -= 1
        return batch

    def landed(self, batch: dict[Want, F], tokens: Iterable[str]) -> None:
        """Give each who waits their token."""
        for (want, future), token in zip(batch.items(), tokens, strict=True):
            del self._flying[want]
            if not future.done():
                future.set_result(token)

    def failed(self, batch: dict[Want, F], failure: BaseException) -> None:
        """Give each who waits the failure."""
        for want, future in batch.items():
            del self._flying[want]
            if not future.done():
                future.set_exception(failure)

    def trim(self, batch: dict[Want, F], room: int, failure: BaseException) -> bool:
        """Ask again for as many as there is room for, and give the others the failure; False: for none there is."""
        if not 0 < room < len(batch):
            return False
        wants = list(batch)
        self.failed({want: batch[want] for want in wants[room:]}, failure)
        first = {want: batch[want] for want in wants[:room]}
        for want in first:
            del self._flying[want]
        self._waiting = {**first, **self._waiting}
        return True

    def too_many(self, batch: dict[Want, F]) -> bool:
        """Ask for fewer at once from now on, these again; return False when one alone is too many."""
        if len(batch) <= 1:
            return False
        self._most = len(batch) // 2
        for want in batch:
            del self._flying[want]
        self._waiting = {**batch, **self._waiting}
        return True
