"""`broker completion`."""

import click
from click.shell_completion import get_completion_class

from broker.edge.cli.command import Command, answers
from broker.edge.cli.output import Output

_VARIABLE = "_BROKER_COMPLETE"


@click.command(
    cls=Command,
    examples=[
        'eval "$(broker completion bash)"   # in ~/.bashrc',
        'eval "$(broker completion zsh)"    # in ~/.zshrc',
        "broker completion fish > ~/.config/fish/completions/broker.fish",
    ],
    keys="shell, script.",
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@answers
@click.pass_context
def completion(ctx: click.Context, output: Output, *, shell: str) -> None:
    """Print a shell's completion script."""
    made = get_completion_class(shell)
    assert made is not None  # noqa: S101 - the choices are click's own
    script = made(ctx.find_root().command, {}, "broker", _VARIABLE).source()
    output.show({"shell": shell, "script": script}, script)
