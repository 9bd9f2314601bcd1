"""From what went wrong to the line that a person reads and the exit code that a script reads."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import click

from broker.edge.cli.output import plain
from broker.errors import (
    ApprovalMismatch,
    ApprovalNeeded,
    ApprovalOver,
    BindingNeeded,
    Blocked,
    Failure,
    Forbidden,
    Invalid,
    LoginTooOld,
    NotGranted,
    Rejected,
    VotedAlready,
)

DONE = 0
FAILED = 1
USAGE = 2
DENIED = 3
INTERRUPTED = 130

WORDS = {FAILED: "failed", USAGE: "usage", DENIED: "denied"}

# A JSON object in base64url begins with `eyJ`; names, ids and thumbprints have no dot after it.
_TOKEN = re.compile(r"eyJ[A-Za-z0-9_-]{8,}\.")


class Misused(click.UsageError):
    """The command line asks for something that cannot be meant; `hint` says what to write."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class Unusable(click.ClickException):
    """A file or the network does not let the command do its work; `hint` says what to do."""

    def __init__(self, message: str, *, reason: str, hint: str = "") -> None:
        super().__init__(message)
        self.reason = reason
        self.hint = hint


class TimedOut(Unusable):
    """The time that was given to a call ran out."""


@dataclass(frozen=True, slots=True)
class Problem:
    """What is told of a failure. `reason` is one of `broker.v1.ErrorReason`, USAGE, UNREACHABLE, CONTEXT or FILE."""

    exit_code: int
    reason: str
    message: str
    hint: str

    @property
    def line(self) -> str:
        """The one line for people."""
        text = f"{self.message}; {self.hint}" if self.hint else self.message
        return f"broker: {WORDS[self.exit_code]}: {plain(text)}"

    def as_json(self) -> dict[str, object]:
        """Return what `-o json` writes to stderr."""
        return {"error": {"reason": self.reason, "message": self.message, "hint": self.hint}}


def problem_of(failure: Exception) -> Problem:
    """Return what to tell of `failure`, which is click's, the broker's or the operating system's."""
    match failure:
        case Unusable():
            return Problem(FAILED, failure.reason, failure.message, failure.hint)
        case click.UsageError():
            return Problem(USAGE, "USAGE", _one_line(failure.format_message()), _usage_hint(failure))
        case Forbidden() | NotGranted() | Blocked() | BindingNeeded() | Rejected():
            return _told(DENIED, failure)
        case ApprovalNeeded() | ApprovalOver() | ApprovalMismatch() | VotedAlready() | LoginTooOld():
            return _told(DENIED, failure)
        case Invalid():
            return _told(USAGE, failure)
        case Failure():
            return _told(FAILED, failure)
        case OSError():
            where = f"{failure.filename}: " if failure.filename else ""
            return Problem(FAILED, "FILE", f"{where}{failure.strerror or failure}", "")
        case _:
            return Problem(FAILED, "FILE", _one_line(str(failure)), "")


def refuse_unsafe(arguments: Sequence[str]) -> None:
    """Refuse arguments that must not be, before anything reads or repeats them.

    Raises:
        Misused: One holds a token, which every user of the machine could now read in the process list
            (P12), or is not text. It is not echoed.
    """
    for argument in arguments:
        if _TOKEN.search(argument):
            raise Misused(
                "an argument looks like a token; arguments are seen by others on this machine",
                hint="pass the token on stdin, and revoke this one: broker revoke --token ID",
            )
        if any("\ud800" <= character <= "\udfff" for character in argument):
            raise Misused("an argument is not UTF-8", hint="check the terminal's encoding")


def without_hint(failure: Failure) -> tuple[str, str]:
    """Return message and hint apart: what comes from the broker has the hint in its text, too."""
    hint = failure.hint or failure.metadata.get("hint", "")
    return failure.message.removesuffix(f"; {hint}"), hint


def _told(exit_code: int, failure: Failure) -> Problem:
    return Problem(exit_code, failure.reason, *without_hint(failure))


def _usage_hint(failure: click.UsageError) -> str:
    if isinstance(failure, Misused) and failure.hint:
        return failure.hint
    if failure.ctx is None:
        return "see: broker --help"
    path = failure.ctx.command_path
    if isinstance(failure, click.NoSuchOption) and not failure.option_name.startswith("--"):
        takes = [one.make_metavar(failure.ctx) for one in failure.ctx.command.params if isinstance(one, click.Argument)]
        if takes:
            return f"if it is an id that begins with a dash: {path} -- {takes[0]}"
    return f"see: {path} --help"


def _one_line(text: str) -> str:
    return " ".join(text.split()).rstrip(".")
