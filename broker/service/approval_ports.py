"""What approvals need of the store: requests, votes, and how each ended."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from broker.domain.approval import Approval, Ended, Vote


@dataclass(frozen=True, slots=True)
class RoomToAsk:
    """Guard: fewer than `most` requests of this partner can still be voted on at `at`. Refused with `LimitReached`."""

    partner: str
    most: int
    at: datetime


@dataclass(frozen=True, slots=True)
class ApprovalIsOpen:
    """Guard: the request exists and was not denied, withdrawn or spent. Refused with `NotFound` or `ApprovalOver`.

    So it is spent once, whatever the number of brokers that try.
    """

    approval: str


@dataclass(frozen=True, slots=True)
class HasNotVoted:
    """Guard: this person has not voted on the request. Refused with `VotedAlready`."""

    approval: str
    person: str


@dataclass(frozen=True, slots=True)
class ApprovalAsked:
    """Effect: the request whose exact bytes are `document` waits for votes, from the first draft's index on."""

    document: bytes


@dataclass(frozen=True, slots=True)
class VoteCast:
    """Effect: a person voted; kept with the first draft's index, at which the ledger has what they signed."""

    approval: str
    vote: Vote


@dataclass(frozen=True, slots=True)
class ApprovalEnded:
    """Effect: the request was denied, withdrawn or spent."""

    approval: str
    ended: Ended


@dataclass(frozen=True, slots=True)
class ApprovalRecord:
    """A request as stored, at its ledger index: the exact bytes that approvers sign the hash of, and what happened."""

    index: int
    document: bytes
    approval: Approval


class Approvals(Protocol):
    """Approvals as they are kept. Written by `Ledger.append`; reads are of the primary, each one consistent.

    Safe to call from any thread. Every method raises StoreUnavailable.
    """

    def approvals_by_id(self, ids: Collection[str]) -> Sequence[ApprovalRecord]:
        """Return those that there are, in no order."""

    def approvals_asked(
        self, *, partner: str | None, groups: Collection[str] | None, limit: int
    ) -> Sequence[ApprovalRecord]:
        """Return requests, newest first: of one partner, and for the approvers of these groups, where given."""
