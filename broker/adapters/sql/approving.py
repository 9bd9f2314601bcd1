"""Guards and effects of approvals, within the append's transaction."""

from typing import assert_never

from sqlalchemy import Connection, delete, func, insert, select, update

from broker.adapters.sql.instants import ms
from broker.adapters.sql.schema import approval_votes, approvals
from broker.errors import ApprovalOver, LimitReached, NotFound, VotedAlready
from broker.service.approval_ports import (
    ApprovalAsked,
    ApprovalEnded,
    ApprovalIsOpen,
    HasNotVoted,
    RoomToAsk,
    VoteCast,
)
from broker.token.approval import decode_request

ApprovalGuard = RoomToAsk | ApprovalIsOpen | HasNotVoted
ApprovalEffect = ApprovalAsked | VoteCast | ApprovalEnded


def check_approval(connection: Connection, guard: ApprovalGuard) -> None:
    """Raise what the guard says unless it holds now."""
    match guard:
        case RoomToAsk(partner, most, at):
            waiting = select(func.count()).where(
                approvals.c.partner == partner, approvals.c.ended.is_(None), approvals.c.closes_at_ms > ms(at)
            )
            if connection.execute(waiting).scalar_one() >= most:
                raise LimitReached(
                    f"{most} requests of {partner} wait for approval",
                    hint="withdraw some, or have them decided: broker approval list",
                    metadata={"limit": "waiting approvals"},
                )
        case ApprovalIsOpen(approval):
            row = connection.execute(select(approvals.c.ended).where(approvals.c.id == approval)).first()
            if row is None:
                raise NotFound(f"there is no approval {approval} of yours", hint="see: broker approval list")
            if row.ended is not None:
                raise ApprovalOver(f"approval {approval} was {row.ended}", metadata={"state": row.ended})
        case HasNotVoted(approval, person):
            votes = select(approval_votes.c.idx).where(
                approval_votes.c.approval == approval, approval_votes.c.person == person
            )
            if connection.execute(votes).first() is not None:
                raise VotedAlready(f"{person} has voted on approval {approval}")
        case _:
            assert_never(guard)


def apply_approval(connection: Connection, effect: ApprovalEffect, index: int) -> None:
    """Change the state as of the write's first index."""
    match effect:
        case ApprovalAsked(document):
            request = decode_request(document)
            connection.execute(
                insert(approvals).values(
                    id=request.id,
                    idx=index,
                    partner=request.partner,
                    approvers=request.group,
                    document=document,
                    closes_at_ms=ms(request.created_at) + request.window_s * 1000,
                )
            )
        case VoteCast(approval, vote):
            # A no replaces the same person's yes; that a yes comes first is the guard's business.
            connection.execute(
                delete(approval_votes).where(
                    approval_votes.c.approval == approval, approval_votes.c.person == vote.person
                )
            )
            connection.execute(
                insert(approval_votes).values(
                    approval=approval,
                    person=vote.person,
                    principal=vote.principal,
                    decision=vote.decision.value,
                    at_ms=ms(vote.at),
                    login_at_ms=ms(vote.login_at),
                    idx=index,
                )
            )
        case ApprovalEnded(approval, ended):
            connection.execute(
                update(approvals)
                .where(approvals.c.id == approval)
                .values(ended=ended.how.value, ended_at_ms=ms(ended.at), spent_on=ended.on or None)
            )
        case _:
            assert_never(effect)
