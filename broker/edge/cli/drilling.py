"""`broker drill`: prove on a quiet day that a revocation reaches every verifier."""

from collections.abc import Iterable, Sequence

import click
from rich.console import Group as Lines
from rich.table import Table
from rich.text import Text

from broker.edge.cli.command import Command, CommandGroup, Session, calls_broker, named, request_id_option
from broker.edge.cli.context import Context
from broker.edge.cli.durations import Span, shown
from broker.edge.cli.output import instant, milliseconds, plain, table, yes
from broker.edge.cli.problems import Misused, Unusable
from broker.errors import Failure
from broker.v1 import drills_pb2 as pb

DENIED = "denied"
SLOW = "slow"
MOST_NAMED = 10
_DRILL_KEYS = (
    "index, realm, canary, at, by, passed, bound_ms, revocation, verifiers: [verifier, outcome (denied, silent, "
    "refused, accepting), time_to_deny_ms (null unless denied), verdict], those that failed first, then the slowest"
)


class Schedule(Span):
    """A span, or `off`, which is 0."""

    name = "duration or off"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the seconds of `value`, or fail as a usage error."""
        return 0 if value == "off" else super().convert(value, param, ctx)


@click.group(
    cls=CommandGroup,
    examples=[
        "broker drill",
        "broker drill --realm evaluation -o json",
        "broker drill --realm evaluation --schedule 15m",
        "broker drill --realm evaluation --schedule off",
    ],
    keys=f"passed, request_id, drills: [{_DRILL_KEYS}]. With --schedule: realm, every_s (0: off), index, request_id.",
)
@named("--realm", "Only this realm. Default: each that has verifiers.")
@click.option("--schedule", type=Schedule(), help="Do not drill now, but each so often, 10s to 744h; `off` ends it.")
@click.option("--timeout", type=Span(), default="2m", show_default=True, help="Longest time for all of it.")
@request_id_option
@calls_broker()
def drill(session: Session, *, realm: str | None, schedule: int | None, timeout: int, request_id: str) -> None:
    """Mint a canary, show it to every verifier, revoke it, and time its death at each of them.

    No grant covers a canary: it opens nothing. Exit code 0 only if every verifier saw it alive, and then dead
    within the realm's freshness lease.
    """
    if schedule is not None:
        _schedule(session, realm, schedule, request_id)
        return
    begun: list[pb.DrillBegun] = []
    results: list[pb.DrillResult] = []
    ended: Exception | None = None
    with session.settings.connect(Context.for_admin) as broker:
        request = pb.DrillRequest(request_id=request_id, realm=realm or "")
        try:
            for event in broker.stream(broker.drills.Drill, request, timeout_s=timeout):
                _take(event, begun, results, session)
        except (Unusable, Failure) as problem:
            ended = problem
    if not begun and not results:
        raise ended or Unusable("the broker drilled no realm", reason="UNREACHABLE", hint="see: broker verifiers")
    unheard = sorted({one.realm for one in begun} - {one.realm for one in results})
    passed = bool(results) and all(one.passed for one in results) and not unheard and ended is None
    session.output.show(
        {"passed": passed, "request_id": request_id, "drills": [_drilled(one) for one in results]}, _report(results)
    )
    if passed:
        return
    problems = [problem_of(one) for one in results if not one.passed]
    if unheard:
        problems.append(f"no result came for {', '.join(unheard)}")
    why = f": {ended}" if ended is not None else ""
    raise Unusable(
        f"the drill failed{why}; {'; '.join(problems)}" if problems else f"the drill failed{why}",
        reason="DRILL",
        hint="see: broker verifiers; past drills: broker drill history",
    ) from ended


@drill.command(
    "history",
    cls=Command,
    examples=["broker drill history", "broker drill history --realm evaluation --limit 10 -o json"],
    keys=f"drills: [{_DRILL_KEYS}], the newest first; schedules: [realm, every_s].",
)
@named("--realm", "Only this realm's.")
@click.option("--limit", type=click.IntRange(1, 1000), default=100, show_default=True, help="At most so many.")
@calls_broker()
def history(session: Session, *, realm: str | None, limit: int) -> None:
    """List past drills, the newest first, and what is scheduled."""
    with session.settings.connect(Context.for_admin) as broker:
        answer: pb.ListDrillsResponse = broker.call(
            broker.drills.ListDrills, pb.ListDrillsRequest(realm=realm or "", limit=limit)
        )
    result = {
        "drills": [_drilled(one) for one in answer.drills],
        "schedules": [{"realm": one.realm, "every_s": one.every.seconds} for one in answer.schedules],
    }
    session.output.show(result, _past(answer))


def is_slow(result: pb.DrillResult, one: pb.DrilledVerifier) -> bool:
    """Tell whether a verifier denied, but later than the realm's lease."""
    return one.outcome == DENIED and one.time_to_deny.ToNanoseconds() > result.bound.ToNanoseconds()


