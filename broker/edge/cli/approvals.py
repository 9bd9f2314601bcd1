"""`broker approval`."""

import json
import time
from collections.abc import Callable

import click
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from google.protobuf.duration_pb2 import Duration

from broker.edge.cli.approval_text import KEYS, Seen, seen
from broker.edge.cli.command import Command, Group, Name, Session, calls_broker, named, request_id_option
from broker.edge.cli.connection import Broker
from broker.edge.cli.context import Context, Identity
from broker.edge.cli.durations import Span, shown
from broker.edge.cli.output import plain, table
from broker.edge.cli.problems import DENIED, DONE, Misused, TimedOut, Unusable
from broker.token.approval import ApprovalStatement, Decision, statement_signing_input
from broker.token.jws import assemble
from broker.token.keys import public_jwk, raw_signature
from broker.v1 import approvals_pb2 as pb

PURPOSES = {"run": pb.APPROVAL_PURPOSE_RUN, "token": pb.APPROVAL_PURPOSE_TOKEN}
_ES256 = ec.ECDSA(hashes.SHA256())
# After a stream that broke.
AGAIN_S = 1.0


@click.group(
    cls=Group,
    examples=[
        "ID=$(broker approval request --for run --realm evaluation --partner acme --user bob --model mythos)",
        "broker approval wait $ID --partner acme",
    ],
)
def approval() -> None:
    """Ask for approvals, and give them."""


@approval.command(
    "request",
    cls=Command,
    examples=[
        "ID=$(broker approval request --for run --realm evaluation --partner acme --user bob --model mythos)",
        "broker approval request --for token --realm evaluation --partner acme --user bob --model mythos --ttl 5m",
    ],
    keys=f"{KEYS}, request_id.",
)
@click.option("--for", "purpose", type=click.Choice(sorted(PURPOSES)), required=True, help="What to open with it.")
@named("--realm", "Realm.", required=True)
@named("--partner", "Partner.", required=True)
@named("--user", "Human on whose behalf. Default: whom the caller is.")
@named("--workload", "Program on whose behalf; with --user: that acts for them.")
@click.option("--model", "models", type=Name(), multiple=True, required=True, help="Model. Repeat for more.")
@click.option("--ttl", type=Span(), help="The token's life, or the run's lease. Default: the grant's; 5m.")
@request_id_option
@calls_broker()
def request_approval(
    session: Session,
    *,
    purpose: str,
    realm: str,
    partner: str,
    user: str | None,
    workload: str | None,
    models: tuple[str, ...],
    ttl: int | None,
    request_id: str,
) -> None:
    """Ask for the approvals that a grant needs, and print the id, alone.

    It is for exactly what is said here: name the same when the token is minted or the run opened.
    """
    request = pb.RequestApprovalRequest(
        request_id=request_id,
        purpose=PURPOSES[purpose],
        realm=realm,
        partner=partner,
        user=user or "",
        workload=workload or "",
        models=models,
        lifetime=None if ttl is None else Duration(seconds=ttl),
    )
    with session.settings.connect(lambda context: context.for_partner(partner)) as broker:
        asked = seen(broker.call(broker.approvals.RequestApproval, request).approval)
    session.output.show({**asked.fields(), "request_id": request_id}, plain(asked.request.id))


@approval.command(
    "list",
    cls=Command,
    examples=["broker approval list --waiting --as carol", "broker approval list --partner acme -o json"],
    keys=f"approvals: [{KEYS}], the newest first.",
)
@named("--partner", "Only this partner's; asks as its harness.")
@click.option("--waiting", is_flag=True, help="Only those that can still be voted on.")
@click.option("--limit", type=click.IntRange(1, 1000), default=100, show_default=True, help="At most so many.")
@calls_broker()
def list_approvals(session: Session, *, partner: str | None, waiting: bool, limit: int) -> None:
    """List approvals, the newest first."""
    request = pb.ListApprovalsRequest(partner=partner or "", waiting=waiting, limit=limit)
    with session.settings.connect(_reader(partner)) as broker:
        found = [seen(one) for one in broker.call(broker.approvals.ListApprovals, request).approvals]
    rows = [
        (
            one.request.id,
            one.state,
            one.request.purpose.value,
            one.request.partner,
            one.request.user or one.request.workload,
            " ".join(one.request.models),
            one.told.why,
        )
        for one in found
    ]
    session.output.show(
        {"approvals": [one.fields() for one in found]},
        table(["APPROVAL", "STATE", "FOR", "PARTNER", "WHOM", "MODELS", "WHY"], rows),
    )


