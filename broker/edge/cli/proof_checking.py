"""`broker audit verify-proof`: one entry's proof, checked offline, by what the composition root gives."""

import base64
import os
from pathlib import Path

import click

from broker.edge.cli.checking import Strangers, read_file, summary, trusting, witnesses_of
from broker.edge.cli.command import FILE, Command, answers
from broker.edge.cli.context import context_path, read_context
from broker.edge.cli.output import Output, plain, table


def verify_proof_command(strangers: Strangers) -> click.Command:
    """Return the command."""

    @click.command(
        "verify-proof",
        cls=Command,
        examples=[
            "broker audit verify-proof entry-17.tlog-proof --trust trust.json",
            "broker audit verify-proof entry-17.tlog-proof -o json | jq -r .entry | base64 -d",
        ],
        keys="good (true; anything else is an error, exit code 1), file, index, size and root (of the tree that was "
        "signed), origin, kind, at, by, body, entry (its exact bytes, base64), witnesses (names that signed), "
        "witnesses_wanted.",
    )
    @click.argument("file", type=FILE)
    @click.option(
        "--trust", "trust_file", type=FILE, envvar="BROKER_TRUST", help="Trust file. Default: the one of the context."
    )
    @click.option("--entry", "entry_file", type=FILE, help="The entry's exact bytes, for a proof that lacks them.")
    @click.option(
        "--witnesses",
        type=click.IntRange(0),
        help="How many of the trust file's witnesses must have signed. Default: all of them.",
    )
    @click.option("--context", "context_file", type=FILE, envvar="BROKER_CONTEXT", help="Context file.")
    @answers
    def verify_proof(
        output: Output,
        *,
        file: Path,
        trust_file: Path | None,
        entry_file: Path | None,
        witnesses: int | None,
        context_file: Path | None,
    ) -> None:
        """Check the file of `broker audit prove`: that just this entry is in the log. Asks nobody.

        It shows that the log, whose key the trust file pins, vouches for the entry, and each byte of the file counts.
        That the entry agrees with all before it is what `broker audit verify` checks.
        """
        pinned = trust_file or read_context(context_file or context_path(os.environ)).trust
        entry = None if entry_file is None else read_file(entry_file)
        trust = read_file(pinned).decode("utf-8", "replace")
        with trusting(pinned):
            found = strangers().verify_proof(read_file(file), trust, witnesses, entry)
        exact = base64.b64encode(found["entry"]).decode("ascii")
        rows = [
            ("good", f"entry {found['index']} is in the log {found['origin']}"),
            ("signed", f"with {found['size']} entries, whose root is {found['root']}"),
            ("witnesses", witnesses_of(found)),
            ("entry", plain(f"{found['at']}  {found['kind']}  {found['by']}  {summary(found['body'])}".rstrip())),
        ]
        output.show({**found, "file": str(file), "entry": exact}, table(["", ""], rows))

    return verify_proof
