"""`broker witness`: a process that watches that logs only grow, by what the composition root gives."""

from collections.abc import Callable
from pathlib import Path

import click

from broker.edge.cli.command import FILE, Command

Witness = Callable[..., int]
"""Called with name, data: Path, listen, logs, cert: Path, key: Path, passphrase: Path | None; returns the exit code."""


def witness_command(witness: Witness) -> click.Command:
    """Return `broker witness`."""

    @click.command(
        "witness",
        cls=Command,
        examples=[
            "broker witness --name witness.example/w1 --data ./witness --cert w.pem --cert-key w.key --log VKEY",
            "broker trust -o json | jq -r .log.keys[0]",
        ],
    )
    @click.option("--name", required=True, help="Name of its key, like witness.example/w1: no scheme, no space.")
    @click.option(
        "--data",
        type=click.Path(file_okay=False, path_type=Path),
        required=True,
        help="Folder for its key and for the last checkpoint of each log.",
    )
    @click.option(
        "--listen", default="127.0.0.1:7446", show_default=True, metavar="HOST:PORT", help="Where it listens."
    )
    @click.option("--cert", type=FILE, required=True, help="Certificate of its HTTPS door.")
    @click.option("--cert-key", type=FILE, required=True, help="Key of that certificate.")
    @click.option(
        "--log", "logs", multiple=True, required=True, metavar="VKEY", help="Key of a log to watch; may be repeated."
    )
    @click.option(
        "--passphrase-file", type=FILE, help="Passphrase of its key. Default: a new one, kept beside the key."
    )
    def command(
        *, name: str, data: Path, listen: str, cert: Path, cert_key: Path, logs: tuple[str, ...], passphrase_file: Path
    ) -> int:
        """Watch logs as a witness: sign a log's checkpoint only if it goes on from the last one.

        Speaks c2sp.org/tlog-witness. Run it where the log's owner has no say; the broker is told of it in
        ledger.witnesses. What it prints at the start holds its key.
        """
        return witness(
            name=name, data=data, listen=listen, logs=logs, cert=cert, key=cert_key, passphrase=passphrase_file
        )

    return command
