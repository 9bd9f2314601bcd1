"""`broker audit export`, `verify` and `tail`: the log for a stranger, by what the composition root gives."""

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import click

from broker.edge.cli.command import FILE, Command, Session, answers, calls_broker
from broker.edge.cli.connection import Broker
from broker.edge.cli.context import Context, context_path, read_context
from broker.edge.cli.output import Output, plain, table
from broker.edge.cli.problems import Misused, Unusable
from broker.errors import Malformed
from broker.v1 import ledger_pb2, revocations_pb2

_MAX_FILE_BYTES = 1 << 20
_FOLDER = click.Path(path_type=Path)
_SETTLED_WITHIN_S = 10.0
_LOOK_EVERY_S = 0.5
_TOLD_EVERY = 50_000


class Follower(Protocol):
    """Checks a log as it grows."""

    size: int

    def follow(self, checkpoint: bytes) -> Iterator[tuple[Any, bytes]]:
        """Yield entries up to a checkpoint: what each says, and its exact bytes. Raises NotProven."""


class Stranger(Protocol):
    """Checks logs. See `broker.stranger`."""

    def export(
        self, folder: Path, checkpoint: bytes, size: int, source: "LogSource", progress: Callable[[int], None]
    ) -> str:
        """Write an export; return the root."""

    def verify(self, folder: Path, trust: str, witnesses: int | None, older: Sequence[bytes]) -> Mapping[str, Any]:
        """Check an export; return what was found good."""

    def follower(self, trust: str, witnesses: int | None, source: "LogSource") -> Follower:
        """Return what checks a log from its first entry on."""

    def verify_proof(
        self, document: bytes, trust: str, witnesses: int | None, entry: bytes | None
    ) -> Mapping[str, Any]:
        """Check a proof file; return what it proves."""

    def check_report_of(self, report: Mapping[str, Any], note: str, trust: str) -> Mapping[str, Any]:
        """Return what an access report says. Raises NotProven."""


Strangers = Callable[[], Stranger]
"""Loads what checks logs: it takes a while, and other commands need it not."""


class LogSource:
    """The log of a broker."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    def entries(self, start: int, limit: int) -> Sequence[bytes]:
        """Return exact bytes from `start` on: at least one, at most `limit`."""
        request = ledger_pb2.GetEntriesRequest(start=start, limit=limit)
        answer: ledger_pb2.GetEntriesResponse = self._broker.call(self._broker.ledger.GetEntries, request)
        if not 1 <= len(answer.entries) <= limit:
            raise Unusable(f"the broker gave no entry {start}", reason="NOT_PROVEN", hint="tell the log's owner")
        return answer.entries

    def completion(self, index: int) -> bytes:
        """Return a completion's document."""
        request = revocations_pb2.GetRevocationRequest(index=index)
        for answer in self._broker.stream(self._broker.revocations.GetRevocation, request, timeout_s=None):
            if answer.event.HasField("complete"):
                return "".join(f"{statement}\n" for statement in answer.event.complete.statements).encode("ascii")
        raise Unusable(
            f"the broker has no completion of revocation {index}, of which its log tells",
            reason="NOT_PROVEN",
            hint="tell the log's owner",
        )

    def checkpoint(self, *, fresh: bool = False) -> tuple[bytes, int]:
        """Return a checkpoint and how many entries it covers."""
        request = ledger_pb2.GetCheckpointRequest(fresh=fresh)
        answer: ledger_pb2.GetCheckpointResponse = self._broker.call(self._broker.ledger.GetCheckpoint, request)
        return answer.checkpoint, answer.size

    def settled_checkpoint(self) -> tuple[bytes, int, bool]:
        """Return a checkpoint of all that there is now, and whether all witnesses were asked about it."""
        note, size = self.checkpoint(fresh=True)
        until = time.monotonic() + _SETTLED_WITHIN_S
        while time.monotonic() < until:
            settled, covered = self.checkpoint()
            if covered >= size:
                return settled, covered, True
            time.sleep(_LOOK_EVERY_S / 5)
        return note, size, False


