"""`broker run`."""

from collections.abc import Callable

import click

from broker.edge.cli.command import Command, Group, Name, Session, calls_broker, named, request_id_option
from broker.edge.cli.context import Context, Identity
from broker.edge.cli.durations import Span
from broker.edge.cli.output import instant, plain, table
from broker.edge.cli.problems import Misused
from broker.v1 import runs_pb2

RUN_KEYS = "id, realm, partner, models, state (open, closed, lapsed), opened_at, lease_ends_at"
_SEARCHED = 1000


@click.group(cls=Group, examples=["RUN=$(broker run open --realm evaluation --partner acme --model mythos)"])
def run() -> None:
    """Open, keep alive, close and list evaluation runs."""


@run.command(
    "open",
    cls=Command,
    examples=[
        "RUN=$(broker run open --realm evaluation --partner acme --model mythos)",
        "broker run open --realm evaluation --partner acme --model mythos --model fable --lease 30m -o json",
    ],
    keys=f"{RUN_KEYS}, request_id.",
)
@named("--realm", "Realm.", required=True)
@named("--partner", "Partner.", required=True)
@click.option("--model", "models", type=Name(), multiple=True, required=True, help="Model. Repeat for more.")
@click.option("--lease", type=Span(), help="Time until it lapses unless kept, 10s to 24h. Default: 5m.")
@request_id_option
@calls_broker()
def open_run(
    session: Session, *, realm: str, partner: str, models: tuple[str, ...], lease: int | None, request_id: str
) -> None:
    """Open a run and print its id, alone."""
    request = runs_pb2.OpenRunRequest(request_id=request_id, realm=realm, partner=partner, models=models)
    if lease is not None:
        request.lease.FromSeconds(lease)
    with session.settings.connect(lambda context: context.for_partner(partner)) as broker:
        opened: runs_pb2.Run = broker.call(broker.runs.OpenRun, request).run
    session.output.show({**_fields(opened), "request_id": request_id}, plain(opened.id))


@run.command(
    "keep",
    cls=Command,
    examples=["broker run keep $RUN", "broker run keep $RUN --partner acme -o json"],
    keys=f"{RUN_KEYS}, request_id.",
)
@click.argument("run_id", metavar="RUN", type=Name())
@named("--partner", "Partner whose run it is. Default: the run is looked up.")
@request_id_option
@calls_broker()
def keep(session: Session, *, run_id: str, partner: str | None, request_id: str) -> None:
    """Extend a run's lease from now."""
    request = runs_pb2.KeepRunRequest(request_id=request_id, run=run_id)
    with session.settings.connect(_owner(session, run_id, partner)) as broker:
        kept: runs_pb2.Run = broker.call(broker.runs.KeepRun, request).run
    text = plain(f"run {kept.id} is {_state(kept)} until {instant(kept.lease_ends_at)}")
    session.output.show({**_fields(kept), "request_id": request_id}, text)


@run.command(
    "close",
    cls=Command,
    examples=["broker run close $RUN", "broker run close $RUN --partner acme -o json"],
    keys=f"{RUN_KEYS}, request_id.",
)
@click.argument("run_id", metavar="RUN", type=Name())
@named("--partner", "Partner whose run it is. Default: the run is looked up.")
@request_id_option
@calls_broker()
def close(session: Session, *, run_id: str, partner: str | None, request_id: str) -> None:
    """Close a run and revoke every token of it."""
    request = runs_pb2.CloseRunRequest(request_id=request_id, run=run_id)
    with session.settings.connect(_owner(session, run_id, partner)) as broker:
        closed: runs_pb2.Run = broker.call(broker.runs.CloseRun, request).run
    text = plain(f"run {closed.id} is {_state(closed)}; its tokens are revoked")
    session.output.show({**_fields(closed), "request_id": request_id}, text)


@run.command(
    "list",
    cls=Command,
    examples=["broker run list", "broker run list --partner acme --limit 10 -o json"],
    keys=f"runs: [{RUN_KEYS}], the newest first.",
)
@named("--partner", "Only this partner's; asks as its harness.")
@click.option("--limit", type=click.IntRange(1, 1000), default=100, show_default=True, help="At most so many.")
@calls_broker()
def list_runs(session: Session, *, partner: str | None, limit: int) -> None:
    """List runs, the newest first."""

    def choose(context: Context) -> Identity:
        if partner is not None and partner in context.harness:
            return context.for_partner(partner)
        return context.for_admin()

    request = runs_pb2.ListRunsRequest(partner=partner or "", limit=limit)
    with session.settings.connect(choose) as broker:
        answer: runs_pb2.ListRunsResponse = broker.call(broker.runs.ListRuns, request)
    rows = [
        (one.id, one.realm, one.partner, " ".join(one.models), _state(one), instant(one.lease_ends_at))
        for one in answer.runs
    ]
    session.output.show(
        {"runs": [_fields(one) for one in answer.runs]},
        table(["RUN", "REALM", "PARTNER", "MODELS", "STATE", "LEASE ENDS"], rows),
    )


def _owner(session: Session, run_id: str, partner: str | None) -> Callable[[Context], Identity]:
    """Return how to choose the harness that a run belongs to: named, the only one, or looked up as admin."""

    def choose(context: Context) -> Identity:
        if partner is not None:
            return context.for_partner(partner)
        if len(context.harness) == 1:
            return context.for_partner(next(iter(context.harness)))
        with session.settings.connect(Context.for_admin) as broker:
            request = runs_pb2.ListRunsRequest(limit=_SEARCHED)
            answer: runs_pb2.ListRunsResponse = broker.call(broker.runs.ListRuns, request)
        found = next((one.partner for one in answer.runs if one.id == run_id), None)
        if found is None:
            raise Misused("which partner's run it is cannot be told", hint="check the id, or name it with --partner")
        return context.for_partner(found)

    return choose


def _state(one: runs_pb2.Run) -> str:
    return runs_pb2.RunState.Name(one.state).removeprefix("RUN_STATE_").lower()


def _fields(one: runs_pb2.Run) -> dict[str, object]:
    return {
        "id": one.id,
        "realm": one.realm,
        "partner": one.partner,
        "models": list(one.models),
        "state": _state(one),
        "opened_at": instant(one.opened_at),
        "lease_ends_at": instant(one.lease_ends_at),
    }
