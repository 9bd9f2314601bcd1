"""`broker revoke show`: how far a revocation is, and its completion, by its index."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import click

from broker.edge.cli.command import Command, Session, calls_broker, export_options, waiting_options
from broker.edge.cli.context import Context
from broker.edge.cli.exporting import must_be_free, try_export
from broker.edge.cli.outcomes import KEYS, report_of, result_of
from broker.edge.cli.problems import Unusable
from broker.edge.cli.waiting import Watched, follow, unfinished
from broker.v1 import revocations_pb2 as pb

MAX_INDEX = 2**63 - 1


@click.command(
    "show",
    cls=Command,
    short_help="Show a revocation, and its completion, by its index.",
    examples=[
        "broker revoke show 17",
        "broker revoke show 17 --wait --timeout 5m",
        "broker revoke show 17 --export revocation-17.jws",
    ],
    keys=f"{KEYS}.",
)
@click.argument("index", type=click.IntRange(0, MAX_INDEX))
@waiting_options
@export_options
@calls_broker()
def show(session: Session, *, index: int, wait: bool, timeout: int, export: Path | None, force: bool) -> None:
    """Show how far the revocation at a ledger index is, and its signed completion.

    Whoever asks, and however often, is told the same.
    """
    if export is not None:
        must_be_free(export, force=force)
    watched = Watched()
    request = pb.GetRevocationRequest(index=index, wait=wait)
    with session.settings.connect(Context.for_admin) as broker:
        events = broker.stream(broker.revocations.GetRevocation, request, timeout_s=timeout if wait else None)
        ended = follow(inner(events), watched, session.output if wait else None, is_new=False)
    if watched.committed is None:
        raise ended or Unusable("the broker told of no revocation", reason="UNREACHABLE", hint="try again")
    problem = None
    if export is not None and watched.complete is not None:
        problem = try_export(watched.complete.statements, export, force=force, index=watched.committed.index)
    session.output.show(result_of(watched), report_of(watched, exported=export if problem is None else None))
    if problem is not None:
        raise problem
    if watched.complete is not None:
        return
    if not watched.committed.awaits_completion:
        session.output.note("nobody asked for its completion, and it blocks nothing: none will be made")
    if wait and watched.committed.awaits_completion:
        raise unfinished(watched, ended, timeout) from ended
    if wait or export is not None:
        hint = f"add --wait: broker revoke show {index} --wait" if watched.committed.awaits_completion else ""
        raise Unusable(
            f"there is no completion of the revocation at index {index}", reason="NOT_FOUND", hint=hint
        ) from ended
    if ended is not None:
        raise ended


def inner(answers: Iterable[Any]) -> Iterator[pb.RevokeResponse]:
    """Yield the events in answers that carry one each."""
    for answer in answers:
        yield answer.event