def checking_commands(strangers: Strangers) -> Sequence[click.Command]:
    """Return the commands."""

    @click.command(
        "export",
        cls=Command,
        examples=["broker audit export ./log", "broker audit verify ./log --trust trust.json"],
        keys="folder, size (entries), root (hexadecimal), witnessed (whether all witnesses were asked).",
    )
    @click.argument("folder", metavar="DIR", type=_FOLDER)
    @calls_broker()
    def export(session: Session, *, folder: Path) -> None:
        """Write the whole log to a new folder: entries, hashes, checkpoint, certificates and completions.

        The form is c2sp.org/tlog-tiles. Whoever gets it can check it with `broker audit verify`, without a broker;
        the trust file for that is not in it, and must come another way. DIR gets its name once it is whole.
        """
        with session.settings.connect(Context.for_admin) as broker:
            source = LogSource(broker)
            note, size, is_settled = source.settled_checkpoint()
            next_told = _TOLD_EVERY

            def told(done: int) -> None:
                nonlocal next_told
                if done >= next_told and done < size:
                    session.output.note(f"{done} of {size} entries")
                    next_told = done + _TOLD_EVERY

            root = strangers().export(folder, note, size, source, told)
        result = {"folder": str(folder), "size": size, "root": root, "witnessed": is_settled}
        session.output.show(result, f"wrote {size} entries to {plain(folder)}; their root is {root}")
        if not is_settled:
            session.output.note("the witnesses have not answered: the checkpoint may lack their signatures")

    @click.command(
        "verify",
        cls=Command,
        examples=[
            "broker audit verify ./log --trust trust.json",
            "broker audit verify ./log --trust trust.json --checkpoint last-week.checkpoint",
        ],
        keys="good (true; anything else is an error, exit code 1), origin, incarnation, size, root, kinds (entries of "
        "each kind), certificates, completions, witnesses (names that signed), witnesses_wanted, goes_on_from (sizes "
        "of the checkpoints given).",
    )
    @click.argument("folder", metavar="DIR", type=_FOLDER)
    @click.option(
        "--trust", "trust_file", type=FILE, envvar="BROKER_TRUST", help="Trust file. Default: the one of the context."
    )
    @click.option(
        "--checkpoint",
        "older",
        multiple=True,
        type=FILE,
        help="A checkpoint that you kept: the log must go on from it. May be repeated.",
    )
    @click.option(
        "--witnesses",
        type=click.IntRange(0),
        help="How many of the trust file's witnesses must have signed. Default: all of them.",
    )
    @click.option("--context", "context_file", type=FILE, envvar="BROKER_CONTEXT", help="Context file.")
    @answers
    def verify(
        output: Output,
        *,
        folder: Path,
        trust_file: Path | None,
        older: tuple[Path, ...],
        witnesses: int | None,
        context_file: Path | None,
    ) -> None:
        """Check an export, without a broker and without a network, and name the first thing that is wrong.

        Files, signatures, the tree, certificates up to the pinned roots, completions, and the order of what
        happened: no token before a policy or while its partner is blocked, none by a key that no root certified,
        no use that a verifier accepted after it had applied the revocation.
        """
        pinned = trust_file or read_context(context_file or context_path(os.environ)).trust
        kept = [read_file(path) for path in older]
        with trusting(pinned):
            result = strangers().verify(folder, read_file(pinned).decode("utf-8", "replace"), witnesses, kept)
        output.show(result, table(["", ""], _rows(result)))

    @click.command(
        "tail",
        cls=Command,
        examples=["broker audit tail", "broker audit tail -f -o json | jq -c 'select(.kind == \"revoked\")'"],
        keys="One line for each entry: the entry as the log has it.",
    )
    @click.option("-f", "--follow", is_flag=True, help="Go on with what comes, until interrupted.")
    @click.option(
        "-n", "--lines", type=click.IntRange(0), default=10, show_default=True, help="How many to begin with."
    )
    @click.option("--witnesses", type=click.IntRange(0), default=0, show_default=True, help="As of verify.")
    @calls_broker()
    def tail(session: Session, *, follow: bool, lines: int, witnesses: int) -> None:
        """Show the newest entries, once the whole log was checked; with -f check and show each that comes.

        It ends with an error at the first thing that is wrong: what it shows was found good, by the rules of
        `broker audit verify`.
        """
        pinned = session.settings.trust_file()
        with session.settings.connect(Context.for_admin) as broker, trusting(pinned):
            source = LogSource(broker)
            follower = strangers().follower(read_file(pinned).decode("utf-8", "replace"), witnesses, source)
            note, size, _ = source.settled_checkpoint()
            for entry, data in follower.follow(note):
                if entry.index >= size - lines:
                    _show(session.output, entry, data)
            while follow:
                time.sleep(_LOOK_EVERY_S)
                for entry, data in follower.follow(source.checkpoint()[0]):
                    _show(session.output, entry, data)

    return export, verify, tail


@contextmanager
def trusting(pinned: Path) -> Iterator[None]:
    """Tell of a file that is no trust file by its name. Raises Unusable."""
    try:
        yield
    except Malformed as bad:
        raise Unusable(
            f"{pinned} is no trust file: {bad.message}", reason="FILE", hint="get one with: broker trust > trust.json"
        ) from bad


def read_file(path: Path) -> bytes:
    """Return what is in a small file. Raises Unusable, Misused."""
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_FILE_BYTES + 1)
    except OSError as bad:
        raise Unusable(f"{path}: {bad.strerror or bad}", reason="FILE", hint="name a file that can be read") from bad
    if len(data) > _MAX_FILE_BYTES:
        raise Misused(f"{path} is too long", hint="name a trust file, a checkpoint or a proof")
    return data


def _show(output: Output, entry: Any, data: bytes) -> None:
    if output.as_json:
        # As it is in the log: what a script keeps can be hashed.
        click.echo(data.decode("ascii"))
        return
    at = entry.at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    click.echo(plain(f"{entry.index:>7}  {at}  {entry.kind.value:<21}  {entry.by}  {summary(entry.body)}".rstrip()))


def summary(body: Mapping[str, Any]) -> str:
    """Return what an entry is about, in a few words."""
    said = {**body, **body.get("claims", {}), **body.get("selector", {})}
    names = ("realm", "partner", "user", "workload", "run", "test", "models", "jti", "token", "revocation", "reason")
    return " ".join(f"{name}={_short(said[name])}" for name in names if said.get(name))


def _short(value: object) -> str:
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    return json.dumps(text) if " " in text else text


def _rows(result: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    yield "good", f"{result['size']} entries of {result['origin']}"
    yield "root", result["root"]
    yield "witnesses", witnesses_of(result)
    yield "certificates", f"{result['certificates']}, each by a root of the trust file"
    yield "completions", f"{result['completions']}, each signed for its revocation"
    for size in result["goes_on_from"]:
        yield "goes on from", f"the {size} entries that you knew"
    yield "entries", ", ".join(f"{count} {kind}" for kind, count in result["kinds"].items())


def witnesses_of(result: Mapping[str, Any]) -> str:
    """Return who signed a checkpoint, for people."""
    signed = ", ".join(result["witnesses"]) or "none"
    return f"{signed} ({result['witnesses_wanted']} wanted)"
