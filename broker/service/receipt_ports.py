"""What receipts need of the store: whose keys sign them, and up to where they are written."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class ReceiptKeyIsNew:
    """Guard: nobody has enrolled this key. Refused with `RequestReused`."""

    kid: str


@dataclass(frozen=True, slots=True)
class ReceiptsFollow:
    """Guard: the receipts of this key are written up to `after`, and no further. Refused with `ReceiptsOutOfOrder`.

    So each is written once, however often it is sent, and to however many brokers.
    """

    kid: str
    after: int


@dataclass(frozen=True, slots=True)
class ReceiptKeyEnrolled:
    """Effect: receipts that `kid` signs are this verifier's; `point` is the public key (SEC 1, uncompressed)."""

    kid: str
    realm: str
    verifier: str
    point: bytes


@dataclass(frozen=True, slots=True)
class ReceiptsWritten:
    """Effect: the receipts of this key are written up to `through`."""

    kid: str
    through: int


@dataclass(frozen=True, slots=True)
class ReceiptKeyRecord:
    """A key as stored."""

    kid: str
    realm: str
    verifier: str
    point: bytes
    index: int
    through: int


class ReceiptBook(Protocol):
    """Receipt keys as they are kept. Written by `Ledger.append`; reads are of the primary.

    Safe to call from any thread. Every method raises StoreUnavailable.
    """

    def receipt_key(self, kid: str) -> ReceiptKeyRecord | None:
        """Return a key, or None: nobody enrolled it."""

    def entries_at(self, indices: Collection[int]) -> Mapping[int, bytes]:
        """Return the bytes of those entries that exist, at most 1,000 at once."""
