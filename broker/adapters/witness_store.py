"""What a witness remembers: the last checkpoint of each log, checked and kept in one step."""

import hashlib
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from broker.adapters.key_files import write_secret
from broker.errors import Invalid, NotProven, StoreCorrupt, StoreUnavailable
from broker.ledger.checkpoint import Checkpoint, LogKeys, parse_checkpoint
from broker.ledger.note import Note, NoteSignature, VerifierKey, parse_note
from broker.ledger.witnessing import Accepted, AddCheckpoint, Turned, judge

_MEND = "free space there, or mend the disk; nothing was signed, and the log asks again by itself"

Cosign = Callable[[str], NoteSignature]
"""Signs a checkpoint's text as of now."""


class WitnessStore:
    """One file for each log, in a folder that one process holds. Safe for use by several threads.

    A file that can be read is not yet one that outlives a power cut: what is shown is what was seen to the disk.
    """

    def __init__(self, folder: Path, logs: Mapping[str, LogKeys], cosign: Cosign) -> None:
        """Read what was kept.

        Raises:
            StoreCorrupt: A file is damaged, and only a person knows what was in it.
            StoreUnavailable: It cannot be read, or not be written anew.
        """
        self._folder = folder
        self._logs = dict(logs)
        self._cosign = cosign
        self._lock = threading.Lock()
        # What a request must go on from.
        self._last: dict[str, Checkpoint] = {}
        # What is durable, by hashed origin.
        self._notes: dict[str, bytes] = {}
        for origin in self._logs:
            note = self._reread(origin)
            if note is not None:
                # It may have been left by a process whose sync failed, or that was killed before it.
                self._write(origin, note)

    def add(self, request: AddCheckpoint, origin: str) -> NoteSignature | Turned:
        """Judge a request, keep its checkpoint durably and sign it, or say why not.

        Raises:
            StoreUnavailable: It could not be kept, so it is not signed.
        """
        log = self._logs.get(origin)
        if log is None:
            return Turned(404, f"the log {origin} is not known here")
        # In one step: a smaller tree, checked before a larger one was kept, would take us back.
        with self._lock:
            verdict = judge(request, log, self._last.get(origin))
            if isinstance(verdict, Turned):
                return verdict
            return self._keep(origin, verdict)

    def last(self, name: str) -> bytes | None:
        """Return the note that was kept last of the log with this hashed origin, or None."""
        return self._notes.get(name)

    def knows(self, name: str) -> bool:
        """Tell whether a known log has this hashed origin."""
        return any(hashed(origin) == name for origin in self._logs)

    def _keep(self, origin: str, accepted: Accepted) -> NoteSignature:
        signature = self._cosign(accepted.note.text)
        # Signatures of others, which nobody here checked, are not handed on.
        own = tuple(one for one in accepted.note.signatures if any(one.is_of(key) for key in self._logs[origin].keys))
        note = Note(accepted.note.text, (*own, signature))
        try:
            self._write(origin, str(note).encode())
        except StoreUnavailable:
            # Either may be there after a power cut: none of them is to be contradicted.
            self._reread(origin)
            raise
        self._last[origin] = accepted.checkpoint
        return signature

    def _write(self, origin: str, note: bytes) -> None:
        path = self._path(hashed(origin))
        try:
            write_secret(path, note)
        except OSError as problem:
            raise StoreUnavailable(f"{path} cannot be written: {problem.strerror}", hint=_MEND) from problem
        self._notes[hashed(origin)] = note

    def _reread(self, origin: str) -> bytes | None:
        """Go on from what the file says; return it, or None where there is none. It need not be durable."""
        path = self._path(hashed(origin))
        try:
            note = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as problem:
            raise StoreUnavailable(f"{path} cannot be read: {problem.strerror}", hint=_MEND) from problem
        self._last[origin] = _read(note, path, origin)
        return note

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.checkpoint"


def hashed(origin: str) -> str:
    """Return the name under which a log's last checkpoint is shown."""
    return hashlib.sha256(origin.encode()).hexdigest()


def logs_of(keys: tuple[VerifierKey, ...]) -> dict[str, LogKeys]:
    """Return the logs with these keys: a key's name is its log's origin. Raises Invalid."""
    logs: dict[str, LogKeys] = {}
    for key in keys:
        before = logs[key.name].keys if key.name in logs else ()
        logs[key.name] = LogKeys(key.name, (*before, key))
    if not logs:
        raise Invalid("log", "a witness needs at least one log", hint="give its key with --log")
    return logs


def _read(data: bytes, path: Path, origin: str) -> Checkpoint:
    try:
        checkpoint = parse_checkpoint(parse_note(data).text)
    except NotProven as bad:
        raise StoreCorrupt(
            f"{path} is damaged ({bad.message})", hint=f"put back the last checkpoint that was cosigned of {origin}"
        ) from bad
    if checkpoint.origin != origin:
        raise StoreCorrupt(f"{path} is of the log {checkpoint.origin}", hint="put the right file back")
    return checkpoint