@approval.command(
    "show",
    cls=Command,
    examples=["broker approval show $ID --as carol", "broker approval show $ID --partner acme -o json"],
    keys=f"{KEYS}.",
)
@click.argument("approval_id", metavar="APPROVAL", type=Name())
@named("--partner", "Ask as this partner's harness.")
@calls_broker()
def show(session: Session, *, approval_id: str, partner: str | None) -> None:
    """Show an approval, and in words all that is signed by approving it."""
    with session.settings.connect(_reader(partner)) as broker:
        found, _ = _get(broker, approval_id)
    session.output.show(found.fields(), found.report())


def _voting(decision: Decision, does: str) -> Callable[..., int | None]:
    """Return the command by which a person decides."""

    def command(session: Session, *, approval_id: str, yes: bool, sha256: str | None, request_id: str) -> None:
        if session.output.as_json and not yes:
            raise Misused("nobody can be asked where JSON is wanted", hint="look at it with show, then give --yes")
        key, is_login = session.settings.signing_key(Context.for_approver)
        with session.settings.connect(Context.for_approver) as broker:
            found, principal = _get(broker, approval_id)
            if sha256 is not None and sha256 != found.sha256:
                raise Misused(
                    "the request is not the one of --sha256", hint=f"look at it: broker approval show {approval_id}"
                )
            if not yes:
                session.output.show({}, found.report())
                click.confirm(f"{does} this as {plain(principal)}?", abort=True, err=True)
            jwk = public_jwk(key.public_key())
            statement = ApprovalStatement(found.sha256, decision, principal, int(time.time()))
            message = statement_signing_input(jwk, statement)
            signed = assemble(message, raw_signature(key.sign(message, _ES256)))
            given = json.dumps(jwk, sort_keys=True) if is_login else ""
            if decision is Decision.APPROVE:
                approve = pb.ApproveRequest(request_id=request_id, approval=approval_id, statement=signed, key=given)
                voted = seen(broker.call(broker.approvals.Approve, approve).approval)
            else:
                deny = pb.DenyRequest(request_id=request_id, approval=approval_id, statement=signed, key=given)
                voted = seen(broker.call(broker.approvals.Deny, deny).approval)
        text = plain(f"approval {voted.request.id} is {voted.state}: {voted.told.why}")
        session.output.show({**voted.fields(), "request_id": request_id}, text)

    command.__doc__ = (
        f"{does.capitalize()} a request, after a look at it: what is shown is what is signed, with the key of the "
        "login or of the certificate."
    )
    made: Callable[..., int | None] = command
    for option in (
        calls_broker(),
        request_id_option,
        click.option("--sha256", type=Name(), metavar="HASH", help="Only if it is still the request of this hash."),
        click.option("--yes", is_flag=True, help="Do not ask."),
        click.argument("approval_id", metavar="APPROVAL", type=Name()),
    ):
        made = option(made)
    return made


approval.command(
    "approve",
    cls=Command,
    examples=["broker approval approve $ID --as carol", "broker approval approve $ID --yes --sha256 $HASH"],
    keys=f"{KEYS}, request_id.",
)(_voting(Decision.APPROVE, "approve"))
approval.command(
    "deny",
    cls=Command,
    examples=["broker approval deny $ID --as carol", "broker approval deny $ID --yes -o json"],
    keys=f"{KEYS}, request_id.",
)(_voting(Decision.DENY, "deny"))


