"""`broker run`."""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from broker.edge.cli.command import Command, Group, Name, Session, calls_broker, named, request_id_option
from broker.edge.cli.context import Context, Identity
from broker.edge.cli.durations import Span
from broker.edge.cli.key_files import key_file_option, of_run, proven, unusable
from broker.edge.cli.output import instant, plain, table
from broker.edge.cli.problems import Misused
from broker.edge.cli.user_tokens import user_token_option
from broker.errors import ConfigInvalid
from broker.sdk.run_key import KeptRun, RunKey, keep_run, must_be_free, read_kept_run
from broker.v1 import runs_pb2

RUN_KEYS = (
    "id, realm, partner, models, state (open, closed, lapsed), opened_at, lease_ends_at, user, workload, environment, "
    "opened_by, grants (model: grant), key_thumbprint, approval"
)
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
        "RUN=$(broker run open --realm evaluation --partner acme --user alice --model mythos --key-file run.key)",
    ],
    keys=f"{RUN_KEYS}, request_id.",
)
@named("--realm", "Realm.", required=True)
@named("--partner", "Partner.", required=True)
@click.option("--model", "models", type=Name(), multiple=True, required=True, help="Model. Repeat for more.")
@named("--user", "Human whom all its tokens are for.")
@named("--workload", "Program that all its tokens are for; with --user, that acts for them.")
@named("--approval", "Approval of exactly this run; it is spent.")
@click.option("--lease", type=Span(), help="Time until it lapses unless kept, 10s to 24h. Default: 5m.")
@click.option(
    "--key-file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Make a key for the run and write it to this new file: who has it, and nobody else, goes on with the run.",
)
@user_token_option
@request_id_option
@calls_broker()
def open_run(session: Session, *, key_file: Path | None, user_token: str, request_id: str, **wanted: Any) -> None:
    """Open a run and print its id, alone.

    What is wrong with it is told all at once. With --key-file it can be gone on with after the end of a login.
    """
    request = _open_request(request_id, **wanted)
    request.user_token = user_token
    key = None
    if key_file is not None:
        key = RunKey.new()
        request.run_key = key.public_text()
    try:
        if key_file is not None:
            must_be_free(key_file)
        with session.settings.connect(lambda context: context.for_partner(request.partner)) as broker:
            proof = proven(key, "RunService/OpenRun", None, request)
            opened: runs_pb2.Run = broker.call(broker.runs.OpenRun, request, proof).run
        if key_file is not None and key is not None:
            subject = (opened.user or None, opened.workload or None)
            keep_run(KeptRun(opened.id, key, opened.realm, opened.partner, tuple(opened.models), *subject), key_file)
            session.output.note(f"go on with it: broker run keep {opened.id} --key-file {shlex.quote(str(key_file))}")
    except ConfigInvalid as bad:
        raise unusable(bad) from bad
    session.output.show({**_fields(opened), "request_id": request_id}, plain(opened.id))


def _open_request(
    request_id: str,
    *,
    realm: str,
    partner: str,
    models: tuple[str, ...],
    user: str | None,
    workload: str | None,
    lease: int | None,
    approval: str | None,
) -> runs_pb2.OpenRunRequest:
    request = runs_pb2.OpenRunRequest(
        request_id=request_id, realm=realm, partner=partner, models=models, user=user, workload=workload
    )
    request.approval = approval or ""
    if lease is not None:
        request.lease.FromSeconds(lease)
    return request


@run.command(
    "keep",
    cls=Command,
    examples=[
        "broker run keep $RUN",
        "broker run keep $RUN --partner acme -o json",
        "broker run keep $RUN --key-file run.key",
    ],
    keys=f"{RUN_KEYS}, request_id.",
)
@click.argument("run_id", metavar="RUN", type=Name())
@named("--partner", "Partner whose run it is. Default: the run is looked up.")
@key_file_option
@request_id_option
@calls_broker()
def keep(session: Session, *, run_id: str, partner: str | None, key_file: Path | None, request_id: str) -> None:
    """Extend a run's lease from now."""
    request = runs_pb2.KeepRunRequest(request_id=request_id, run=run_id)
    key = of_run(key_file, run_id)
    with session.settings.connect(_owner(session, run_id, partner, key_file), by_key=key is not None) as broker:
        proof = proven(key, "RunService/KeepRun", run_id, request)
        kept: runs_pb2.Run = broker.call(broker.runs.KeepRun, request, proof).run
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
@key_file_option
@request_id_option
@calls_broker()
def close(session: Session, *, run_id: str, partner: str | None, key_file: Path | None, request_id: str) -> None:
    """Close a run and revoke every token of it."""
    request = runs_pb2.CloseRunRequest(request_id=request_id, run=run_id)
    key = of_run(key_file, run_id)
    with session.settings.connect(_owner(session, run_id, partner, key_file), by_key=key is not None) as broker:
        proof = proven(key, "RunService/CloseRun", run_id, request)
        closed: runs_pb2.Run = broker.call(broker.runs.CloseRun, request, proof).run
    text = plain(f"run {closed.id} is {_state(closed)}; its tokens are revoked")
    session.output.show({**_fields(closed), "request_id": request_id}, text)


@run.command(
    "show",
    cls=Command,
    examples=["broker run show $RUN", "broker run show $RUN --partner acme -o json"],
    keys=f"{RUN_KEYS}.",
)
@click.argument("run_id", metavar="RUN", type=Name())
@named("--partner", "Partner whose run it is; asks as its harness.")
@calls_broker()
def show(session: Session, *, run_id: str, partner: str | None) -> None:
    """Show a run: what for, for whom, from where, by which grants, with which key."""
    request = runs_pb2.ShowRunRequest(run=run_id)
    with session.settings.connect(_viewer(partner)) as broker:
        shown: runs_pb2.Run = broker.call(broker.runs.ShowRun, request).run
    rows = [(name, _cell(value)) for name, value in _fields(shown).items() if value not in ("", {})]
    session.output.show(_fields(shown), table(["FIELD", "VALUE"], rows))


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
    request = runs_pb2.ListRunsRequest(partner=partner or "", limit=limit)
    with session.settings.connect(_viewer(partner)) as broker:
        answer: runs_pb2.ListRunsResponse = broker.call(broker.runs.ListRuns, request)
    rows = [
        (one.id, one.realm, one.partner, " ".join(one.models), _state(one), instant(one.lease_ends_at))
        for one in answer.runs
    ]
    session.output.show(
        {"runs": [_fields(one) for one in answer.runs]},
        table(["RUN", "REALM", "PARTNER", "MODELS", "STATE", "LEASE ENDS"], rows),
    )


def _viewer(partner: str | None) -> Callable[[Context], Identity]:
    def choose(context: Context) -> Identity:
        if partner is not None and partner in context.harness:
            return context.for_partner(partner)
        return context.for_admin()

    return choose


def _owner(session: Session, run_id: str, partner: str | None, key_file: Path | None) -> Callable[[Context], Identity]:
    """Return how to choose the harness that a run belongs to: named, in its key file, the only one, or looked up."""

    def choose(context: Context) -> Identity:
        if partner is not None:
            return context.for_partner(partner)
        if key_file is not None:
            return context.for_partner(read_kept_run(key_file).partner)
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
        "user": one.user,
        "workload": one.workload,
        "environment": one.environment,
        "opened_by": one.opened_by,
        "grants": dict(one.grants),
        "key_thumbprint": one.key_thumbprint,
        "approval": one.approval,
    }


def _cell(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{model} by {grant}" for model, grant in sorted(value.items()))
    return " ".join(value) if isinstance(value, list) else str(value)
