"""Rendering: JSON for scripts, text and tables for people."""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import IO

import click
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

# Off a terminal nothing wraps: a line of a table is a record that a script may cut.
_UNWRAPPED = 10_000


@dataclass(frozen=True, slots=True)
class Output:
    """Where results go: stdout, in the form that was asked for."""

    as_json: bool
    form: str = "text"

    def show(self, result: Mapping[str, object], text: RenderableType) -> None:
        """Print `result` as JSON, or `text` for people: a string as it is, a table in the terminal's width."""
        if self.as_json:
            click.echo(json.dumps(result, indent=2))
        elif isinstance(text, str):
            click.echo(text)
        else:
            target = console(sys.stdout)
            with target.capture() as captured:
                target.print(text)
            # Cells are padded to their column's width; what a script reads shall not end in blanks.
            click.echo("\n".join(line.rstrip() for line in captured.get().rstrip("\n").split("\n")))

    def note(self, text: str) -> None:
        """Say something beside the result, to people only."""
        if not self.as_json:
            click.echo(plain(text), err=True)


def plain(text: object) -> str:
    r"""Return one line in which nothing steers the terminal: `\x1b[2J` from afar is shown, not obeyed."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        for character in str(text)
    )


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """Return a table; its cells are shown as they are, without markup."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        made.add_column(column, overflow="fold")
    for row in rows:
        made.add_row(*(Text(plain(cell)) for cell in row))
    return made


def console(file: IO[str]) -> Console:
    """Return a console on `file`."""
    return Console(file=file, width=None if file.isatty() else _UNWRAPPED, highlight=False, soft_wrap=False)


def milliseconds(span: Duration) -> float:
    """Return a span in milliseconds, to the microsecond."""
    return round(span.ToNanoseconds() / 1e6, 3)


def instant(at: Timestamp) -> str:
    """Return an instant as RFC 3339 in UTC."""
    return at.ToJsonString()


def yes(value: bool) -> str:
    """Return a boolean for people."""
    return "yes" if value else "no"


def safe(value: object) -> object:
    """Return a cell that no spreadsheet takes for a formula: whoever is asked about may have chosen it."""
    text = str(value)
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else value