def problem_of(result: pb.DrillResult) -> str:
    """Return who failed a drill, and how: `evaluation: silent: gateway-7; slow: gateway-9`."""
    failed: dict[str, list[str]] = {}
    for one in result.verifiers:
        if one.outcome != DENIED or is_slow(result, one):
            failed.setdefault(SLOW if one.outcome == DENIED else one.outcome, []).append(one.verifier)
    told = "; ".join(f"{how}: {_some(names)}" for how, names in failed.items())
    return f"{result.realm}: {told or 'no verifier stayed until its end'}"


def _take(event: pb.DrillResponse, begun: list[pb.DrillBegun], results: list[pb.DrillResult], session: Session) -> None:
    match event.WhichOneof("event"):
        case "begun":
            begun.append(event.begun)
            many = f"{event.begun.verifiers} verifier{'' if event.begun.verifiers == 1 else 's'}"
            session.output.note(f"realm {event.begun.realm}: canary {event.begun.canary} is shown to {many}")
        case "result":
            results.append(event.result)
        case _:
            pass  # of a newer broker


def _schedule(session: Session, realm: str | None, every_s: int, request_id: str) -> None:
    if realm is None:
        raise Misused("drills are scheduled for one realm", hint="name it with --realm")
    request = pb.ScheduleDrillsRequest(request_id=request_id, realm=realm)
    request.every.FromSeconds(every_s)
    with session.settings.connect(Context.for_admin) as broker:
        answer: pb.ScheduleDrillsResponse = broker.call(broker.drills.ScheduleDrills, request)
    if every_s:
        text = (
            f"the broker drills realm {realm} by itself every {shown(every_s)} (ledger index {answer.index}); a drill "
            "that fails shows in broker status, in the metrics, and in broker drill history"
        )
    else:
        text = f"realm {realm} is no longer drilled by itself (ledger index {answer.index})"
    session.output.show(
        {"realm": realm, "every_s": every_s, "index": answer.index, "request_id": request_id}, plain(text)
    )


def _drilled(result: pb.DrillResult) -> dict[str, object]:
    return {
        "index": result.index,
        "realm": result.realm,
        "canary": result.canary,
        "at": instant(result.at),
        "by": result.by,
        "passed": result.passed,
        "bound_ms": milliseconds(result.bound),
        "revocation": result.revocation,
        "verifiers": [
            {
                "verifier": one.verifier,
                "outcome": one.outcome,
                "time_to_deny_ms": milliseconds(one.time_to_deny) if one.HasField("time_to_deny") else None,
                "verdict": one.verdict,
            }
            for one in result.verifiers
        ],
    }


def _report(results: Iterable[pb.DrillResult]) -> Lines:
    parts: list[Text | Table] = []
    for result in results:
        bound = shown(result.bound.ToNanoseconds() / 1e9)
        verdict = "passed" if result.passed else "FAILED"
        line = f"realm {result.realm}: {verdict}; the canary {result.canary} had to be dead everywhere within {bound}"
        rows = [(one.verifier, _outcome(result, one), _time(one), one.verdict) for one in result.verifiers]
        parts += [*([Text()] if parts else []), Text(plain(f"{line} (ledger index {result.index})"))]
        parts.append(table(["VERIFIER", "OUTCOME", "TIME TO DENY", "LAST VERDICT"], rows))
    return Lines(*parts)


def _outcome(result: pb.DrillResult, one: pb.DrilledVerifier) -> str:
    return f"{one.outcome}, too late" if is_slow(result, one) else one.outcome


def _time(one: pb.DrilledVerifier) -> str:
    return f"{milliseconds(one.time_to_deny):.1f} ms" if one.HasField("time_to_deny") else ""


def _past(answer: pb.ListDrillsResponse) -> Lines:
    rows = []
    for result in answer.drills:
        times = [one.time_to_deny.ToNanoseconds() for one in result.verifiers if one.HasField("time_to_deny")]
        slowest = f"{max(times) / 1e6:.1f} ms" if times else ""
        failed = "" if result.passed else problem_of(result).partition(": ")[2]
        row = (result.index, instant(result.at), result.realm, yes(result.passed), len(result.verifiers), slowest)
        rows.append((*row, result.by, failed))
    parts: list[Text | Table] = [
        table(["INDEX", "AT", "REALM", "PASSED", "VERIFIERS", "SLOWEST", "BY", "WHO FAILED"], rows)
    ]
    if answer.schedules:
        scheduled = [(one.realm, shown(one.every.seconds)) for one in answer.schedules]
        parts += [Text(), table(["SCHEDULED", "EVERY"], scheduled)]
    return Lines(*parts)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:MOST_NAMED]) + (f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else "")
