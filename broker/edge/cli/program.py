"""The program: one place where arguments are checked first and every failure becomes a line and an exit code."""

import json
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NoReturn

import click

from broker.edge.cli.command import Group
from broker.edge.cli.problems import DONE, INTERRUPTED, USAGE, problem_of, refuse_unsafe
from broker.errors import Failure

NAME = "broker"


class Program(Group):
    """A group that always ends the process with one of the stable exit codes."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> NoReturn:
        """Run the command in `args`, then exit. `prog_name` and `standalone_mode` are ours."""
        del prog_name, standalone_mode
        arguments = list(sys.argv[1:] if args is None else args)
        try:
            refuse_unsafe(arguments)
            code = super().main(
                arguments, NAME, complete_var, standalone_mode=False, windows_expand_args=windows_expand_args, **extra
            )
        except (click.Abort, KeyboardInterrupt):
            sys.exit(INTERRUPTED)
        except click.exceptions.NoArgsIsHelpError as shown:
            click.echo(shown.format_message(), err=True)
            sys.exit(USAGE)
        except (click.ClickException, Failure, OSError) as failure:
            sys.exit(_report(failure, as_json=wants_json(arguments)))
        sys.exit(code if isinstance(code, int) else DONE)


def wants_json(arguments: Sequence[str]) -> bool:
    """Tell whether `-o json` was asked for, even where the rest of the command line made no sense."""
    pairs = zip(arguments, [*arguments[1:], ""], strict=True)
    return any(
        argument in {"-ojson", "--output=json"} or (argument in {"-o", "--output"} and following == "json")
        for argument, following in pairs
    )


def _report(failure: Exception, *, as_json: bool) -> int:
    problem = problem_of(failure)
    with suppress(BrokenPipeError):
        click.echo(json.dumps(problem.as_json()) if as_json else problem.line, err=True)
    return problem.exit_code
