"""`broker verifiers`: who listens or ever did, and how each one is."""

import json
import sys
import time

import click
from rich.live import Live
from rich.table import Table

from broker.edge.cli.command import (
    Command,
    CommandGroup,
    Name,
    Session,
    calls_broker,
    named,
    reason_option,
    request_id_option,
)
from broker.edge.cli.connection import Broker
from broker.edge.cli.context import Context
from broker.edge.cli.durations import Span, shown
from broker.edge.cli.output import console, instant, milliseconds, plain, table
from broker.edge.cli.problems import Misused, Unusable
from broker.v1 import status_pb2

EVERY_S = 1
COLUMNS = [
    "VERIFIER",
    "REALM",
    "STATE",
    "FRESH FOR",
    "BEHIND",
    "USES",
    "LAST DRILL",
    "VERSION",
    "ADDRESS",
    "LAST REFUSAL",
]


@click.group(
    cls=CommandGroup,
    examples=[
        "broker verifiers",
        "broker verifiers --realm evaluation -o json",
        "broker verifiers --watch --every 5s",
    ],
    keys="verifiers: [verifier, realm, version, address, head, behind, silent_ms, state (fresh, joining, lapsed), "
    "fresh_for_ms, uses, last_drill (at, outcome, time_to_deny_ms; null when it was in none), seen_at, last_nack]; "
    "with --watch one such object in each line.",
)
@named("--realm", "Only this realm's.")
@click.option("--watch", is_flag=True, help="Refresh until Ctrl-C.")
@click.option("--every", type=Span(), help="Time between two refreshes of --watch. Default: 1s.")
@calls_broker()
def verifiers(session: Session, *, realm: str | None, watch: bool, every: int | None) -> None:
    """List who listens, how fresh, how far behind; also who did and was not forgotten."""
    if every is not None and not watch:
        raise Misused("--every says how often to refresh, which is not asked for", hint="add --watch")
    request = status_pb2.ListVerifiersRequest(realm=realm or "")
    with session.settings.connect(Context.for_admin) as broker:
        if watch:
            _watch(session, broker, request, every or EVERY_S)
        answer: status_pb2.ListVerifiersResponse = broker.call(broker.status.ListVerifiers, request)
    session.output.show(_listed(answer), _listing(answer))
    if not answer.verifiers:
        session.output.note("nobody listens, and nobody did that was not forgotten")


@verifiers.command(
    "forget",
    cls=Command,
    examples=[
        'broker verifiers forget spiffe://lab.example/gateway-7 --realm evaluation --reason "taken down"',
    ],
    keys="verifier, realm, index, request_id.",
)
@click.argument("verifier", metavar="NAME", type=Name())
@named("--realm", "Its realm.", required=True)
@reason_option
@request_id_option
@calls_broker()
def forget(session: Session, *, verifier: str, realm: str, reason: str, request_id: str) -> None:
    """Take a verifier that is gone off the list. One that listens is not forgotten."""
    request = status_pb2.ForgetVerifierRequest(request_id=request_id, verifier=verifier, realm=realm, reason=reason)
    with session.settings.connect(Context.for_admin) as broker:
        answer: status_pb2.ForgetVerifierResponse = broker.call(broker.status.ForgetVerifier, request)
    session.output.show(
        {"verifier": verifier, "realm": realm, "index": answer.index, "request_id": request_id},
        plain(f"forgot {verifier} in realm {realm} at index {answer.index}: it is listed again if it comes back"),
    )


def _watch(session: Session, broker: Broker, request: status_pb2.ListVerifiersRequest, every_s: int) -> None:
    """Show the list again and again; a broker that is away for a while is waited for."""
    if session.output.as_json or not sys.stdout.isatty():
        while True:
            _refresh(session, broker, request)
            time.sleep(every_s)
    with Live(console=console(sys.stdout), screen=False, auto_refresh=False) as screen:
        while True:
            try:
                answer: status_pb2.ListVerifiersResponse = broker.call(broker.status.ListVerifiers, request)
                screen.update(_listing(answer), refresh=True)
            except Unusable as away:
                screen.update(plain(str(away)), refresh=True)
            time.sleep(every_s)


def _refresh(session: Session, broker: Broker, request: status_pb2.ListVerifiersRequest) -> None:
    try:
        answer: status_pb2.ListVerifiersResponse = broker.call(broker.status.ListVerifiers, request)
    except Unusable as away:
        click.echo(plain(f"broker: {away}"), err=True)
        return
    if session.output.as_json:
        click.echo(json.dumps(_listed(answer)))
    else:
        session.output.show({}, _listing(answer))
    sys.stdout.flush()


def _listed(answer: status_pb2.ListVerifiersResponse) -> dict[str, object]:
    return {
        "verifiers": [
            {
                "verifier": one.verifier,
                "realm": one.realm,
                "version": one.version,
                "address": one.address,
                "head": one.head,
                "behind": one.behind,
                "silent_ms": milliseconds(one.silent_for),
                "state": one.state,
                "fresh_for_ms": milliseconds(one.fresh_for),
                "uses": one.uses,
                "last_drill": _drill(one.last_drill) if one.HasField("last_drill") else None,
                "seen_at": instant(one.seen_at) if one.HasField("seen_at") else None,
                "last_nack": one.last_nack,
            }
            for one in answer.verifiers
        ]
    }


def _drill(last: status_pb2.LastDrill) -> dict[str, object]:
    took = milliseconds(last.time_to_deny) if last.HasField("time_to_deny") else None
    return {"at": instant(last.at), "outcome": last.outcome, "time_to_deny_ms": took}


def _listing(answer: status_pb2.ListVerifiersResponse) -> Table:
    return table(
        COLUMNS,
        [
            (
                one.verifier,
                one.realm,
                one.state,
                shown(one.fresh_for.ToNanoseconds() / 1e9) if one.state != "lapsed" else _seen(one),
                one.behind,
                one.uses,
                _drilled(one),
                one.version,
                one.address,
                one.last_nack,
            )
            for one in answer.verifiers
        ],
    )


def _seen(one: status_pb2.VerifierStatus) -> str:
    return f"no more; seen {one.seen_at.ToDatetime():%Y-%m-%dT%H:%M:%SZ}" if one.HasField("seen_at") else "no more"


def _drilled(one: status_pb2.VerifierStatus) -> str:
    if not one.HasField("last_drill"):
        return "never"
    last = one.last_drill
    if not last.HasField("time_to_deny"):
        return last.outcome
    return f"{last.outcome} in {shown(last.time_to_deny.ToNanoseconds() / 1e9)}"
