"""Following a revocation: what is known of it so far, shown while it is waited for."""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from rich.console import Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from broker.edge.cli.durations import shown
from broker.edge.cli.output import Output, console, plain
from broker.edge.cli.problems import TimedOut, Unusable, without_hint
from broker.errors import Failure, NotFound
from broker.v1 import revocations_pb2 as pb

MOST_NAMED = 3


@dataclass(slots=True)
class Watched:
    """What is known so far of a revocation that was asked for."""

    committed: pb.RevocationCommitted | None = None
    progress: pb.RevocationProgress = field(default_factory=pb.RevocationProgress)
    complete: pb.RevocationComplete | None = None
    preview: pb.RevocationPreview | None = None
    # Whether anything was told of how far it is.
    is_reported: bool = False

    def take(self, event: pb.RevokeResponse) -> None:
        """Take one event in."""
        match event.WhichOneof("event"):
            case "committed":
                self.committed = event.committed
            case "progress":
                self.progress = event.progress
                self.is_reported = True
            case "complete":
                self.complete = event.complete
            case "preview":
                self.preview = event.preview
            case _:
                pass  # of a newer broker

    @property
    def settled(self) -> int:
        """How many verifiers accept no matching token any more."""
        return self.progress.acknowledged + self.progress.lapsed

    @property
    def waits_for(self) -> str:
        """What is waited for, by name if it is a few."""
        names = list(self.progress.waiting_for)[:MOST_NAMED]
        others = max(self.progress.waiting, len(self.progress.waiting_for)) - len(names)
        parts = [*names, *([f"{others} more"] if others > 0 and names else [])]
        return "; ".join(part for part in (", ".join(parts), self.progress.waits_for) if part)


def follow(
    events: Iterable[pb.RevokeResponse], watched: Watched, waiting: Output | None, *, is_new: bool = True
) -> Exception | None:
    """Take all events in; return what ended them early, or None.

    Whoever is `waiting` is told of a new commit at once: from there on, Ctrl-C undoes nothing.
    """
    rest = iter(events)
    try:
        while watched.committed is None and (event := next(rest, None)) is not None:
            watched.take(event)
        if waiting is not None and is_new and watched.committed is not None:
            waiting.note(
                f"revoked at index {watched.committed.index}; waiting until no verifier accepts a matching token"
            )
        with live(watched, show=waiting is not None and not waiting.as_json) as update:
            for event in rest:
                watched.take(event)
                update()
    except (Unusable, Failure) as problem:
        return problem
    return None


def unfinished(watched: Watched, ended: Exception | None, timeout: int) -> Exception:
    """Return what to say of a revocation that holds, though it is not known to be complete."""
    if watched.committed is None:
        return ended or Unusable("the broker told of no revocation", reason="UNREACHABLE")
    if isinstance(ended, NotFound):
        return ended
    index = watched.committed.index
    match ended:
        case TimedOut():
            why = f"the waiting ended after {shown(timeout)}"
        case Failure():
            why = f"the broker ended the stream: {without_hint(ended)[0]}"
        case _:
            why = f"the stream broke: {ended}" if ended is not None else "the broker ended the stream"
    waits_for = f" (waiting for {watched.waits_for})" if watched.waits_for else ""
    far = (
        f"{watched.settled} of {watched.progress.listening} verifiers had stopped"
        if watched.is_reported
        else "it is not known yet who has stopped"
    )
    return Unusable(
        f"it is revoked at index {index}, but {far}{waits_for} when {why}",
        reason="UNREACHABLE",
        hint=f"it goes on without you; look later with: broker revoke show {index} --wait",
    )


@contextmanager
def live(watched: Watched, *, show: bool) -> Iterator[Callable[[], None]]:
    """Show the progress on stderr, if that is a terminal."""
    if not show or not sys.stderr.isatty():
        yield lambda: None
        return
    columns = (TextColumn("verifiers that deny"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    bar = Progress(*columns, console=console(sys.stderr))
    task = bar.add_task("", total=None)

    def drawn() -> Any:
        return Group(bar, Text(plain(progress_line(watched)), overflow="ellipsis", no_wrap=True))

    with Live(get_renderable=drawn, console=console(sys.stderr), transient=True, refresh_per_second=8):

        def update() -> None:
            bar.update(task, total=watched.progress.listening or None, completed=watched.settled)

        yield update


def progress_line(watched: Watched) -> str:
    """Return how far it is, in one line."""
    state = watched.progress
    line = f"{state.acknowledged} acknowledged, {state.lapsed} lapsed, {state.waiting} still waiting"
    return f"{line}: {watched.waits_for}" if watched.waits_for else line
