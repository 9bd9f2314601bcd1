"""Exports in memory: made of a log's entries, signed by a key of this test, changed at will."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from broker.audit.export import Checked, check_export
from broker.audit.writing import ExportWriter
from broker.errors import NotProven
from broker.ledger.checkpoint import Checkpoint, LogKeys, sign_checkpoint
from broker.ledger.entry import Kind, decode_entry, encode_entry, leaf_hash
from broker.ledger.merkle import Frontier
from broker.ledger.note import KeyKind, VerifierKey, cosign_note, merged
from broker.token.keys import RealmTrust

ORIGIN = "ledger.example/eval/1"


@dataclass
class MemoryFiles:
    """The files of an export. Implements `Files`."""

    files: dict[str, bytes]

    def names(self) -> Sequence[str]:
        return list(self.files)

    def read(self, name: str, most: int) -> bytes:
        data = self.files[name]
        if len(data) > most:
            raise NotProven(f"{name}: is longer than it can be")
        return data


class LogSigner:
    """A key of a log, or of a witness."""

    def __init__(self, name: str = ORIGIN, kind: KeyKind = KeyKind.NOTE) -> None:
        self.key = Ed25519PrivateKey.generate()
        self.vkey = VerifierKey(name, kind, self.key.public_key().public_bytes_raw())

    def checkpoint(self, entries: Sequence[bytes], witnesses: Sequence["LogSigner"] = (), origin: str = "") -> bytes:
        root = Frontier().extended(map(leaf_hash, entries)).root()
        note = sign_checkpoint(Checkpoint(origin or self.vkey.name, len(entries), root), self.vkey, self.key.sign)
        made = [cosign_note(note.text, one.vkey, one.key.sign, 1_800_000_000) for one in witnesses]
        return str(merged(note, made)).encode()


@dataclass
class Log:
    """A log's entries with its completions, and what a stranger pins of it."""

    entries: list[bytes]
    completions: Mapping[int, bytes]
    trust: Mapping[str, RealmTrust]
    signer: LogSigner = field(default_factory=LogSigner)

    @property
    def keys(self) -> LogKeys:
        return LogKeys(self.signer.vkey.name, (self.signer.vkey,))

    def files(self, entries: Sequence[bytes] | None = None, checkpoint: bytes | None = None) -> dict[str, bytes]:
        """Return the files of an export of these entries, which the log's own key signs."""
        entries = self.entries if entries is None else entries
        made: dict[str, bytes] = {}
        writer = ExportWriter(made.__setitem__, lambda index: self.completions[index])
        for data in entries:
            writer.take(data)
        writer.close(self.signer.checkpoint(entries) if checkpoint is None else checkpoint)
        return made

    def check(self, files: dict[str, bytes], older: Sequence[bytes] = ()) -> Checked:
        return check_export(MemoryFiles(files), self.trust, self.keys, older)

    def check_entries(self, entries: Sequence[bytes]) -> Checked:
        """Check what an insider with the log's key could publish."""
        return self.check(self.files(entries))

    def first(self, kind: Kind, which: Callable[[Mapping[str, Any]], object] = lambda _: True) -> int:
        """Return the index of the first entry of a kind."""
        for data in self.entries:
            entry = decode_entry(data)
            if entry.kind is kind and which(entry.body):
                return entry.index
        raise AssertionError(f"no {kind.value} in {[decode_entry(one).kind.value for one in self.entries]}")

    def body(self, index: int) -> dict[str, Any]:
        body: dict[str, Any] = json.loads(self.entries[index])["body"]
        return body


def renumbered(entries: Sequence[bytes]) -> list[bytes]:
    """Return entries at new places: each says where it stands, and tokens say it, too."""
    made = []
    for index, data in enumerate(entries):
        fields = json.loads(data)
        fields["index"] = index
        made.append(_respelled(fields))
    return made


def changed(data: bytes, **body: Any) -> bytes:
    """Return an entry with other members of its body; None takes one out."""
    fields = json.loads(data)
    fields["body"].update(body)
    fields["body"] = {name: value for name, value in fields["body"].items() if value is not None}
    return _respelled(fields)


def _respelled(fields: dict[str, Any]) -> bytes:
    data = json.dumps(fields, sort_keys=True, separators=(",", ":")).encode("ascii")
    assert encode_entry(decode_entry(data)) == data
    return data
