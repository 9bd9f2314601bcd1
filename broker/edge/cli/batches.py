"""`broker revoke tokens`: many single tokens at once, by the ids on stdin."""

import hashlib
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click
from rich.console import Group
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from broker.edge.cli.command import (
    Command,
    Session,
    calls_broker,
    named,
    reason_option,
    request_id_option,
    waiting_options,
)
from broker.edge.cli.connection import Broker
from broker.edge.cli.context import Context
from broker.edge.cli.durations import shown
from broker.edge.cli.outcomes import how, result_of, slowest_first
from broker.edge.cli.output import Output, console, plain, table
from broker.edge.cli.problems import Unusable
from broker.edge.cli.showing import inner
from broker.edge.cli.stdin import read_ids
from broker.edge.cli.waiting import Watched, follow, unfinished
from broker.errors import Failure
from broker.token.jws import b64url
from broker.v1 import revocations_pb2 as pb

BATCH = 10_000
# A batch gives way to other revocations; it is repeated with its id, never made anew.
BATCH_S = 60


@click.command(
    "tokens",
    cls=Command,
    short_help="Revoke many single tokens by the ids on stdin.",
    examples=[
        'broker revoke tokens --realm evaluation --reason "leaked by build 12" < ids',
        'broker revoke tokens --realm evaluation --reason "leaked by build 12" --wait --timeout 10m < ids',
    ],
    keys="realm, tokens, complete, request_id, batches: [as those of `broker revoke show`, index being the last of "
    "its entries].",
)
@named("--realm", "Realm of all of them.", required=True)
@reason_option
@waiting_options
@request_id_option
@calls_broker()
def revoke_tokens(session: Session, *, realm: str, reason: str, wait: bool, timeout: int, request_id: str) -> None:
    """Revoke single tokens by their ids, one in each line of stdin: ids, never tokens.

    Nothing is sent when any line is no id. They go in batches of 10,000, each of which is revoked as one.
    """
    ids = read_ids()
    batches = [ids[start : start + BATCH] for start in range(0, len(ids), BATCH)]
    done: list[Watched] = []
    ended: Exception | None = None
    with session.settings.connect(Context.for_admin) as broker:
        with _bar("revoked", len(ids), show=not session.output.as_json) as advance:
            for number, batch in enumerate(batches):
                request = pb.RevokeTokensRequest(
                    request_id=_request_id(request_id, number), realm=realm, tokens=batch, reason=reason, wait=wait
                )
                watched = Watched()
                ended = _commit(broker, request, watched, max(session.settings.deadline_s, BATCH_S))
                if watched.committed is None:
                    break
                done.append(watched)
                advance(len(batch))
        if wait and ended is None:
            ended = _wait(broker, done, timeout, session.output)
    if not done:
        raise ended or Unusable("the broker committed nothing", reason="UNREACHABLE")
    revoked = sum(len(batch) for batch in batches[: len(done)])
    _show(session.output, realm, request_id, revoked, done)
    if len(done) < len(batches):
        raise Unusable(
            f"{revoked} of {len(ids)} tokens are revoked, then the broker did not take the next batch: {_why(ended)}",
            reason="UNREACHABLE",
            hint=f"repeat the same command with --request-id {request_id}: it does nothing twice",
        ) from ended
    if ended is not None:
        raise ended


def _commit(broker: Broker, request: pb.RevokeTokensRequest, watched: Watched, timeout_s: int) -> Exception | None:
    """Send one batch and hear that it is durable; what follows is asked for later, so that none waits for another."""
    events = broker.stream(broker.revocations.RevokeTokens, request, timeout_s=timeout_s)
    try:
        for event in inner(events):
            watched.take(event)
            if watched.committed is not None:
                return None
    except (Unusable, Failure) as problem:
        return problem
    finally:
        events.close()
    return Unusable("the broker committed nothing", reason="UNREACHABLE")


def _wait(broker: Broker, done: Sequence[Watched], timeout: int, output: Output) -> Exception | None:
    until = time.monotonic() + timeout
    with _bar("complete", len(done), show=not output.as_json) as advance:
        for watched in done:
            assert watched.committed is not None  # noqa: S101 - or it were not done
            request = pb.GetRevocationRequest(index=watched.committed.index, wait=True)
            left = max(1, round(until - time.monotonic()))
            events = broker.stream(broker.revocations.GetRevocation, request, timeout_s=left)
            ended = follow(inner(events), watched, None)
            if watched.complete is None:
                return unfinished(watched, ended, timeout)
            advance(1)
    return None


def _request_id(base: str, number: int) -> str:
    """Return the id of one batch: the same whenever the command is repeated with the same one."""
    return b64url(hashlib.sha256(f"{base} {number}".encode()).digest())


def _why(ended: Exception | None) -> str:
    return str(ended) if ended is not None else "it said nothing"


def _show(output: Output, realm: str, request_id: str, revoked: int, done: Sequence[Watched]) -> None:
    result = {
        "realm": realm,
        "tokens": revoked,
        "complete": all(watched.complete is not None for watched in done),
        "request_id": request_id,
        "batches": [result_of(watched) for watched in done],
    }
    lines = [f"revoked {revoked} tokens of realm {realm}"]
    if any(watched.complete is not None for watched in done):
        lines.append("keep a completion: broker revoke show LAST --export FILE")
    rows = [_row(watched) for watched in done]
    output.show(
        result,
        Group(
            *(Text(plain(line)) for line in lines),
            table(["FIRST", "LAST", "TOKENS", "COMPLETE AFTER", "SLOWEST", "USES CUT"], rows),
        ),
    )


def _row(watched: Watched) -> tuple[object, ...]:
    committed = watched.committed or pb.RevocationCommitted()
    entries = max(committed.entries, 1)
    first = (committed.index - entries + 1, committed.index, entries)
    if watched.complete is None:
        return (*first, "not waited for" if not watched.is_reported else "not yet", "", "")
    took = shown(watched.complete.took.ToNanoseconds() / 1e9)
    outcomes = slowest_first(watched.complete)
    slowest = f"{outcomes[0].verifier} ({how(outcomes[0])})" if outcomes else "nobody listens"
    return (*first, took, slowest, watched.complete.uses_cut)


@contextmanager
def _bar(what: str, total: int, *, show: bool) -> Iterator[Any]:
    """Show how many of `total` are done on stderr, if that is a terminal."""
    if not show or not sys.stderr.isatty():
        yield lambda _number: None
        return
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console(sys.stderr), transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda number: bar.advance(task, number)
