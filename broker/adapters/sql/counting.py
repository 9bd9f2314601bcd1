"""Limits, counted and judged inside the append's transaction, so that they hold with any number of brokers."""

import json
from dataclasses import dataclass, field
from typing import assert_never

from sqlalchemy import Connection, func, insert, select, update

from broker.adapters.sql.instants import ms
from broker.adapters.sql.schema import RUN_IS_OPEN, counts, runs
from broker.errors import LimitReached
from broker.service.limit_ports import (
    RATE_WINDOW,
    Counted,
    Limit,
    Scope,
    TokensCounted,
    WithinLimits,
    limit_reached,
    subject_of,
)

_WINDOW_MS = int(RATE_WINDOW.total_seconds() * 1000)
_MS_PER_S = 1000


@dataclass(slots=True)
class Tally:
    """Sums as this transaction read them, and what it added since. Many mints of a group are of one grant."""

    sums: dict[tuple[Counted, str], int] = field(default_factory=dict)
    noted: list[LimitReached] = field(default_factory=list)
    """What limits that are only audited would have refused, of the write that is being judged."""

    def add(self, effect: TokensCounted) -> None:
        """Add what was just counted to the sums that are known."""
        for one in effect.counts:
            for counted in (Counted.MINTS_PER_MINUTE, Counted.LIVE_TOKENS):
                key = (counted, one.scope.text)
                if key in self.sums:
                    self.sums[key] += one.tokens
        for run, tokens in effect.runs:
            key = (Counted.TOKENS_PER_RUN, run)
            if key in self.sums:
                self.sums[key] += tokens


def must_be_within(connection: Connection, guard: WithinLimits, tally: Tally) -> None:
    """Raise LimitReached for the first limit that what is wanted would exceed."""
    at_ms = ms(guard.at)
    for limit in guard.limits:
        key = (limit.counted, limit.run or limit.scope.text)
        # Of the same transaction, so a few milliseconds old at most, and then too large rather than too small.
        used = tally.sums.get(key)
        if used is None:
            used = tally.sums[key] = _used(connection, limit, at_ms)
        if used + limit.wanted > limit.most:
            reached = limit_reached(limit, used, _wait_s(connection, limit, used, at_ms))
            if not limit.is_audit_only:
                raise reached
            tally.noted.append(reached)


def count(connection: Connection, effect: TokensCounted, index: int, tally: Tally) -> None:
    """Remember what was minted by the write at `index`."""
    at_ms = ms(effect.at)
    if effect.counts:
        connection.execute(
            insert(counts),
            [
                {
                    "idx": index,
                    "part": part,
                    "scope": one.scope.text,
                    "ends_at_ms": ms(one.ends_at),
                    "run": one.run,
                    "tokens": one.tokens,
                    "at_ms": at_ms,
                    "keep_until_ms": max(ms(one.ends_at), at_ms + _WINDOW_MS),
                }
                for part, one in enumerate(effect.counts)
            ],
        )
    for run, tokens in effect.runs:
        connection.execute(update(runs).where(runs.c.id == run).values(tokens=runs.c.tokens + tokens))
    tally.add(effect)


def forget_run(connection: Connection, run: str, at_ms: int) -> None:
    """Let the tokens of a run that has ended be live no longer. They go on counting for the rate."""
    connection.execute(update(counts).where(counts.c.run == run, counts.c.ends_at_ms > at_ms).values(ends_at_ms=at_ms))


def _used(connection: Connection, limit: Limit, at_ms: int) -> int:
    total = func.coalesce(func.sum(counts.c.tokens), 0)
    match limit.counted:
        case Counted.MINTS_PER_MINUTE:
            query = select(total).where(counts.c.scope == limit.scope.text, counts.c.at_ms > at_ms - _WINDOW_MS)
        case Counted.LIVE_TOKENS:
            query = select(total).where(counts.c.scope == limit.scope.text, counts.c.ends_at_ms > at_ms)
        case Counted.TOKENS_PER_RUN:
            query = select(func.coalesce(func.max(runs.c.tokens), 0)).where(runs.c.id == limit.run)
        case Counted.LIVE_RUNS:
            return _live_runs(connection, limit.scope, at_ms)
        case _:
            assert_never(limit.counted)
    return int(connection.execute(query).scalar_one())


def _live_runs(connection: Connection, scope: Scope, at_ms: int) -> int:
    live = select(runs.c.partner, runs.c.grants, runs.c.user, runs.c.workload).where(
        RUN_IS_OPEN, runs.c.lease_ends_at_ms > at_ms
    )
    if scope.grant is None:
        live = live.where(runs.c.partner == scope.partner)
    return sum(
        scope.grant is None
        or (
            scope.grant in {grant for _, grant in json.loads(row.grants)}
            and scope.subject in (None, subject_of(row.partner, row.user, row.workload))
        )
        for row in connection.execute(live)
    )


def _wait_s(connection: Connection, limit: Limit, used: int, at_ms: int) -> float | None:
    """Return in how many seconds there is room, as far as that can be known."""
    if limit.wanted > limit.most:
        return None
    if limit.counted is Counted.MINTS_PER_MINUTE:
        leaves = counts.c.at_ms + _WINDOW_MS
    elif limit.counted is Counted.LIVE_TOKENS:
        leaves = counts.c.ends_at_ms
    else:
        return None
    too_many = used + limit.wanted - limit.most
    leaving = connection.execute(
        select(leaves.label("leaves_ms"), counts.c.tokens)
        .where(counts.c.scope == limit.scope.text, leaves > at_ms)
        .order_by(leaves)
    )
    for row in leaving:
        too_many -= row.tokens
        if too_many <= 0:
            return float(max(1, int(row.leaves_ms) - at_ms)) / _MS_PER_S
    return None
