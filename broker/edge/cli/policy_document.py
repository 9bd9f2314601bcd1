"""A policy file as it comes in."""

from pathlib import Path

import click

from broker.edge.cli.problems import Unusable

MAX_DOCUMENT_BYTES = 1 << 20
DOCUMENT = click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path)


def read_document(file: Path) -> str:
    """Read a policy file. Raises Unusable."""
    try:
        with click.open_file(str(file), "rb") as opened:
            data: bytes = opened.read(MAX_DOCUMENT_BYTES + 1)
        if len(data) > MAX_DOCUMENT_BYTES:
            raise Unusable(f"{file} is larger than 1 MiB", reason="FILE", hint="is it a policy file?")
        return data.decode("utf-8")
    except UnicodeDecodeError as bad:
        raise Unusable(f"{file} is not UTF-8", reason="FILE", hint="is it a policy file?") from bad
