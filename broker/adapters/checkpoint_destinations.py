"""Where checkpoints go beside the store: a file, and a command of the admin's choice."""

import os
import secrets
import subprocess
from collections.abc import Sequence
from pathlib import Path

from broker.errors import ConfigInvalid, NotProven
from broker.ledger.checkpoint import Checkpoint, parse_checkpoint
from broker.ledger.note import MAX_NOTE_BYTES, parse_note
from broker.service.tree_ports import CheckpointRecord

COMMAND_TIMEOUT_S = 30.0


class CheckpointFile:
    """Keeps the newest checkpoint in a file, whole or not at all, also after a power cut."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, record: CheckpointRecord) -> str:
        """Write it; return what went wrong, or nothing."""
        draft = self.path.with_name(f".{self.path.name}.{secrets.token_hex(4)}")
        try:
            with draft.open("xb") as file:
                file.write(record.note.encode())
                file.flush()
                os.fsync(file.fileno())
            draft.replace(self.path)
        except OSError as problem:
            draft.unlink(missing_ok=True)
            return f"the checkpoint file {self.path} cannot be written: {problem.strerror}"
        return ""

    def read(self) -> Checkpoint | None:
        """Return the checkpoint in the file, None if there is no file. Checks no signature.

        Raises:
            ConfigInvalid: What is there cannot be read, or is no checkpoint.
        """
        try:
            with self.path.open("rb") as file:
                data = file.read(MAX_NOTE_BYTES + 1)
        except FileNotFoundError:
            return None
        except OSError as problem:
            raise ConfigInvalid(str(self.path), (f"cannot be read: {problem.strerror}",)) from problem
        try:
            return parse_checkpoint(parse_note(data).text)
        except NotProven as bad:
            raise ConfigInvalid(
                str(self.path), (f"is no checkpoint ({bad.message}): put the right one back, or move it away",)
            ) from bad


class CheckpointCommand:
    """Runs a command with each new checkpoint on its standard input; never two at once, not for long."""

    def __init__(self, command: Sequence[str], *, timeout_s: float = COMMAND_TIMEOUT_S) -> None:
        self._command = tuple(command)
        self._timeout_s = timeout_s

    def __call__(self, record: CheckpointRecord) -> str:
        """Run it; return what went wrong, or nothing."""
        try:
            done = subprocess.run(  # noqa: S603 - the admin's own words, without a shell
                self._command,
                input=record.note.encode(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=self._timeout_s,
                check=False,
            )
        except OSError as problem:
            return f"the checkpoint command {self._command[0]} cannot be run: {problem.strerror}"
        except subprocess.TimeoutExpired:
            return f"the checkpoint command {self._command[0]} took longer than {self._timeout_s:.0f} s"
        return f"the checkpoint command {self._command[0]} ended with {done.returncode}" if done.returncode else ""
