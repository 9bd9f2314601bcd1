"""`broker revoke`."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import click
from rich.console import Group
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from broker.edge.cli.command import Command, Session, calls_broker, reason_option, request_id_option
from broker.edge.cli.context import Context
from broker.edge.cli.durations import Span, shown
from broker.edge.cli.output import Output, console, instant, milliseconds, plain, table
from broker.edge.cli.problems import Misused, Unusable
from broker.edge.cli.selectors import selector_fields, selector_flags, selector_options, selector_text
from broker.errors import Failure
from broker.v1 import revocations_pb2 as pb
from broker.v1 import selector_pb2

DEFAULT_WAIT = "1m"


@dataclass(slots=True)
class Watched:
    """What is known so far of a revocation that was asked for."""

    committed: pb.RevocationCommitted | None = None
    progress: pb.RevocationProgress = field(default_factory=pb.RevocationProgress)
    complete: pb.RevocationComplete | None = None

    def take(self, event: pb.RevokeResponse) -> None:
        """Take one event in."""
        match event.WhichOneof("event"):
            case "committed":
                self.committed = event.committed
            case "progress":
                self.progress = event.progress
            case "complete":
                self.complete = event.complete
            case _:
                pass  # of a newer broker


@click.command(
    cls=Command,
    examples=[
        'broker revoke --partner acme --reason "contract ended" --wait',
        'broker revoke --run 3q2WdSCwS7mVYhJ0 --reason "prompt leaked"',
        'broker revoke --realm research --yes --reason "incident 7" --wait --timeout 2m',
        "broker token inspect -o json < token | jq -r .claims.jti   # the id for --token",
    ],
    keys="selector (its dimensions), index, committed_at, blocks, bound_ms, request_id, complete; with --wait also "
    "took_ms and verifiers: [verifier, realm, acknowledged, after_ms], the slowest first.",
)
@selector_options
@reason_option
@click.option("--wait", is_flag=True, help="Wait until no verifier accepts a matching token any more.")
@click.option("--yes", is_flag=True, help="Confirm a selector that is nothing but a realm.")
@click.option("--timeout", type=Span(), default=DEFAULT_WAIT, show_default=True, help="Longest time for --wait.")
@request_id_option
@calls_broker(has_key_selector=True)
def revoke(
    session: Session,
    *,
    selector: selector_pb2.Selector,
    reason: str,
    wait: bool,
    yes: bool,
    timeout: int,
    request_id: str,
) -> None:
    """Revoke every matching token that was minted before now.

    A token matches if it has all that the selector names. A selector of realm, partner, user, workload,
    environment, model and label also blocks new mints until `broker reinstate`.
    """
    if list(selector_fields(selector)) == ["realm"] and not yes:
        raise Misused(f"this would revoke everything in realm {selector.realm}", hint="if you mean it, add --yes")
    request = pb.RevokeRequest(request_id=request_id, selector=selector, reason=reason, wait=wait, whole_realm=yes)
    watched = Watched()
    ended: Exception | None = None
    with session.settings.connect(Context.for_admin) as broker:
        try:
            events = broker.stream(broker.revocations.Revoke, request, timeout_s=timeout if wait else None)
            _watch(events, watched, session.output if wait else None)
        except (Unusable, Failure) as problem:
            ended = problem
    if watched.committed is None:
        raise ended or Unusable("the broker committed nothing", reason="UNREACHABLE", hint=_repeat(request))
    session.output.show(
        _result(watched.committed, watched.complete, request), _report(watched.committed, watched.complete, request)
    )
    if wait and watched.complete is None:
        raise _unfinished(watched, request) from ended


def _watch(events: Iterable[pb.RevokeResponse], watched: Watched, waiting: Output | None) -> None:
    """Take all events in. Whoever is `waiting` is told of the commit at once: from there on, Ctrl-C undoes nothing."""
    rest = iter(events)
    while watched.committed is None and (event := next(rest, None)) is not None:
        watched.take(event)
    if waiting is not None and watched.committed is not None:
        waiting.note(f"revoked at index {watched.committed.index}; waiting until no verifier accepts a matching token")
    with _live(watched, show=waiting is not None and not waiting.as_json) as update:
        for event in rest:
            watched.take(event)
            update()


def _unfinished(watched: Watched, request: pb.RevokeRequest) -> Unusable:
    """Return what to say of a revocation that holds, though not every verifier has answered."""
    answered = watched.progress.acknowledged + watched.progress.lapsed
    return Unusable(
        f"it is revoked, but {answered} of {watched.progress.listening} verifiers had answered when the waiting ended",
        reason="UNREACHABLE",
        hint=f"see: broker verifiers; {_repeat(request)}",
    )


def _repeat(request: pb.RevokeRequest) -> str:
    return f"repeat the same command with --request-id {request.request_id}: it does nothing twice"


@contextmanager
def _live(watched: Watched, *, show: bool) -> Iterator[Any]:
    """Show the progress on stderr, if that is a terminal."""
    if not show or not sys.stderr.isatty():
        yield lambda: None
        return
    columns = (TextColumn("verifiers that deny"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console(sys.stderr), transient=True) as bar:
        task = bar.add_task("", total=None)

        def update() -> None:
            state = watched.progress
            bar.update(task, total=state.listening or None, completed=state.acknowledged + state.lapsed)

        yield update


def _result(
    committed: pb.RevocationCommitted, complete: pb.RevocationComplete | None, request: pb.RevokeRequest
) -> dict[str, object]:
    result: dict[str, object] = {
        "selector": selector_fields(request.selector),
        "index": committed.index,
        "committed_at": instant(committed.committed_at),
        "blocks": committed.blocks,
        "bound_ms": milliseconds(committed.bound),
        "request_id": request.request_id,
        "complete": complete is not None,
    }
    if complete is not None:
        result["took_ms"] = milliseconds(complete.took)
        result["verifiers"] = [
            {
                "verifier": one.verifier,
                "realm": one.realm,
                "acknowledged": one.acknowledged,
                "after_ms": milliseconds(one.after),
            }
            for one in _slowest_first(complete)
        ]
    return result


def _slowest_first(complete: pb.RevocationComplete) -> list[pb.VerifierOutcome]:
    return sorted(complete.verifiers, key=lambda one: one.after.ToNanoseconds(), reverse=True)


def _report(
    committed: pb.RevocationCommitted, complete: pb.RevocationComplete | None, request: pb.RevokeRequest
) -> Group:
    lines = [f"revoked {selector_text(request.selector)} at index {committed.index}"]
    if committed.blocks:
        lines.append(f"new mints are blocked until: broker reinstate {selector_flags(request.selector)} --reason ...")
    if complete is None:
        bound = shown(committed.bound.ToNanoseconds() / 1e9)
        lines.append(f"no verifier accepts a matching token for longer than {bound} from then")
    else:
        took = shown(complete.took.ToNanoseconds() / 1e9)
        lines.append(f"complete after {took}: no verifier accepts a matching token any more")
    outcomes = [_outcomes(complete)] if complete is not None and complete.verifiers else []
    return Group(*(Text(plain(line)) for line in lines), *outcomes)


def _outcomes(complete: pb.RevocationComplete) -> Table:
    return table(
        ["VERIFIER", "REALM", "HOW", "AFTER"],
        [
            (
                one.verifier,
                one.realm,
                "acknowledged" if one.acknowledged else "lease ran out",
                f"{milliseconds(one.after):.1f} ms",
            )
            for one in _slowest_first(complete)
        ],
    )
