"""Approvals as those who need them see them: asked for, and waited for."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from google.protobuf.duration_pb2 import Duration

from broker.errors import ApprovalNeeded, ApprovalOver, Invalid, Overloaded, StoreUnavailable
from broker.sdk.asking import new_request_id
from broker.v1 import approvals_pb2

Purpose = Literal["run", "token"]
# Nobody has decided anything by that.
NOT_NOW = (StoreUnavailable, Overloaded)
WAIT_S = 3600.0
FIRST_S = 0.25
MOST_S = 2.0


@dataclass(frozen=True, slots=True)
class Approval:
    """An approval as the broker last told it.

    `state`: waiting, approved, denied, withdrawn, expired, spent, lapsed or void; `why`, for people. `until`:
    when the state ends by itself. `request`: the bytes that approvers sign the SHA-256 of.
    """

    id: str
    state: str
    why: str
    until: datetime | None
    request: bytes
    spent_on: str


def asked(
    purpose: Purpose,
    realm: str,
    partner: str,
    models: Sequence[str],
    user: str | None,
    workload: str | None,
    lifetime_s: int | None,
) -> approvals_pb2.RequestApprovalRequest:
    """Ask for one. Raises Invalid."""
    # A text is a sequence too, of letters.
    if isinstance(models, str):
        raise Invalid("models", "must be a list of models")
    if purpose not in ("run", "token"):
        raise Invalid("purpose", "is neither run nor token")
    return approvals_pb2.RequestApprovalRequest(
        request_id=new_request_id(),
        purpose=f"APPROVAL_PURPOSE_{purpose.upper()}",
        realm=realm,
        partner=partner,
        user=user or "",
        workload=workload or "",
        models=models,
        lifetime=None if lifetime_s is None else Duration(seconds=lifetime_s),
    )


def withdrawing(approval: str) -> approvals_pb2.WithdrawRequest:
    """Take one back."""
    return approvals_pb2.WithdrawRequest(request_id=new_request_id(), approval=approval)


def looking(approval: str) -> approvals_pb2.GetApprovalRequest:
    """Look at one."""
    return approvals_pb2.GetApprovalRequest(approval=approval)


def told(message: approvals_pb2.Approval) -> Approval:
    """Read one."""
    return Approval(
        message.id,
        approvals_pb2.ApprovalState.Name(message.state).removeprefix("APPROVAL_STATE_").lower(),
        message.why,
        message.until.ToDatetime(tzinfo=UTC) if message.HasField("until") else None,
        message.request,
        message.spent_on,
    )


class Waiting:
    """Waits for an approval until a deadline. Instants are of one monotonic clock, in seconds."""

    def __init__(self, approval: str, deadline_s: float) -> None:
        self._approval = approval
        self._deadline_s = deadline_s
        self._looks = 0
        self._why = "nobody answered"

    def judge(self, approval: Approval) -> bool:
        """Tell whether it is approved. Raises ApprovalOver when it never will be."""
        if approval.state not in ("waiting", "approved"):
            over = f"approval {approval.id} is {approval.state}: {approval.why}"
            raise ApprovalOver(over, metadata={"state": approval.state})
        self._why = approval.why
        return approval.state == "approved"

    def rest_s(self, now_s: float) -> float:
        """Return how long to wait before the next look (jittered). Raises ApprovalNeeded when the time is over."""
        if now_s >= self._deadline_s:
            raise ApprovalNeeded(
                f"approval {self._approval} still waits: {self._why}",
                hint="wait longer, or ask the people of its group",
                metadata={"approval": self._approval},
            )
        self._looks += 1
        most_s = min(MOST_S, FIRST_S * 2 ** min(self._looks, 10))
        return min(random.uniform(most_s / 2, most_s), max(0.0, self._deadline_s - now_s))
