"""The options that say what a token shall be for."""

import functools
import shlex
from collections.abc import Callable
from typing import Any

import click

from broker.edge.cli.command import Callback, Name, named
from broker.edge.cli.durations import Span
from broker.v1 import tokens_pb2


def spec_options(callback: Callback) -> Callback:
    """Add them; the callback gets a `TokenSpec` as `spec`."""

    @functools.wraps(callback)
    def wrapped(
        *args: Any,
        realm: str,
        partner: str,
        user: str | None,
        workload: str | None,
        models: tuple[str, ...],
        run: str | None,
        test: str | None,
        ttl: int | None,
        approval: str | None,
        **rest: Any,
    ) -> int | None:
        spec = tokens_pb2.TokenSpec(
            realm=realm,
            partner=partner,
            user=user,
            workload=workload,
            models=models,
            run=run,
            test=test,
            approval=approval or "",
        )
        if ttl is not None:
            spec.lifetime.FromSeconds(ttl)
        return callback(*args, spec=spec, **rest)

    options: list[Callable[[Callback], Callback]] = [
        named("--realm", "Realm.", required=True),
        named("--partner", "Partner.", required=True),
        named("--user", "Human on whose behalf it is used. Default: the workload that the caller is."),
        named("--workload", "Program on whose behalf it is used; with --user: that acts for them."),
        click.option(
            "--model",
            "models",
            type=Name(),
            multiple=True,
            required=True,
            help="Model, `name` or `name@instance`. Repeat for more.",
        ),
        named("--run", "Open run that it belongs to."),
        named("--test", "Test within the run."),
        click.option("--ttl", type=Span(), help="Lifetime, as 90s, 10m or 1h. Default: the grant's."),
        named("--approval", "Approval of exactly this token; it is spent."),
    ]
    result: Callback = wrapped
    for option in reversed(options):
        result = option(result)
    return result


def explain_command(spec: tokens_pb2.TokenSpec) -> str:
    """Return the command that explains why `spec` is allowed or denied."""
    words = ["broker", "explain", "--realm", spec.realm, "--partner", spec.partner]
    for kind, name in (("user", spec.user), ("workload", spec.workload)):
        if spec.HasField(kind):
            words += [f"--{kind}", name]
    for model in spec.models:
        words += ["--model", model]
    return shlex.join(words)
