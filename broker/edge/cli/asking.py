"""`broker audit query`, `trail` and `after-revocation`: questions about the past."""

import csv
import io
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import click
from rich.console import Group as Lines
from rich.text import Text

from broker.edge.cli.command import Command, Name, Session, calls_broker
from broker.edge.cli.connection import Broker
from broker.edge.cli.context import Context
from broker.edge.cli.durations import Span
from broker.edge.cli.output import instant, plain, safe, table
from broker.edge.cli.problems import Misused
from broker.v1 import audit_pb2 as pb

_PAGE = 1_000
_MOST = 10_000_000
_TEXTS = (
    "kind", "by", "decision", "realm", "partner", "user", "workload", "environment", "run", "test", "token", "grant",
    "reason", "role",
)  # fmt: skip
_COLUMNS = (
    "index", "line", "at", "kind", "decision", "by", "realm", "partner", "user", "workload", "environment", "run",
    "test", "models", "token", "grant", "head", "count", "reason",
)  # fmt: skip
_KEYS = (
    "index, line (of receipts, or 0), at, kind, by, decision, realm, partner, user, workload, environment, run, test, "
    "models, token, grant, reason, head (what the verifier had applied), count, role; what is not told is left out"
)
_FILTERS = (
    ("realm", "Realm."),
    ("partner", "Partner."),
    ("user", "User."),
    ("workload", "Workload."),
    ("environment", "Environment."),
    ("run", "Run."),
    ("test", "Test."),
    ("model", "Model; a name also finds its instances."),
    ("token", "Id of a token, never the token."),
    ("decision", "granted, denied, revoked or accepted."),
    ("kind", "Kind of ledger entry, or use."),
    ("by", "Principal, or verifier."),
)


class Instant(click.ParamType[datetime]):
    """An instant, or how long ago."""

    name = "time"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """Return an aware instant, or fail as a usage error."""
        text = str(value)
        try:
            at = datetime.fromisoformat(text)
        except ValueError:
            try:
                return datetime.now(UTC) - timedelta(seconds=Span().convert(text, param, ctx))
            except click.UsageError:
                self.fail(f"{text!r} is neither an instant, like 2026-11-24T10:00:00Z, nor a span, like 2h", param, ctx)
        return at if at.tzinfo is not None else at.replace(tzinfo=UTC)


@click.command(
    "query",
    cls=Command,
    examples=[
        "broker audit query --partner acme --model mythos --decision accepted --from 24h",
        "broker audit query --token 3q2WdSCwS7mVYhJ0aZ1b2A -o csv > token.csv",
        "broker audit query --realm evaluation --kind revoked --from 2026-11-01T00:00:00Z -o json | jq .events[].by",
    ],
    keys=f"events: [{_KEYS}], more (whether there are more than --limit), size (ledger entries that were looked at).",
)
@click.option("--from", "since", type=Instant(), help="Not before: an instant, or how long ago.")
@click.option("--until", type=Instant(), help="Before: an instant, or how long ago.")
@click.option(
    "--limit", type=click.IntRange(1, _MOST), default=100, show_default=True, help="At most so many, the oldest first."
)
@calls_broker(forms=["csv"])
def query(
    session: Session, *, since: datetime | None, until: datetime | None, limit: int, **filters: str | None
) -> None:
    """Say what happened, to whom, by whose leave: ledger entries, and the uses that verifiers signed.

    All filters must hold; at least one, or a time, is needed. `broker audit prove INDEX` proves what is listed.
    """
    request = pb.QueryRequest()
    for name, value in filters.items():
        if value is not None:
            setattr(request, name, value)
    for name, at in (("from", since), ("until", until)):
        if at is not None:
            getattr(request, name).FromDatetime(at)
    if since is None and until is None and not any(filters.values()):
        raise Misused("nothing says what to look for", hint="give --partner, --run, --from 24h, or another filter")
    with session.settings.connect(Context.for_admin) as broker:
        events, more, size = _pages(broker, request, limit)
    if session.output.form == "csv":
        _show_csv(events)
        return
    result = {"events": list(map(_fields, events)), "more": more, "size": size}
    session.output.show(result, _listed(events) if events else f"nothing in {size} entries")
    if more:
        session.output.note(f"there are more than {limit}: give --limit, or narrower filters")


for _name, _help in reversed(_FILTERS):
    query = click.option(f"--{_name}", type=Name(), help=_help)(query)


@click.command(
    "trail",
    cls=Command,
    # An id can begin with a dash.
    context_settings={"ignore_unknown_options": True},
    examples=["broker audit trail 3q2WdSCwS7mVYhJ0aZ1b2A", "broker audit trail --run HRmttrauo_nY5cMDQeD2HA"],
    keys=f"events: [{_KEYS}], truncated, size.",
)
@click.argument("token", required=False, type=Name(), metavar="[TOKEN_ID]")
@click.option("--token", "named", type=Name(), metavar="TOKEN_ID", help="The same, said by name.")
@click.option("--run", type=Name(), help="A run in place of a token.")
@calls_broker()
def trail(session: Session, *, token: str | None, named: str | None, run: str | None) -> None:
    """Tell the whole story of a token or a run: policy, key, grant, approvals, ancestors, uses, and its end.

    TOKEN_ID is the token's id (`broker token inspect` shows it), never the token.
    """
    given = [one for one in (token, named, run) if one is not None]
    if len(given) != 1:
        raise Misused("name a token's id or --run", hint="the id is what `broker token inspect` shows as jti")
    request = pb.TrailRequest(run=run) if run is not None else pb.TrailRequest(token=given[0])
    with session.settings.connect(Context.for_admin) as broker:
        answer: pb.TrailResponse = broker.call(broker.audit.Trail, request)
    result = {"events": list(map(_fields, answer.events)), "truncated": answer.truncated, "size": answer.size}
    rows = [(one.index, instant(one.at), one.role or one.kind, _about(one)) for one in answer.events]
    session.output.show(result, table(["INDEX", "AT", "WHAT", "OF"], rows))
    if answer.truncated:
        session.output.note("there is more: ask with broker audit query")


