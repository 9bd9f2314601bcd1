"""`broker token`."""

import click

from broker.edge.cli.command import Group
from broker.edge.cli.exchanging import exchange
from broker.edge.cli.inspecting import inspect
from broker.edge.cli.minting import mint
from broker.edge.cli.verifying import verify


@click.group(
    cls=Group,
    examples=[
        "broker token mint --realm evaluation --partner acme --user alice --model mythos > token",
        "broker token verify --realm evaluation --model mythos < token",
    ],
)
def token() -> None:
    """Mint, verify and inspect tokens. They are read from stdin, never from arguments."""


for _command in (mint, exchange, verify, inspect):
    token.add_command(_command)
