"""`--key-file`: the key of a run, by which commands go on with it."""

from pathlib import Path

import click
from google.protobuf.message import Message

from broker.edge.cli.command import Callback
from broker.edge.cli.problems import Misused, Unusable
from broker.errors import ConfigInvalid
from broker.sdk.channels import Metadata
from broker.sdk.run_key import RunKey, read_kept_run


def key_file_option(callback: Callback) -> Callback:
    """Add `--key-file` to a command that goes on with a run."""
    return click.option(
        "--key-file",
        type=click.Path(path_type=Path, dir_okay=False),
        metavar="FILE",
        help="Key of the run, as `broker run open --key-file` wrote it. With it no login is needed.",
    )(callback)


def of_run(key_file: Path | None, run_id: str) -> RunKey | None:
    """Return the key in the file, if one is named.

    Raises:
        Misused: The file is another run's.
        Unusable: It cannot be used.
    """
    if key_file is None:
        return None
    try:
        kept = read_kept_run(key_file)
    except ConfigInvalid as bad:
        raise unusable(bad) from bad
    if kept.run != run_id:
        raise Misused(f"{key_file} is the key of run {kept.run}", hint="name that run, or the other one's key file")
    return kept.key


def proven(key: RunKey | None, method: str, run_id: str | None, request: Message) -> Metadata | None:
    """Return the metadata that proves the key for a call, if there is one."""
    return None if key is None else key.metadata(method, run_id, request)


def unusable(bad: ConfigInvalid) -> Unusable:
    """Return what a person is told of a key file."""
    return Unusable("; ".join(bad.problems), reason="KEY_FILE", hint="see: broker run open --help")
