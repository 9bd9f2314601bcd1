"""What the use cases report about themselves."""

from typing import Protocol


class Meter(Protocol):
    """Counts what happened. Never raises, never blocks, holds no secret."""

    def minted(self, realm: str, count: int) -> None:
        """Count tokens that left."""

    def denied(self, reason: str) -> None:
        """Count a refused call by reason."""

    def would_deny(self, grant: str, rule: str) -> None:
        """Count what a grant allowed only because its mode is audit."""

    def revoked(self, dimensions: str) -> None:
        """Count a committed revocation by its shape."""

    def acknowledged(self, realm: str, seconds: float) -> None:
        """Record the time from a revocation's commit to one verifier's acknowledgement."""

    def denied_after(self, realm: str, seconds: float) -> None:
        """Record the time from a canary's revocation to its denial at one verifier."""

    def drilled(self, realm: str, failed: int) -> None:
        """Set how many verifiers failed in a realm's last drill, and count the drill."""

    def verifiers(self, realm: str, state: str, count: int) -> None:
        """Set how many verifiers are in a state."""

    def lag(self, realm: str, entries: int) -> None:
        """Set how many entries the verifier furthest behind lags."""

    def queued(self, realm: str, frames: int) -> None:
        """Set the length of the longest feed queue."""

    def resynchronised(self, realm: str) -> None:
        """Count a subscriber whose queue was replaced by a snapshot."""

    def receipts(self, realm: str, what: str, count: int) -> None:
        """Count uses that receipts tell of, once they are in the ledger."""

    def receipts_refused(self, realm: str, reason: str) -> None:
        """Count a batch of receipts that was not written."""

    def receipts_alarmed(self, realm: str, problem: str) -> None:
        """Count receipts that cannot be true, or that somebody made up."""

    def appended(self, entries: int, seconds: float) -> None:
        """Record one committed batch: its entries and how long it took."""

    def vault_called(self, operation: str, outcome: str, seconds: float) -> None:
        """Record one call to Vault."""

    def vault_up(self, *, is_up: bool) -> None:
        """Set whether Vault answers."""

    def key_age(self, realm: str, purpose: str, seconds: float) -> None:
        """Set the age of the key that signs; NaN when there is none."""


class Unmetered:
    """Counts nothing; for tests and tools."""

    def __getattribute__(self, name: str) -> object:
        if name.startswith("__"):
            return object.__getattribute__(self, name)
        return lambda *_: None
