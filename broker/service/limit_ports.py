"""What the store is asked to count, inside the transaction that writes what is counted; part of the Ledger port."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from broker.errors import LimitReached

RATE_WINDOW = timedelta(minutes=1)


class Counted(StrEnum):
    """What a limit is about; the value is its name in the policy and in errors."""

    MINTS_PER_MINUTE = "mints_per_minute"
    LIVE_TOKENS = "live_tokens"
    LIVE_RUNS = "live_runs"
    TOKENS_PER_RUN = "tokens_per_run"


@dataclass(frozen=True, slots=True)
class Scope:
    """For whom something is counted: a partner, a grant, or one subject of a grant.

    `subject` is spelled as in tokens, `PARTNER/user/NAME` or `PARTNER/workload/NAME`. A grant by labels is counted
    over all partners that have it.
    """

    partner: str | None = None
    grant: str | None = None
    subject: str | None = None

    @property
    def text(self) -> str:
        """The one spelling, for people and for the store."""
        if self.grant is None:
            return f"partner {self.partner}"
        return f"grant {self.grant}" if self.subject is None else f"grant {self.grant} for {self.subject}"


@dataclass(frozen=True, slots=True)
class Limit:
    """At most `most` of `counted` for `scope`, `wanted` more with this write. `run`: of tokens_per_run alone.

    With `is_audit_only` it refuses nothing: what it would have is returned in `Appended.noted`.
    """

    counted: Counted
    most: int
    wanted: int
    scope: Scope
    run: str | None = None
    is_audit_only: bool = False


@dataclass(frozen=True, slots=True)
class WithinLimits:
    """Guard: with what is wanted, no limit is exceeded at `at`. Refused with `LimitReached` for the first that is.

    The metadata name the limit (`limit`), whose it is (`scope`), `most`, `wanted` and `room`; `retry_after_s` is set
    where tokens leave the minute, or come to their end, and make room for as many as are wanted.
    Tokens of a closed or lapsed run are not live. A token that was revoked otherwise counts until its end.
    """

    limits: tuple[Limit, ...]
    at: datetime


@dataclass(frozen=True, slots=True)
class Count:
    """So many `tokens` more for `scope`, of `run` if they are of one, that live until `ends_at`."""

    scope: Scope
    tokens: int
    ends_at: datetime
    run: str | None = None


@dataclass(frozen=True, slots=True)
class TokensCounted:
    """Effect: `counts` were minted at `at`; `runs` says how many more of each run count for its own limit."""

    counts: tuple[Count, ...]
    at: datetime
    runs: tuple[tuple[str, int], ...] = ()


def subject_of(partner: str, user: str | None, workload: str | None) -> str | None:
    """Return the subject, spelled as in tokens, or None: nobody in particular."""
    if user is not None:
        return f"{partner}/user/{user}"
    return None if workload is None else f"{partner}/workload/{workload}"


def limit_reached(limit: Limit, used: int, wait_s: float | None) -> LimitReached:
    """Return the refusal of a write for which there is no room: `used` are taken, in `wait_s` there may be room."""
    name = limit.counted.value
    return LimitReached(
        f"{limit.scope.text} allows {name} {limit.most}: {used} are taken, {limit.wanted} more are wanted",
        hint=_HINTS[limit.counted] if wait_s is None else "wait for room, or ask for fewer",
        metadata={
            "limit": name,
            "scope": limit.scope.text,
            "most": str(limit.most),
            "wanted": str(limit.wanted),
            "room": str(max(0, limit.most - used)),
            **({} if limit.scope.grant is None else {"grant": limit.scope.grant}),
        },
        retry_after_s=wait_s,
    )


_HINTS = {
    Counted.MINTS_PER_MINUTE: "ask for fewer at once",
    Counted.LIVE_TOKENS: "ask for fewer, or for shorter lives; close runs that are over",
    Counted.LIVE_RUNS: "close a run that is over",
    Counted.TOKENS_PER_RUN: "use a token until it is about to end, or open another run",
}
