"""What all commands share: documented examples and keys, `-o`, and how to reach the broker."""

import functools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from broker.edge.cli.connection import DEFAULT_DEADLINE, Settings, new_request_id
from broker.edge.cli.durations import Span
from broker.edge.cli.output import Output

Callback = Callable[..., int | None]
DEFAULT_WAIT = "1m"
FILE = click.Path(dir_okay=False, path_type=Path)


class Command(click.Command):
    """A command whose help ends with examples and, where it answers, the keys of its JSON."""

    def __init__(self, *args: Any, examples: Sequence[str], keys: str = "", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = tuple(examples)
        self.keys = keys

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples as they are, unwrapped."""
        super().format_epilog(ctx, formatter)
        write_examples(formatter, self.examples)
        if self.keys:
            with formatter.section("JSON (-o json)"):
                formatter.write_text(self.keys)


class Group(click.Group):
    """A group of commands whose help ends with examples."""

    def __init__(self, *args: Any, examples: Sequence[str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = tuple(examples)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples as they are, unwrapped."""
        super().format_epilog(ctx, formatter)
        write_examples(formatter, self.examples)


class CommandGroup(click.Group):
    """A command that has more commands below it: its own options count unless the first word is one of these."""

    allow_extra_args = False
    allow_interspersed_args = True

    def __init__(self, *args: Any, examples: Sequence[str], keys: str = "", **kwargs: Any) -> None:
        kwargs |= {"invoke_without_command": True, "subcommand_metavar": "| COMMAND [ARGS]..."}
        super().__init__(*args, **kwargs)
        self.examples = tuple(examples)
        self.keys = keys

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the command's own arguments; what is for a command below it stays in `ctx.args` as it is."""
        if not args or args[0] not in self.commands:
            # Past click's group, which would take a stray word for a command.
            return click.Command.parse_args(self, ctx, args)
        ctx.args = args
        return args

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command, or the one below it, never both."""
        if not ctx.args:
            return click.Command.invoke(self, ctx)
        with ctx:
            ctx.invoked_subcommand, command, rest = self.resolve_command(ctx, ctx.args)
            assert command is not None  # noqa: S101 - else it had failed
            with command.make_context(ctx.invoked_subcommand, rest, parent=ctx) as inner:
                return inner.command.invoke(inner)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples as they are, unwrapped."""
        super().format_epilog(ctx, formatter)
        write_examples(formatter, self.examples)
        if self.keys:
            with formatter.section("JSON (-o json)"):
                formatter.write_text(self.keys)


def write_examples(formatter: click.HelpFormatter, examples: Sequence[str]) -> None:
    """Write a section of lines that can be copied."""
    with formatter.section("Examples"):
        for example in examples:
            formatter.write(f"{'':>{formatter.current_indent}}{example}\n")


class Name(click.ParamType[str]):
    """A name for the broker to judge. Never empty: on the wire, empty is as if the option were not there.

    So `--partner "$PARTNER"` with the variable unset must not become a selector without a partner.
    """

    name = "name"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return `value`, or fail as a usage error when it is empty."""
        text = str(value)
        if not text.strip():
            self.fail("is empty: give a value, or leave the option out", param, ctx)
        return text


@dataclass(frozen=True, slots=True)
class Session:
    """What a command that calls the broker is given first."""

    settings: Settings
    output: Output


def answers(callback: Callback, *, forms: Sequence[str] = ()) -> Callback:
    """Add `-o`, for text, JSON and `forms`; the callback gets an `Output` first."""

    @click.option(
        "-o",
        "--output",
        "form",
        type=click.Choice(["text", "json", *forms]),
        default="text",
        help="Form of the answer, and of an error.",
    )
    @functools.wraps(callback)
    def wrapped(form: str, **rest: Any) -> int | None:
        return callback(Output(form == "json", form), **rest)

    return wrapped


def calls_broker(*, has_key_selector: bool = False, forms: Sequence[str] = ()) -> Callable[[Callback], Callback]:
    """Add `-o` and how to reach the broker; the callback gets a `Session` first.

    With `has_key_selector`, `--key` is left to the selector, where it names a signing key.
    """

    def decorated(callback: Callback) -> Callback:
        @functools.wraps(callback)
        def wrapped(
            output: Output,
            *,
            endpoint: str | None,
            ca: Path | None,
            cert: Path | None,
            cert_key: Path | None,
            trust_file: Path | None,
            context_file: Path | None,
            as_name: str | None,
            token_file: Path | None,
            deadline: int,
            **rest: Any,
        ) -> int | None:
            # The variable leads to the door for certificates; a login knows its own.
            is_ambient = click.get_current_context().get_parameter_source("endpoint") is ParameterSource.ENVIRONMENT
            settings = Settings(
                endpoint,
                ca,
                cert,
                cert_key,
                trust_file,
                context_file,
                as_name,
                deadline,
                os.environ,
                token_file,
                is_ambient,
            )
            return callback(Session(settings, output), **rest)

        return answers(_connecting(wrapped, has_key_selector=has_key_selector), forms=forms)

    return decorated


def request_id_option(callback: Callback) -> Callback:
    """Add `--request-id`; without it the command makes a new one."""
    return click.option(
        "--request-id",
        type=Name(),
        default=new_request_id,
        help="Repeat an intent: the same id gets the first answer, and nothing is done twice. Default: a new one.",
    )(callback)


def named(option: str, help_text: str, *, required: bool = False) -> Callable[[Callback], Callback]:
    """Return an option that takes a name."""
    return click.option(option, type=Name(), required=required, help=help_text)


def reason_option(callback: Callback) -> Callback:
    """Add `--reason`."""
    return click.option(
        "--reason", type=Name(), required=True, metavar="TEXT", help="Why, in one line; it goes to the ledger."
    )(callback)


def waiting_options(callback: Callback) -> Callback:
    """Add `--wait` and `--timeout`."""
    for option in (
        click.option(
            "--timeout", type=Span(), default=DEFAULT_WAIT, show_default=True, help="Longest time for --wait."
        ),
        click.option("--wait", is_flag=True, help="Wait until no verifier accepts a matching token any more."),
    ):
        callback = option(callback)
    return callback


def export_options(callback: Callback) -> Callback:
    """Add `--export` and `--force`; the callback gets them as `export` and `force`."""
    for option in (
        click.option("--force", is_flag=True, help="Overwrite what is there."),
        click.option("--export", type=FILE, metavar="FILE", help="Write the signed completion to a new file."),
    ):
        callback = option(callback)
    return callback


def _connecting(callback: Callback, *, has_key_selector: bool) -> Callback:
    key_flags = ["--cert-key"] if has_key_selector else ["--cert-key", "--key"]
    options = [
        click.option("--endpoint", envvar="BROKER_ENDPOINT", metavar="HOST:PORT", help="Where the broker is."),
        click.option("--ca", type=FILE, envvar="BROKER_CA", help="CA that the broker's certificate is from."),
        click.option("--cert", type=FILE, envvar="BROKER_CERT", help="Client certificate to act as."),
        click.option(*key_flags, "cert_key", type=FILE, envvar="BROKER_KEY", help="Key of that certificate."),
        click.option("--trust", "trust_file", type=FILE, envvar="BROKER_TRUST", help="Trust file, for verifying."),
        click.option("--context", "context_file", type=FILE, envvar="BROKER_CONTEXT", help="Context file."),
        click.option("--as", "as_name", envvar="BROKER_AS", metavar="NAME", help="Identity of the context to be."),
        click.option(
            "--token-file",
            type=FILE,
            envvar="BROKER_TOKEN_FILE",
            help="Identity token to act by, at the login door: what a CI job or a pod has in place of a certificate.",
        ),
        click.option(
            "--deadline",
            type=Span(),
            default=DEFAULT_DEADLINE,
            show_default=True,
            help="Longest time for one call.",
        ),
    ]
    for option in reversed(options):
        callback = option(callback)
    return callback
