"""The Approvals port on SQL: what was asked, who voted, how it ended."""

from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from typing import Any

from sqlalchemy import Connection, Select, select

from broker.adapters.sql.instants import instant
from broker.adapters.sql.schema import approval_votes, approvals
from broker.domain.approval import Approval, Ended, Standing, Vote
from broker.errors import Malformed, StoreCorrupt
from broker.service.approval_ports import ApprovalRecord
from broker.token.approval import Decision, decode_request


class SqlApprovals:
    """The Approvals port."""

    def __init__(self, reading: Callable[[], AbstractContextManager[Connection]]) -> None:
        self._reading = reading

    def approvals_by_id(self, ids: Collection[str]) -> Sequence[ApprovalRecord]:
        """As the port says."""
        return self._records(select(approvals).where(approvals.c.id.in_(list(ids)))) if ids else []

    def approvals_asked(
        self, *, partner: str | None, groups: Collection[str] | None, limit: int
    ) -> Sequence[ApprovalRecord]:
        """As the port says."""
        query = select(approvals).order_by(approvals.c.idx.desc()).limit(limit)
        if partner is not None:
            query = query.where(approvals.c.partner == partner)
        if groups is not None:
            query = query.where(approvals.c.approvers.in_(list(groups)))
        return self._records(query)

    def _records(self, query: "Select[Any]") -> list[ApprovalRecord]:
        with self._reading() as connection:
            rows = connection.execute(query).all()
            votes: dict[str, list[Vote]] = defaultdict(list)
            cast = select(approval_votes).where(approval_votes.c.approval.in_([row.id for row in rows]))
            for row in connection.execute(cast.order_by(approval_votes.c.idx)) if rows else ():
                votes[row.approval].append(
                    Vote(
                        row.person,
                        row.principal,
                        Decision(row.decision),
                        instant(row.at_ms),
                        instant(row.login_at_ms),
                    )
                )
        return [_record(row, votes[row.id]) for row in rows]


def _record(row: Any, votes: Sequence[Vote]) -> ApprovalRecord:
    document = bytes(row.document)
    try:
        request = decode_request(document)
    except Malformed as bad:
        raise StoreCorrupt(f"approval {row.id} is not what was written") from bad
    if request.id != row.id:
        raise StoreCorrupt(f"approval {row.id} is another one")
    ended = None
    if row.ended is not None:
        ended = Ended(Standing(row.ended), instant(row.ended_at_ms), row.spent_on or "")
    return ApprovalRecord(row.idx, document, Approval(request, tuple(votes), ended))
