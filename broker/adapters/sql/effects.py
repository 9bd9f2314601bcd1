"""Guards and effects: the state beside the ledger, read and changed inside the append's transaction."""

import json
from dataclasses import dataclass, field
from typing import assert_never

from sqlalchemy import Connection, Row, bindparam, delete, insert, select, update

from broker.adapters.sql.approving import apply_approval, check_approval
from broker.adapters.sql.counting import Tally, count, forget_run, must_be_within
from broker.adapters.sql.instants import ms
from broker.adapters.sql.proving import apply_proof, must_be_due
from broker.adapters.sql.receipts import apply_receipts, check_receipts
from broker.adapters.sql.schema import blocks, certificates, policies, revocations, runs
from broker.errors import Blocked, NotFound, Revoked, RunEnded
from broker.service.approval_ports import (
    ApprovalAsked,
    ApprovalEnded,
    ApprovalIsOpen,
    HasNotVoted,
    RoomToAsk,
    VoteCast,
)
from broker.service.derivation_ports import TokenIsAlive
from broker.service.limit_ports import TokensCounted, WithinLimits
from broker.service.ports import (
    BlockIsSet,
    BlockLifted,
    CertificateAdded,
    Effect,
    Guard,
    KeyIsTrusted,
    PolicyReplaced,
    RevocationAdded,
    RunHasLapsed,
    RunIsOpen,
    RunKept,
    RunLapsed,
    RunOpened,
    TokensRevoked,
)
from broker.service.proof_ports import (
    Completed,
    CompletionAwaited,
    CompletionIsDue,
    DrillRecorded,
    DrillsScheduled,
    VerifierForgotten,
)
from broker.service.receipt_ports import ReceiptKeyEnrolled, ReceiptKeyIsNew, ReceiptsFollow, ReceiptsWritten
from broker.token.keys import plain_certificate
from broker.token.revocation import Dimension, Revocation, Selector

_RUN_SHAPE = {Dimension.RUN, Dimension.REALM, Dimension.PARTNER}


RunsSeen = dict[str, Row[str, str, bool, int] | None]
"""Runs as this transaction read them. Many mints of a group are of one run."""


@dataclass(slots=True)
class Seen:
    """What this transaction read and need not read again, until an effect changes it."""

    runs: RunsSeen = field(default_factory=dict)
    tally: Tally = field(default_factory=Tally)

    def forget(self) -> None:
        """Read all of it again from here on."""
        self.runs.clear()
        self.tally.sums.clear()


# Made once: building a statement costs more than running it.
_RUN = select(runs.c.partner, runs.c.realm, runs.c.is_closed, runs.c.lease_ends_at_ms).where(
    runs.c.id == bindparam("run")
)


_NEWER = select(revocations.c.idx, revocations.c.selector).where(revocations.c.idx >= bindparam("since"))


def check(connection: Connection, guard: Guard, seen: Seen) -> None:
    """Raise what the guard says unless it holds now."""
    match guard:
        case RunIsOpen():
            _must_be_open(connection, guard, seen)
        case RunHasLapsed(run, at):
            row = connection.execute(_RUN, {"run": run}).first()
            if row is None or row.is_closed or row.lease_ends_at_ms > ms(at):
                raise RunEnded(f"run {run} has not lapsed, or has ended before")
        case WithinLimits():
            must_be_within(connection, guard, seen.tally)
        case BlockIsSet(selector):
            if connection.execute(select(blocks.c.idx).where(blocks.c.selector == selector.to_text())).first() is None:
                raise NotFound(f"there is no block on {selector}", hint="see: broker revocations")
        case KeyIsTrusted() | TokenIsAlive():
            _must_not_be_revoked(connection, guard)
        case CompletionIsDue(revocation):
            must_be_due(connection, revocation)
        case RoomToAsk() | ApprovalIsOpen() | HasNotVoted():
            check_approval(connection, guard)
        case ReceiptKeyIsNew() | ReceiptsFollow():
            check_receipts(connection, guard)
        case _:
            assert_never(guard)


def _must_not_be_revoked(connection: Connection, guard: KeyIsTrusted | TokenIsAlive) -> None:
    if isinstance(guard, KeyIsTrusted):
        if connection.execute(select(revocations.c.idx).where(revocations.c.kid == guard.kid)).first() is not None:
            raise Blocked("the key that signed the first answer is revoked", hint="make a new request")
        return
    for row in connection.execute(_NEWER, {"since": guard.since}):
        revocation = Revocation(row.idx, Selector.from_text(row.selector))
        if revocation.kills(guard.facts, guard.idx):
            raise Revoked(
                f"the token was revoked at index {row.idx} ({revocation.selector})", metadata={"index": str(row.idx)}
            )


def _must_be_open(connection: Connection, guard: RunIsOpen, seen: Seen) -> None:
    run = guard.run
    if run not in seen.runs:
        seen.runs[run] = connection.execute(_RUN, {"run": run}).first()
    row = seen.runs[run]
    if row is None or row.partner != guard.partner or row.realm != guard.realm:
        raise NotFound(f"there is no run {run} of yours in this realm", hint="see: broker run list")
    if row.is_closed:
        raise RunEnded(f"run {run} is closed")
    if row.lease_ends_at_ms <= ms(guard.at):
        raise RunEnded(f"the lease of run {run} has run out")


