"""Checkpoints (c2sp.org/tlog-checkpoint): how large a log is and with which root, signed by it and by witnesses."""

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass

from broker.errors import Invalid, NotProven
from broker.ledger.merkle import HASH_BYTES, MAX_SIZE
from broker.ledger.note import (
    KeyKind,
    Note,
    NoteSignature,
    Sign,
    VerifierKey,
    check_note,
    is_key_name,
    merged,
    parse_note,
    sign_note,
    unbase64,
)

_DECIMAL = re.compile(r"0|[1-9][0-9]{0,18}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """`size` entries of the log `origin` have the root `root`.

    Ours have no extension lines; those of others are kept as they came.
    """

    origin: str
    size: int
    root: bytes
    extensions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.origin or "\n" in self.origin:
            raise Invalid("checkpoint.origin", "is not one line")
        if not 0 <= self.size <= MAX_SIZE or len(self.root) != HASH_BYTES:
            raise Invalid("checkpoint", "has no size or no root")

    @property
    def text(self) -> str:
        """What is signed."""
        lines = (self.origin, str(self.size), base64.b64encode(self.root).decode("ascii"), *self.extensions)
        return "".join(f"{line}\n" for line in lines)


@dataclass(frozen=True, slots=True)
class LogKeys:
    """What one must pin to check a log: its origin with its keys, and witnesses of whom `quorum` must have signed.

    Raises:
        Invalid: No key, a key of another kind or name, more witnesses needed than there are.
    """

    origin: str
    keys: tuple[VerifierKey, ...]
    witnesses: tuple[VerifierKey, ...] = ()
    quorum: int = 0

    def __post_init__(self) -> None:
        if not self.keys or any(key.kind is not KeyKind.NOTE for key in self.keys):
            raise Invalid("log", "has no key of its own")
        if any(key.kind is not KeyKind.COSIGNATURE for key in self.witnesses):
            raise Invalid("witnesses", "a witness has a key of kind 04")
        if not 0 <= self.quorum <= len({key.name for key in self.witnesses}):
            raise Invalid("quorum", "is more than there are witnesses")


@dataclass(frozen=True, slots=True)
class SignedCheckpoint:
    """A checkpoint that the log signed, with the witnesses' keys, of those that were asked for, that signed it too."""

    checkpoint: Checkpoint
    note: Note
    cosigners: tuple[VerifierKey, ...] = ()


def parse_size(text: str) -> int:
    """Read a decimal number without sign or leading zeroes. Raises NotProven."""
    if not _DECIMAL.fullmatch(text) or int(text) > MAX_SIZE:
        raise NotProven("a size is not a plain decimal number")
    return int(text)


def parse_checkpoint(text: str) -> Checkpoint:
    """Read a checkpoint's text. Raises NotProven for anything else."""
    if not text.endswith("\n"):
        raise NotProven("a checkpoint's last line does not end")
    lines = text[:-1].split("\n")
    if len(lines) < 3 or not all(lines):  # noqa: PLR2004 - origin, size, root
        raise NotProven("a checkpoint has an origin, a size and a root, each on a line")
    root = unbase64(lines[2])
    if len(root) != HASH_BYTES:
        raise NotProven("a checkpoint's root has not 32 bytes")
    return Checkpoint(lines[0], parse_size(lines[1]), root, tuple(lines[3:]))


def sign_checkpoint(checkpoint: Checkpoint, key: VerifierKey, sign: Sign) -> Note:
    """Return the note of a checkpoint with the log's signature. Raises NotProven if the signature came out wrong."""
    if not is_key_name(checkpoint.origin):
        raise Invalid("checkpoint.origin", "cannot be the name of a key", hint="use something like ledger.example/eval")
    return Note(checkpoint.text, (sign_note(checkpoint.text, key, sign),))


def open_checkpoint(data: bytes, log: LogKeys) -> SignedCheckpoint:
    """Read and check a checkpoint.

    Raises:
        NotProven: Malformed; of another log; not signed by a pinned key of the log; a signature by a pinned key is
            wrong; or fewer witnesses signed than `quorum`.
    """
    note = parse_note(data)
    checkpoint = parse_checkpoint(note.text)
    if checkpoint.origin != log.origin:
        raise NotProven(f"the checkpoint is of the log {checkpoint.origin}, not of {log.origin}")
    signed = check_note(note, (*log.keys, *log.witnesses))
    if not any(key in log.keys for key in signed):
        raise NotProven(f"the checkpoint is not signed by {log.origin}")
    cosigners = tuple(key for key in signed if key in log.witnesses)
    # By name: one witness with two keys is one witness.
    if len({key.name for key in cosigners}) < log.quorum:
        raise NotProven(f"{len(cosigners)} of the {log.quorum} witnesses needed signed the checkpoint")
    return SignedCheckpoint(checkpoint, note, cosigners)


def with_cosignatures(note: Note, cosignatures: Sequence[NoteSignature], witness: VerifierKey) -> Note:
    """Return the note with what a witness answered: its own signatures, checked; all others are passed over.

    An older signature by the same key is replaced.

    Raises:
        NotProven: Its signature is wrong, or there is none.
    """
    its_own = tuple(one for one in cosignatures if one.is_of(witness))
    check_note(Note(note.text, its_own), (witness,))
    return merged(note, its_own[-1:])
