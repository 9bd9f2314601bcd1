"""`broker reinstate` and `broker revocations`: what is in force, and lifting what can be lifted."""

import click
from rich.console import Group
from rich.table import Table
from rich.text import Text

from broker.edge.cli.command import Command, Session, calls_broker, reason_option, request_id_option
from broker.edge.cli.context import Context
from broker.edge.cli.output import instant, plain, table
from broker.edge.cli.selectors import selector_fields, selector_options, selector_text
from broker.errors import NotFound
from broker.v1 import revocations_pb2 as pb
from broker.v1 import selector_pb2


@click.command(
    cls=Command,
    examples=[
        'broker reinstate --partner acme --reason "contract renewed"',
        "broker revocations   # shows the blocks, which must be named exactly",
    ],
    keys="selector (its dimensions), index, request_id.",
)
@selector_options
@reason_option
@request_id_option
@calls_broker(has_key_selector=True)
def reinstate(session: Session, *, selector: selector_pb2.Selector, reason: str, request_id: str) -> None:
    """Lift a block, by the selector it was made with.

    New tokens can be minted again. A token that was revoked stays dead.
    """
    request = pb.ReinstateRequest(request_id=request_id, selector=selector, reason=reason)
    with session.settings.connect(Context.for_admin) as broker:
        answer: pb.ReinstateResponse = broker.call(broker.revocations.Reinstate, request)
    what = selector_text(selector)
    if not answer.lifted:
        raise NotFound(f"there is no block {what}; nothing was done", hint="see: broker revocations")
    session.output.show(
        {"selector": selector_fields(selector), "index": answer.index, "request_id": request_id},
        plain(f"reinstated {what} at index {answer.index}: new tokens can be minted, dead ones stay dead"),
    )


@click.command(
    cls=Command,
    examples=["broker revocations", "broker revocations --after 1200 --limit 1000 -o json"],
    keys="revocations: [index, selector, reason, by, committed_at], blocks: [selector, index], more.",
)
@click.option("--after", type=click.IntRange(min=0, max=2**63), default=0, help="Only beyond this ledger index.")
@click.option("--limit", type=click.IntRange(1, 1000), default=100, show_default=True, help="At most so many.")
@calls_broker()
def revocations(session: Session, *, after: int, limit: int) -> None:
    """List the revocations and the blocks in force."""
    with session.settings.connect(Context.for_admin) as broker:
        answer: pb.ListRevocationsResponse = broker.call(
            broker.revocations.ListRevocations, pb.ListRevocationsRequest(after=after, limit=limit)
        )
    session.output.show(_listed(answer), _listing(answer))
    if answer.more:
        session.output.note(f"there are more: broker revocations --after {answer.revocations[-1].index}")


def _listed(answer: pb.ListRevocationsResponse) -> dict[str, object]:
    return {
        "revocations": [
            {
                "index": one.index,
                "selector": selector_fields(one.selector),
                "reason": one.reason,
                "by": one.by,
                "committed_at": instant(one.committed_at),
            }
            for one in answer.revocations
        ],
        "blocks": [{"selector": selector_fields(one.selector), "index": one.index} for one in answer.blocks],
        "more": answer.more,
    }


def _listing(answer: pb.ListRevocationsResponse) -> Group:
    revoked = [
        (one.index, selector_text(one.selector), one.reason, one.by, instant(one.committed_at))
        for one in answer.revocations
    ]
    blocked = [(one.index, selector_text(one.selector)) for one in answer.blocks]
    parts: list[Table | Text] = [table(["INDEX", "REVOKED", "REASON", "BY", "AT"], revoked)]
    if blocked:
        parts += [Text(), table(["SINCE", "BLOCKED UNTIL REINSTATED"], blocked)]
    return Group(*parts)
