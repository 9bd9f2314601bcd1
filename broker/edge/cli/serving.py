"""`broker dev` and `broker serve`: the only commands that start a server, by what the composition root gives."""

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import click

from broker.edge.cli.command import Command

DEV_PORT = 7443
DEV_LOGIN_PORT = 7442
DEV_HTTP_PORT = 7444
_PORT = click.IntRange(0, 65_535)

Dev = Callable[..., int]
"""Called with data: Path, port: int, http_port: int, login_port: int, once: bool; returns the exit code."""
Serve = Callable[..., int]
"""Called with config: Path; returns the exit code."""


def dev_command(dev: Dev) -> click.Command:
    """Return `broker dev`."""

    @click.command(
        "dev",
        cls=Command,
        examples=["broker dev", "broker dev --data ./broker-data --port 9443", "broker dev --once"],
    )
    @click.option(
        "--data",
        type=click.Path(file_okay=False, path_type=Path),
        help="Folder for ledger, keys and certificates. Default: $XDG_DATA_HOME/broker/dev; with --once a "
        "temporary one, removed at the end.",
    )
    @click.option("--port", type=_PORT, help=f"gRPC port, 0: any free one. Default: {DEV_PORT}; with --once 0.")
    @click.option(
        "--http-port", type=_PORT, help=f"HTTP port, 0: any free one. Default: {DEV_HTTP_PORT}; with --once 0."
    )
    @click.option(
        "--login-port",
        type=_PORT,
        help=f"gRPC port for callers with identity tokens, 0: any free one. Default: {DEV_LOGIN_PORT}; with --once 0.",
    )
    @click.option("--once", is_flag=True, help="Mint, verify, revoke, be denied; then stop. Exits 0 if all went so.")
    def command(
        *, data: Path | None, port: int | None, http_port: int | None, login_port: int | None, once: bool
    ) -> int:
        """Run a broker here, and print what to try.

        One process with embedded defaults; no Vault is needed. It writes a context file, so that the other
        commands need no flags.
        """
        with _data_folder(data, is_throw_away=once) as folder:
            return dev(
                data=folder,
                port=port if port is not None else (0 if once else DEV_PORT),
                http_port=http_port if http_port is not None else (0 if once else DEV_HTTP_PORT),
                login_port=login_port if login_port is not None else (0 if once else DEV_LOGIN_PORT),
                once=once,
            )

    return command


def serve_command(serve: Serve) -> click.Command:
    """Return `broker serve`."""

    @click.command("serve", cls=Command, examples=["broker serve --config broker.toml"])
    @click.option(
        "--config",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        required=True,
        help="Settings.",
    )
    def command(*, config: Path) -> int:
        """Run a broker in production."""
        return serve(config=config)

    return command


def data_folder(environment: Mapping[str, str]) -> Path:
    """Return where `broker dev` keeps its data: `$XDG_DATA_HOME/broker/dev`."""
    home = environment.get("XDG_DATA_HOME") or ""
    # XDG Base Directory: a relative path is to be ignored.
    return (Path(home) if home.startswith("/") else Path.home() / ".local" / "share") / "broker" / "dev"


@contextmanager
def _data_folder(data: Path | None, *, is_throw_away: bool) -> Iterator[Path]:
    if data is None and is_throw_away:
        with tempfile.TemporaryDirectory(prefix="broker-dev-") as folder:
            yield Path(folder)
    else:
        yield data if data is not None else data_folder(os.environ)
