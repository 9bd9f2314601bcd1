"""`broker revoke`: commit, and wait until it is in force everywhere; or say what it would hit."""

from collections.abc import Sequence
from pathlib import Path

import click
from rich.console import Group
from rich.text import Text

from broker.edge.cli.batches import revoke_tokens
from broker.edge.cli.command import (
    CommandGroup,
    Name,
    Session,
    calls_broker,
    export_options,
    request_id_option,
    waiting_options,
)
from broker.edge.cli.context import Context
from broker.edge.cli.durations import shown
from broker.edge.cli.exporting import must_be_free, try_export
from broker.edge.cli.outcomes import KEYS, hits, report_of, result_of
from broker.edge.cli.output import milliseconds, plain
from broker.edge.cli.problems import Misused, Unusable
from broker.edge.cli.selectors import selector_fields, selector_options, selector_text
from broker.edge.cli.showing import show
from broker.edge.cli.waiting import Watched, follow, unfinished
from broker.v1 import revocations_pb2 as pb
from broker.v1 import selector_pb2

MOST_NAMED = 20
# The broker wants a reason of every revocation, and does not keep that of a dry run.
_DRY_REASON = "dry run"


@click.group(
    cls=CommandGroup,
    examples=[
        'broker revoke --partner acme --reason "contract ended" --wait',
        "broker revoke --partner acme --dry-run",
        'broker revoke --run 3q2WdSCwS7mVYhJ0 --reason "prompt leaked"',
        'broker revoke --realm research --yes --reason "incident 7" --wait --timeout 2m --export incident-7.jws',
        "broker token inspect -o json < token | jq -r .claims.jti   # the id for --token",
    ],
    keys=f"{KEYS}; and request_id. With --dry-run: dry_run (true), selector, blocks, bound_ms, realms, tokens (null: "
    "too many to count), partners, users, workloads, runs, uses, verifiers, silent (did not say how many uses).",
)
@selector_options
@click.option("--reason", type=Name(), metavar="TEXT", help="Why, in one line; it goes to the ledger. Required.")
@click.option("--dry-run", is_flag=True, help="Say what it would hit, and do nothing.")
@click.option("--yes", is_flag=True, help="Confirm a selector that is nothing but a realm.")
@waiting_options
@export_options
@request_id_option
@calls_broker(has_key_selector=True)
@click.pass_context
def revoke(
    ctx: click.Context,
    session: Session,
    *,
    selector: selector_pb2.Selector,
    reason: str | None,
    dry_run: bool,
    yes: bool,
    wait: bool,
    timeout: int,
    export: Path | None,
    force: bool,
    request_id: str,
) -> None:
    """Revoke every matching token that was minted before now.

    A token matches if it has all that the selector names. A selector of realm, partner, user, workload,
    environment, model and label also blocks new mints until `broker reinstate`.
    """
    if reason is None and not dry_run:
        raise click.MissingParameter(ctx=ctx, param_hint="'--reason'", param_type="option")
    if dry_run and (wait or export is not None):
        raise Misused("a dry run does nothing, so there is nothing to wait for or to export", hint="leave one of them")
    if export is not None:
        if not wait:
            raise Misused("there is no completion yet to export", hint="add --wait")
        must_be_free(export, force=force)
    if list(selector_fields(selector)) == ["realm"] and not yes and not dry_run:
        raise Misused(f"this would revoke everything in realm {selector.realm}", hint="if you mean it, add --yes")
    request = pb.RevokeRequest(
        request_id=request_id,
        selector=selector,
        reason=reason or _DRY_REASON,
        wait=wait,
        # A dry run shows what the confirmation would be about.
        whole_realm=yes or dry_run,
        dry_run=dry_run,
    )
    watched = Watched()
    with session.settings.connect(Context.for_admin) as broker:
        events = broker.stream(broker.revocations.Revoke, request, timeout_s=timeout if wait else None)
        ended = follow(events, watched, session.output if wait else None)
    if dry_run:
        _show_preview(session, watched, ended)
        return
    if watched.committed is None:
        raise ended or Unusable("the broker committed nothing", reason="UNREACHABLE", hint=_repeat(request))
    problem = None
    if export is not None and watched.complete is not None:
        problem = try_export(watched.complete.statements, export, force=force, index=watched.committed.index)
    exported = export if problem is None else None
    session.output.show(
        {**result_of(watched, selector), "request_id": request_id}, report_of(watched, selector, exported=exported)
    )
    if problem is not None:
        raise problem
    if wait and watched.complete is None:
        raise unfinished(watched, ended, timeout) from ended


revoke.add_command(show)
revoke.add_command(revoke_tokens)


def _repeat(request: pb.RevokeRequest) -> str:
    return f"repeat the same command with --request-id {request.request_id}: it does nothing twice"


def _show_preview(session: Session, watched: Watched, ended: Exception | None) -> None:
    preview = watched.preview
    if watched.committed is not None:
        # A broker that does not know `dry_run` has done it.
        raise Unusable(
            f"the broker does not know dry runs: it is revoked at index {watched.committed.index}",
            reason="INTERNAL",
            hint="see: broker revocations; lift its block with: broker reinstate",
        )
    if preview is None:
        raise ended or Unusable("the broker told nothing", reason="UNREACHABLE", hint="try again")
    session.output.show(_previewed(preview), _preview(preview))


def _previewed(preview: pb.RevocationPreview) -> dict[str, object]:
    return {
        "dry_run": True,
        "selector": selector_fields(preview.selector),
        "blocks": preview.blocks,
        "bound_ms": milliseconds(preview.bound),
        "realms": list(preview.realms),
        "tokens": preview.tokens if preview.HasField("tokens") else None,
        "partners": list(preview.partners),
        "users": list(preview.users),
        "workloads": list(preview.workloads),
        "runs": list(preview.runs),
        "uses": preview.uses,
        "verifiers": list(preview.verifiers),
        "silent": list(preview.silent),
    }


def _preview(preview: pb.RevocationPreview) -> Group:
    what = selector_text(preview.selector)
    tokens = preview.tokens if preview.HasField("tokens") else None
    lines = [f"dry run: nothing was done. To revoke {what} now would", f"  hit {hits(tokens, preview.uses)}"]
    for name, values in (
        ("partners", preview.partners),
        ("users", preview.users),
        ("workloads", preview.workloads),
        ("open runs", preview.runs),
    ):
        if values:
            lines.append(f"  of {name}: {_some(values)}")
    block = f"block new mints of {what} until it is reinstated" if preview.blocks else "block no new mints"
    lines.append(f"  {block}")
    if preview.verifiers:
        lines.append(f"  be waited for at {_count(preview.verifiers)}: {_some(preview.verifiers)}")
    else:
        lines.append("  be waited for at no verifier: nobody listens")
    if preview.silent:
        lines.append(f"  (did not say how many uses match: {_some(preview.silent)})")
    if preview.realms:
        bound = shown(preview.bound.ToNanoseconds() / 1e9)
        lines.append(f"  be in force in {', '.join(preview.realms)} after {bound} at the latest")
    return Group(*(Text(plain(line)) for line in lines))


def _count(names: Sequence[str]) -> str:
    number = len(names)
    return f"{number} verifier{'' if number == 1 else 's'}"


def _some(names: Sequence[str]) -> str:
    shown_names = ", ".join(names[:MOST_NAMED])
    return shown_names if len(names) <= MOST_NAMED else f"{shown_names} and {len(names) - MOST_NAMED} more"
