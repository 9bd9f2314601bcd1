"""What keeping every policy needs of the store."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol


@dataclass(frozen=True, slots=True)
class PolicyVersion:
    """That a policy was applied: at `version`, by the ledger entry at `index`. `reason` is empty if none was given."""

    version: int
    index: int
    by: str
    at: datetime
    reason: str


@dataclass(frozen=True, slots=True)
class PolicyDocument:
    """A policy as it was applied, letter by letter."""

    applied: PolicyVersion
    document: str


class PolicyHistory(Protocol):
    """Every policy that was ever applied; none is ever dropped. Written by `Ledger.append`; reads are of the primary.

    Safe to call from any thread. Every method raises StoreUnavailable.
    """

    def applied(self, below: int | None, limit: int) -> Sequence[PolicyVersion]:
        """Return the policies that were applied at a version below `below` (None: all), the newest first."""

    def as_of(self, version: int) -> PolicyDocument | None:
        """Return the policy that was in force at `version`: the last one applied at it or before. None: none was."""

    def before(self, index: int) -> PolicyVersion | None:
        """Return the policy that was in force when the entry at `index` was written. None: none was."""
