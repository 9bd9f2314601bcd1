"""`--user-token-file`: what a user proves themselves by, beside the program that calls."""

import functools
from pathlib import Path
from typing import Any

import click

from broker.edge.cli.command import FILE, Callback
from broker.edge.cli.problems import Unusable

# What the broker reads at most.
MAX_BYTES = 16_384


def user_token_option(callback: Callback) -> Callback:
    """Add `--user-token-file`; the callback gets the token in it as `user_token`, or nothing."""

    @functools.wraps(callback)
    def wrapped(*args: Any, user_token_file: Path | None, **rest: Any) -> int | None:
        return callback(*args, user_token="" if user_token_file is None else _read(user_token_file), **rest)

    return click.option(
        "--user-token-file",
        type=FILE,
        envvar="BROKER_USER_TOKEN_FILE",
        help="The user's own identity token, as `broker login token` prints it: realms with two subjects ask for it.",
    )(wrapped)


def _read(path: Path) -> str:
    hint = "write what `broker login token` prints to it, and nothing else"
    try:
        with path.open(encoding="ascii") as file:
            text = file.read(MAX_BYTES + 2).strip()
    except UnicodeError:
        text = ""
    except OSError as bad:
        raise Unusable(f"{path}: {bad.strerror}", reason="FILE", hint=hint) from bad
    if text.count(".") != 2 or len(text.split()) != 1:  # noqa: PLR2004 - the dots of a JWT
        # Its text is not shown: it may be another secret.
        raise Unusable(f"{path} does not hold one identity token", reason="FILE", hint=hint)
    return text
