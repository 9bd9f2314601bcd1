"""`broker backup` and `broker restore`: of the store, by what the composition root gives."""

from collections.abc import Callable
from pathlib import Path

import click

from broker.edge.cli.command import Command, Name, reason_option

Backup = Callable[..., int]
"""Called with config: Path, folder: Path; returns the exit code."""
Restore = Callable[..., int]
"""Called with config: Path, folder: Path, by: str, reason: str; returns the exit code."""

_FOLDER = click.Path(file_okay=False, path_type=Path)
_CONFIG = click.Path(exists=True, dir_okay=False, path_type=Path)


def backup_command(backup: Backup) -> click.Command:
    """Return `broker backup`."""

    @click.command("backup", cls=Command, examples=["broker backup ./backup-2026-11-24 --config broker.toml"])
    @click.argument("folder", metavar="DIR", type=_FOLDER)
    @click.option("--config", type=_CONFIG, required=True, help="Configuration of the broker.")
    def command(*, folder: Path, config: Path) -> int:
        """Write the whole store to a new folder, also while brokers serve, signed with the ledger's key.

        One moment of it, from SQLite or PostgreSQL. Root keys are not in it.
        """
        return backup(config=config, folder=folder)

    return command


def restore_command(restore: Restore) -> click.Command:
    """Return `broker restore`."""

    @click.command(
        "restore",
        cls=Command,
        examples=[
            'broker restore ./backup-1 --config broker.toml --by spiffe://lab.example/ops --reason "the disk failed"'
        ],
    )
    @click.argument("folder", metavar="DIR", type=_FOLDER)
    @click.option("--config", type=_CONFIG, required=True, help="Configuration of the broker; its store is empty.")
    @click.option("--by", type=Name(), required=True, metavar="PRINCIPAL", help="The admin who does it; recorded.")
    @reason_option
    def command(*, folder: Path, config: Path, by: str, reason: str) -> int:
        """Make an empty store out of a backup, while no broker runs. The ledger is a new incarnation from there on.

        What came after the backup is lost, revocations too. So all tokens of before are dead, and each realm stays
        closed until an admin reinstates it. Verifiers follow by the word of their realm's root.
        """
        return restore(config=config, folder=folder, by=by, reason=reason)

    return command
