"""What explaining needs of the store: denials, for a while, and the revocations that could have killed a token."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from broker.domain.decision import Rule
from broker.service.ports import RevocationRecord
from broker.token.revocation import Dimension

# Of each partner the newest so many denials are kept, and none for longer.
MOST_DENIALS = 1000
KEEP_DENIALS = timedelta(days=7)


@dataclass(frozen=True, slots=True)
class Denial:
    """That a mint, or a run, was denied: by which rules, at which version of the policy.

    `is_partners`: whether the partner may know the rules; else it may know the message alone.
    """

    partner: str
    request_id: str
    principal: str
    at: datetime
    method: str
    reason: str
    message: str
    rules: tuple[Rule, ...]
    remedy: str
    version: int
    is_partners: bool


class Denials(Protocol):
    """The newest denials of each partner. No part of the ledger, and lost without harm.

    Safe to call from any thread. Every method raises StoreUnavailable.
    """

    def note(self, denials: Sequence[Denial]) -> None:
        """Keep these, the newest of each partner, principal and request id; drop what is beyond the bounds."""

    def find(self, request_id: str, partner: str | None, *, since: datetime) -> Denial | None:
        """Return the newest denial of this request at or after `since`, of any partner if none is named."""


class RevocationSearch(Protocol):
    """Finds revocations by what they name. Reads are of the primary."""

    def naming(
        self, conditions: Sequence[tuple[Dimension, str]], *, after: int, kid: str, limit: int
    ) -> Sequence[RevocationRecord]:
        """Return revocations that have one of these conditions, with an index above `after` or of the key `kid` alone.

        In index order. The rest of what they name may be anything: whoever asks must look.
        """
