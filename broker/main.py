"""Composition root: the only file that knows which adapter fills which port."""

import sys

from broker.edge.cli import cli_with


def main() -> None:
    """Run the command line."""
    # The server's parts are heavy; commands that are only clients start without them.
    from broker.running import run_dev, run_serve, validate_policy  # noqa: PLC0415

    sys.exit(cli_with(dev=run_dev, serve=run_serve, validate=validate_policy).main(standalone_mode=True))