def apply(connection: Connection, effect: Effect, indices: range, version: int, seen: Seen) -> bool:
    """Change the state as of the write's `indices`; return whether the policy version must move (to `version` + 1)."""
    index = indices.start
    if isinstance(effect, TokensCounted):
        # Changes nothing that was read, but the sums, which it adds to.
        count(connection, effect, index, seen.tally)
        return False
    seen.forget()
    match effect:
        case PolicyReplaced(document, by, at, reason):
            connection.execute(
                insert(policies).values(
                    version=version + 1, idx=index, document=document, by=by, at_ms=ms(at), reason=reason
                )
            )
            return True
        case RevocationAdded():
            return _revoke(connection, effect, index)
        case TokensRevoked():
            _revoke_tokens(connection, effect, indices)
        case BlockLifted(selector):
            connection.execute(delete(blocks).where(blocks.c.selector == selector.to_text()))
            return True
        case RunOpened(run):
            connection.execute(
                insert(runs).values(
                    id=run.id,
                    realm=run.realm,
                    partner=run.partner,
                    models=json.dumps(run.models),
                    opened_by=run.opened_by,
                    opened_at_ms=ms(run.opened_at),
                    lease_s=run.lease_s,
                    lease_ends_at_ms=ms(run.lease_ends_at),
                    is_closed=run.is_closed,
                    user=run.user,
                    workload=run.workload,
                    environment=run.environment,
                    grants=json.dumps(run.grants),
                    key=None if run.key is None else json.dumps(dict(run.key)),
                    approval=run.approval,
                )
            )
        case RunKept() | RunLapsed():
            _change_run(connection, effect)
        case CertificateAdded(realm, purpose, kid, certificate, expires_at):
            connection.execute(
                insert(certificates).values(
                    idx=index,
                    realm=realm,
                    purpose=purpose.value,
                    kid=kid,
                    certificate=json.dumps(plain_certificate(certificate)),
                    expires_at_ms=ms(expires_at),
                )
            )
        case CompletionAwaited() | Completed() | VerifierForgotten() | DrillRecorded() | DrillsScheduled():
            apply_proof(connection, effect, indices)
        case ApprovalAsked() | VoteCast() | ApprovalEnded():
            apply_approval(connection, effect, index)
        case ReceiptKeyEnrolled() | ReceiptsWritten():
            apply_receipts(connection, effect, indices)
        case _:
            assert_never(effect)
    return False


def _change_run(connection: Connection, effect: RunKept | RunLapsed) -> None:
    if isinstance(effect, RunLapsed):
        connection.execute(update(runs).where(runs.c.id == effect.run).values(is_closed=True, is_lapsed=True))
        return
    ends_at_ms = ms(effect.lease_ends_at)
    connection.execute(
        update(runs)
        .where(runs.c.id == effect.run, runs.c.lease_ends_at_ms < ends_at_ms)
        .values(lease_ends_at_ms=ends_at_ms)
    )


def _revoke_tokens(connection: Connection, effect: TokensRevoked, indices: range) -> None:
    shared = {
        "reason": effect.reason,
        "by": effect.by,
        "at_ms": ms(effect.at),
        "keep_until_ms": ms(effect.keep_until),
        "kid": None,
    }
    connection.execute(
        insert(revocations),
        [
            {"idx": index, "selector": selector.to_text(), **shared}
            for index, selector in zip(indices, effect.selectors, strict=True)
        ],
    )


def _revoke(connection: Connection, effect: RevocationAdded, index: int) -> bool:
    selector = effect.selector
    connection.execute(
        insert(revocations).values(
            idx=index,
            selector=selector.to_text(),
            reason=effect.reason,
            by=effect.by,
            at_ms=ms(effect.at),
            keep_until_ms=ms(effect.keep_until),
            kid=selector.get(Dimension.KEY) if selector.is_absolute else None,
        )
    )
    if effect.blocks:
        # A block may stand already; the later revocation makes it no weaker.
        connection.execute(delete(blocks).where(blocks.c.selector == selector.to_text()))
        connection.execute(insert(blocks).values(selector=selector.to_text(), idx=index))
    run = selector.get(Dimension.RUN)
    if run is not None and set(selector.dimensions) <= _RUN_SHAPE:
        _close_run(connection, selector, run, ms(effect.at))
    return effect.blocks or selector.is_absolute


def _close_run(connection: Connection, selector: Selector, run: str, at_ms: int) -> None:
    wanted = [runs.c.id == run]
    for dimension, column in ((Dimension.REALM, runs.c.realm), (Dimension.PARTNER, runs.c.partner)):
        value = selector.get(dimension)
        if value is not None:
            wanted.append(column == value)
    if connection.execute(update(runs).where(*wanted).values(is_closed=True)).rowcount:
        forget_run(connection, run, at_ms)
