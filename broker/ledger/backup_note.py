"""What vouches for a backup: the log's key over its hash, in a note that can be no checkpoint."""

from dataclasses import dataclass

from broker.errors import NotProven
from broker.ledger.note import KeyKind, Note, VerifierKey, check_note, parse_note, sign_note
from broker.ledger.note import Sign as Sign  # noqa: PLC0414 - part of what this module takes

# With blanks: no checkpoint's origin, which is the name of a key, has one.
_FIRST = "broker backup v1"
_LINES = 4


@dataclass(frozen=True, slots=True)
class BackupTold:
    """A backup of the log `origin`, with the SHA-256 of its file in hexadecimal, made `at` (RFC 3339)."""

    origin: str
    sha256: str
    at: str

    @property
    def text(self) -> str:
        """What is signed."""
        return f"{_FIRST}\n{self.origin}\n{self.sha256}\n{self.at}\n"


def sign_backup(told: BackupTold, public: bytes, sign: Sign) -> Note:
    """Return the note of a backup. Raises NotProven if the signature came out wrong."""
    key = VerifierKey(told.origin, KeyKind.NOTE, public)
    return Note(told.text, (sign_note(told.text, key, sign),))


def open_backup_note(data: bytes, keys: tuple[bytes, ...]) -> BackupTold:
    """Return what a note says that one of the log's keys signed. Raises NotProven."""
    note = parse_note(data)
    lines = note.text.split("\n")[:-1]
    if len(lines) != _LINES or lines[0] != _FIRST:
        raise NotProven("the note is not of a backup")
    check_note(note, [VerifierKey(lines[1], KeyKind.NOTE, public) for public in keys])
    return BackupTold(*lines[1:])