@approval.command(
    "withdraw",
    cls=Command,
    examples=["broker approval withdraw $ID --partner acme"],
    keys=f"{KEYS}, request_id.",
)
@click.argument("approval_id", metavar="APPROVAL", type=Name())
@named("--partner", "Partner whose harness asked. Default: the context's only one.")
@request_id_option
@calls_broker()
def withdraw(session: Session, *, approval_id: str, partner: str | None, request_id: str) -> None:
    """Take a request back, used or not, unless it is spent."""
    request = pb.WithdrawRequest(request_id=request_id, approval=approval_id)
    with session.settings.connect(_asker(partner)) as broker:
        found = seen(broker.call(broker.approvals.Withdraw, request).approval)
    text = plain(f"approval {found.request.id} is {found.state}")
    session.output.show({**found.fields(), "request_id": request_id}, text)


@approval.command(
    "wait",
    cls=Command,
    examples=["broker approval wait $ID --partner acme --timeout 1h"],
    keys=f"{KEYS}. Exit codes: 0 approved, 3 it never will be, 1 the time is over.",
)
@click.argument("approval_id", metavar="APPROVAL", type=Name())
@named("--partner", "Ask as this partner's harness.")
@click.option("--timeout", type=Span(), default="1h", show_default=True, help="Longest time to wait.")
@calls_broker()
def wait(session: Session, *, approval_id: str, partner: str | None, timeout: int) -> int:
    """Wait until it is approved, or cannot be any more."""
    ends_s = time.monotonic() + timeout
    last: Seen | None = None
    with session.settings.connect(_reader(partner)) as broker:
        while (rest_s := ends_s - time.monotonic()) > 0:
            request = pb.WatchApprovalRequest(approval=approval_id)
            try:
                for event in broker.stream(broker.approvals.WatchApproval, request, timeout_s=max(1, int(rest_s))):
                    found = seen(event.approval)
                    if found.told.state != pb.APPROVAL_STATE_WAITING:
                        session.output.show(found.fields(), plain(f"approval {approval_id} is {found.state}"))
                        return DONE if found.told.state == pb.APPROVAL_STATE_APPROVED else DENIED
                    if last is None or found.told.why != last.told.why:
                        session.output.note(f"waiting: {found.told.why}")
                    last = found
            except TimedOut:
                continue
            except Unusable as broken:
                # Nobody has decided anything by that.
                session.output.note(f"{broken.message}; waiting on")
            time.sleep(min(AGAIN_S, max(0.0, ends_s - time.monotonic())))
    why = f": {last.told.why}" if last is not None else ""
    raise TimedOut(
        f"approval {approval_id} still waits after {shown(timeout)}{why}",
        reason="APPROVAL_NEEDED",
        hint="wait longer, or ask the people of its group",
    )


def _get(broker: Broker, approval_id: str) -> tuple[Seen, str]:
    """Return an approval, and as whom the broker knows the caller."""
    answer = broker.call(broker.approvals.GetApproval, pb.GetApprovalRequest(approval=approval_id))
    found = seen(answer.approval)
    if found.request.id != approval_id:
        raise Unusable("the broker answered with another approval", reason="INTERNAL", hint="sign nothing")
    return found, answer.principal


def _reader(partner: str | None) -> Callable[[Context], Identity]:
    def choose(context: Context) -> Identity:
        if partner is not None and partner in context.harness:
            return context.for_partner(partner)
        return context.for_approver() if context.approver is not None else context.for_admin()

    return choose


def _asker(partner: str | None) -> Callable[[Context], Identity]:
    def choose(context: Context) -> Identity:
        if partner is None and len(context.harness) != 1:
            raise Misused("which partner's it is cannot be told", hint="name it with --partner")
        return context.for_partner(partner if partner is not None else next(iter(context.harness)))

    return choose