@click.command(
    "after-revocation",
    cls=Command,
    examples=["broker audit after-revocation 17", "broker audit after-revocation 17 -o json | jq .proven"],
    keys=f"proven, events: [{_KEYS}], truncated, before_in_force, in_force_at (or null), verifiers: [verifier, "
    "keeps_receipts, stopped, head (or null)], size.",
)
@click.argument("index", type=click.IntRange(0, 2**63 - 2))
@calls_broker()
def after_revocation(session: Session, *, index: int) -> int | None:
    """List the uses that verifiers accepted after the revocation at a ledger INDEX: there should be none.

    Each receipt says which head its verifier had applied: how many entries of the ledger. Exit code 1 if one was
    accepted with a head above the revocation's index, or after it was in force everywhere.
    """
    with session.settings.connect(Context.for_admin) as broker:
        request = pb.AfterRevocationRequest(index=index)
        answer: pb.AfterRevocationResponse = broker.call(broker.audit.AfterRevocation, request)
    in_force = instant(answer.in_force_at) if answer.HasField("in_force_at") else None
    result = {
        "proven": answer.proven,
        "events": list(map(_fields, answer.events)),
        "truncated": answer.truncated,
        "before_in_force": answer.before_in_force,
        "in_force_at": in_force,
        "verifiers": [
            {
                "verifier": one.verifier,
                "keeps_receipts": one.keeps_receipts,
                "stopped": one.stopped,
                "head": one.head if one.HasField("head") else None,
            }
            for one in answer.verifiers
        ],
        "size": answer.size,
    }
    session.output.show(result, Lines(*_aftermath(answer, index, in_force)))
    return 1 if answer.events else None


def _aftermath(answer: pb.AfterRevocationResponse, index: int, in_force: str | None) -> Iterator[Any]:
    if answer.events:
        yield Text(plain(f"{len(answer.events)} uses were accepted after revocation {index}:"))
        yield _listed(answer.events)
    elif answer.proven:
        yield Text("nobody accepted anything after it, and each verifier signs what it accepts")
    elif in_force is None:
        yield Text("nothing that was accepted after it is known; there is no completion, so more may be")
    else:
        yield Text("nothing that was accepted after it is known; but not each verifier keeps receipts:")
    yield Text(plain(f"in force everywhere: {in_force or 'unknown'}; before that {answer.before_in_force} uses"))
    stopped = [one for one in answer.verifiers if one.stopped]
    silent = sum(not one.HasField("head") or one.head <= index for one in stopped)
    if answer.proven and silent:
        # No receipt of an idle verifier comes, and none of one whose receipts are held back on their way.
        yield Text(
            f"{silent} of {len(stopped)} have signed no receipt since: they judged nothing, or it has not arrived yet; "
            "ask again later"
        )
    if answer.verifiers:
        yield Text()
        yield table(
            ["VERIFIER", "STOPPED", "RECEIPTS", "THEIR HIGHEST HEAD"],
            [
                (
                    one.verifier,
                    one.stopped or "-",
                    "kept" if one.keeps_receipts else "none",
                    one.head if one.HasField("head") else "-",
                )
                for one in answer.verifiers
            ],
        )


def _pages(broker: Broker, request: pb.QueryRequest, limit: int) -> tuple[list[pb.AuditEvent], bool, int]:
    events: list[pb.AuditEvent] = []
    while True:
        request.page_size = min(_PAGE, limit - len(events))
        answer: pb.QueryResponse = broker.call(broker.audit.Query, request)
        events += answer.events
        request.page_token = answer.next_page_token
        if not request.page_token or len(events) >= limit:
            return events, bool(request.page_token), answer.size


def _fields(event: pb.AuditEvent) -> dict[str, object]:
    told: dict[str, object] = {"index": event.index, "line": event.line, "at": instant(event.at)}
    told |= {name: getattr(event, name) for name in _TEXTS if getattr(event, name)}
    if event.models:
        told["models"] = list(event.models)
    if event.HasField("head"):
        told |= {"head": event.head, "count": event.count}
    return told


def _listed(events: Iterable[pb.AuditEvent]) -> Any:
    return table(
        ["INDEX", "AT", "KIND", "DECISION", "BY", "OF"],
        [(one.index, instant(one.at), one.kind, one.decision, one.by, _about(one)) for one in events],
    )


def _about(event: pb.AuditEvent) -> str:
    parts = [
        f"{name}={getattr(event, name)}"
        for name in ("realm", "partner", "user", "workload", "run", "test", "token")
        if getattr(event, name)
    ]
    if event.models:
        parts.append(f"models={','.join(event.models)}")
    if event.HasField("head"):
        parts.append(f"head={event.head}")
    return " ".join([*parts, *([event.reason] if event.reason else [])])


def _show_csv(events: Iterable[pb.AuditEvent]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for event in events:
        told = _fields(event)
        told["models"] = " ".join(event.models)
        writer.writerow([safe(told.get(name, "")) for name in _COLUMNS])
    click.echo(text.getvalue(), nl=False)
