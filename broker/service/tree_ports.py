"""What proving the past needs of the store and of a key: the tree beside the ledger, its checkpoints, their signer."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from broker.ledger.note import NoteSignature, VerifierKey
from broker.ledger.witnessing import AddCheckpoint


@dataclass(frozen=True, slots=True)
class TreeHead:
    """The Merkle tree of all entries of one moment; `root` is RFC 6962's over their exact bytes."""

    incarnation: str
    size: int
    root: bytes


@dataclass(frozen=True, slots=True)
class CheckpointRecord:
    """A checkpoint as kept: the signed note of a tree of `size` entries.

    `is_settled`: every witness that is asked has answered, or had its time.
    """

    size: int
    note: str
    at: datetime
    is_settled: bool


class Tree(Protocol):
    """The Merkle tree of the ledger, kept up by each append in its own transaction. Reads are of the primary.

    Nothing of it ever changes: what was returned once is returned for ever. Safe to call from any thread.
    Every method raises StoreUnavailable, and StoreCorrupt for a tree that cannot be the ledger's.
    """

    def head(self) -> TreeHead:
        """Return the tree as of the newest entry, in time independent of its size."""

    def tile(self, level: int, index: int) -> Sequence[bytes]:
        """Return the hashes that there are of a tile (c2sp.org/tlog-tiles), at most 256; none beyond the tree's end."""


class Checkpoints(Protocol):
    """The newest checkpoints, whichever broker signed them. No part of the ledger.

    Safe to call from any thread. Every method raises StoreUnavailable.
    """

    def newest(self, *, settled: bool = False) -> CheckpointRecord | None:
        """Return the checkpoint of the largest tree, or of the largest that is settled; None: there is none."""

    def keep(self, record: CheckpointRecord) -> CheckpointRecord:
        """Keep a checkpoint, durably, unless there is one of that size; return the one that is kept.

        Only some of the newest stay.
        """

    def settle(self, size: int, cosignatures: Sequence[NoteSignature]) -> None:
        """Add cosignatures to a kept checkpoint, one for each key, and settle it. Of one that is gone: nothing."""


class CheckpointSigner(Protocol):
    """The log's Ed25519 key. Never on the way of a mint. Safe to call from any thread."""

    def public_keys(self) -> Sequence[bytes]:
        """Return the public keys, 32 bytes each, newest first, at least one. Raises SignerUnavailable."""

    def sign(self, message: bytes) -> bytes:
        """Sign with the newest: 64 bytes (RFC 8032). Whoever asks verifies. Raises SignerUnavailable."""


@dataclass(frozen=True, slots=True)
class Cosigned:
    """A witness went on to the checkpoint. Nothing of its signatures is checked yet."""

    signatures: tuple[NoteSignature, ...]


@dataclass(frozen=True, slots=True)
class Behind:
    """A witness saw a tree of another size last than it was asked to go on from, or, of the same size, another tree."""

    size: int


@dataclass(frozen=True, slots=True)
class Parted:
    """A witness finds that the checkpoint does not go on from what it saw."""


@dataclass(frozen=True, slots=True)
class NoAnswer:
    """A witness is away, refused, or answered what makes no sense; `why` is for people."""

    why: str


class Witness(Protocol):
    """One who watches that our log only grows (c2sp.org/tlog-witness). Safe to call from any thread.

    Every call ends within some seconds, and raises nothing.
    """

    @property
    def key(self) -> VerifierKey:
        """The key that it signs with, as the admin pinned it."""

    def add_checkpoint(self, request: AddCheckpoint) -> Cosigned | Behind | Parted | NoAnswer:
        """Ask it to sign."""

    def last(self, origin: str) -> bytes | None:
        """Return the last checkpoint that it saw of a log, a note that is not checked, or None if it shows none."""
