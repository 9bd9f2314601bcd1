"""`broker policy plan`: what a policy would change, before it is applied."""

from pathlib import Path

import click
from rich.console import Group, RenderableType
from rich.text import Text

from broker.edge.cli.command import Command, Session, calls_broker
from broker.edge.cli.context import Context
from broker.edge.cli.output import plain, table
from broker.edge.cli.policy_document import DOCUMENT, read_document
from broker.errors import ConfigInvalid, Invalid
from broker.v1 import policy_pb2

_SIGNS = {"more": "+", "less": "-", "other": "~"}
KEYS = (
    "plan, version, changes: [direction (more, less, other), subject, text], what lets somebody do more first, "
    "runs: [run, realm, partner, lost: [model], changed: [model]], more_runs, tokens (null: too many to count)."
)


@click.command(
    cls=Command,
    examples=[
        "broker policy plan policy.yaml",
        "broker policy plan policy.yaml -o json | jq .changes",
    ],
    keys=KEYS,
)
@click.argument("file", type=DOCUMENT)
@calls_broker()
def plan(session: Session, *, file: Path) -> None:
    """Say what a policy file would change: who gains, who loses, which runs it would touch. Applies nothing."""
    show_plan(session, file)


def show_plan(session: Session, file: Path) -> None:
    """Plan a file and print the plan. Raises what the call raises."""
    request = policy_pb2.PlanPolicyRequest(document=read_document(file))
    with session.settings.connect(Context.for_admin) as broker:
        try:
            answer: policy_pb2.PlanPolicyResponse = broker.call(broker.policy.PlanPolicy, request)
        except Invalid as bad:
            # The command line was right, the file was not.
            raise ConfigInvalid(str(file), (bad.problem,)) from bad
    session.output.show(_result(answer), _text(answer, file))


def _direction(change: policy_pb2.PolicyChange) -> str:
    name = policy_pb2.PolicyChangeDirection.Name(change.direction)
    return name.removeprefix("POLICY_CHANGE_DIRECTION_").lower()


def _result(answer: policy_pb2.PlanPolicyResponse) -> dict[str, object]:
    return {
        "plan": answer.plan,
        "version": answer.version,
        "changes": [{"direction": _direction(one), "subject": one.subject, "text": one.text} for one in answer.changes],
        "runs": [
            {
                "run": one.run,
                "realm": one.realm,
                "partner": one.partner,
                "lost": list(one.lost),
                "changed": list(one.changed),
            }
            for one in answer.runs
        ],
        "more_runs": answer.more_runs,
        "tokens": _tokens(answer),
    }


def _tokens(answer: policy_pb2.PlanPolicyResponse) -> int | None:
    return answer.tokens if answer.HasField("tokens") else None


def _text(answer: policy_pb2.PlanPolicyResponse, file: Path) -> RenderableType:
    parts: list[RenderableType] = [
        Text(plain(f"{_SIGNS.get(_direction(one), '~')} {one.subject}: {one.text}")) for one in answer.changes
    ]
    if not answer.changes:
        parts.append(Text(f"nothing would change: it means what version {answer.version} means"))
    if answer.runs:
        rows = [(one.run, one.partner, one.realm, " ".join(one.lost), " ".join(one.changed)) for one in answer.runs]
        parts += [Text(), table(["OPEN RUN", "PARTNER", "REALM", "LOSES", "ON OTHER TERMS"], rows)]
    if answer.more_runs:
        parts.append(Text("and more open runs"))
    tokens = _tokens(answer)
    if tokens is None or tokens:
        count = "too many live tokens to count" if tokens is None else _many(tokens)
        parts.append(
            Text(f"{count} could not be minted again; they live on until they end: see broker revoke --dry-run")
        )
    apply = f"broker policy apply {file} --plan {answer.plan} --reason ..."
    parts += [Text(), Text(plain(f"compared with version {answer.version}; to apply exactly this: {apply}"))]
    return Group(*parts)


def _many(tokens: int) -> str:
    return "1 live token" if tokens == 1 else f"{tokens} live tokens"
