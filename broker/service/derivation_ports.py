"""What the store is asked of tokens from which others are derived; part of the Ledger port."""

from dataclasses import dataclass

from broker.token.revocation import Facts


@dataclass(frozen=True, slots=True)
class TokenIsAlive:
    """Guard: no revocation at an index from `since` on kills the token with these facts and this index.

    Refused with `Revoked`. Those below `since` were compared before, where it may take longer.
    """

    facts: Facts
    idx: int
    since: int
