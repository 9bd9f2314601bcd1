"""`broker explain`: why a mint would be allowed or denied, and what would change that."""

from collections.abc import Iterable

import click
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from broker.edge.cli.command import CommandGroup, Session, calls_broker, named
from broker.edge.cli.context import Context, Identity
from broker.edge.cli.output import plain, table, yes
from broker.edge.cli.specs import spec_options
from broker.v1 import policy_pb2, tokens_pb2

RULE_KEYS = "rules: [rule, passes, detail]"


def rules_json(rules: Iterable[policy_pb2.ExplainedRule]) -> list[dict[str, object]]:
    """Return rules as JSON."""
    return [{"rule": rule.rule, "passes": rule.passes, "detail": rule.detail} for rule in rules]


def rules_table(rules: Iterable[policy_pb2.ExplainedRule]) -> Table:
    """Return rules for people."""
    return table(["RULE", "PASSES", "DETAIL"], [(rule.rule, yes(rule.passes), rule.detail) for rule in rules])


@click.group(
    cls=CommandGroup,
    examples=[
        "broker explain --realm production --partner acme --user alice --model mythos",
        "broker explain --realm production --partner acme --user alice --model mythos --environment acme-ci",
        "broker explain denial 3qv7c2QjT0mWm2Qf7d1JqA",
        "broker explain token < token",
        "broker explain path --realm production --model mythos",
    ],
    keys=f"allowed, grant, {RULE_KEYS}, demands: [rule, detail, enforced], remedy (what would change the answer).",
)
@spec_options
@named("--environment", "Environment to assume; asks as admin. Default: the partner's harness's own.")
@calls_broker()
def explain(session: Session, *, spec: tokens_pb2.TokenSpec, environment: str | None) -> None:
    """Say why a mint would be allowed or denied, what more is demanded, and what would change the answer.

    Rule by rule, up to the one that decides; mints nothing. The exit code is 0 whichever it is: the
    question was answered.
    """

    def choose(context: Context) -> Identity:
        if environment is not None or spec.partner not in context.harness:
            return context.for_admin()
        return context.for_partner(spec.partner)

    request = policy_pb2.ExplainRequest(spec=spec, environment=environment)
    with session.settings.connect(choose) as broker:
        answer: policy_pb2.ExplainResponse = broker.call(broker.policy.Explain, request)
    verdict = f"allowed by grant {answer.grant}" if answer.allowed else "denied"
    parts: list[RenderableType] = [Text(plain(verdict)), rules_table(answer.rules)]
    if answer.demands:
        demanded = [(one.rule, yes(one.enforced), one.detail) for one in answer.demands]
        parts += [Text(), table(["DEMANDS", "ENFORCED", "DETAIL"], demanded)]
    if answer.remedy:
        parts += [Text(), Text(plain(f"what would change it: {answer.remedy}"))]
    session.output.show(
        {
            "allowed": answer.allowed,
            "grant": answer.grant,
            "rules": rules_json(answer.rules),
            "demands": [{"rule": one.rule, "detail": one.detail, "enforced": one.enforced} for one in answer.demands],
            "remedy": answer.remedy,
        },
        Group(*parts),
    )
