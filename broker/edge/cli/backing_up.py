"""`broker backup`, `broker restore` and `broker archive`: of the store, by what the composition root gives."""

from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import click

from broker.edge.cli.asking import Instant
from broker.edge.cli.command import Command, Name, reason_option

Backup = Callable[..., int]
"""Called with config: Path, folder: Path; returns the exit code."""
Restore = Callable[..., int]
"""Called with config: Path, folder: Path, by: str, reason: str; returns the exit code."""

Archive = Callable[..., int]
"""Called with config: Path, before: datetime; returns the exit code."""

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


def archive_command(archive: Archive) -> click.Command:
    """Return `broker archive`."""

    @click.command(
        "archive",
        cls=Command,
        examples=[
            "broker archive --before 90d --config broker.toml",
            "broker archive --before 2026-10-01T00:00:00Z --config broker.toml",
        ],
    )
    @click.option("--before", type=Instant(), required=True, help="Move what is older: an instant, or how long ago.")
    @click.option("--config", type=_CONFIG, required=True, help="Configuration of the broker, with ledger.archive.")
    def command(*, before: datetime, config: Path) -> int:
        """Move the bodies of old ledger entries to the folder ledger.archive, also while brokers serve.

        Hashes, proofs and all state stay. The broker reads what was moved from there, and each body is checked against
        the ledger. Entries of the last 8 days, the last 5,000, and those that no checkpoint covers are never moved.
        """
        return archive(config=config, before=before)

    return command
