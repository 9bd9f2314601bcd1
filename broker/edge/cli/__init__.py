"""The command line: a client of the gRPC API that decides nothing."""

from typing import NoReturn

import click

from broker import __version__
from broker.edge.cli.approvals import approval
from broker.edge.cli.asking import after_revocation, query, trail
from broker.edge.cli.auditing import audit
from broker.edge.cli.backing_up import Archive, Backup, Restore, archive_command, backup_command, restore_command
from broker.edge.cli.blocks import reinstate, revocations
from broker.edge.cli.checking import Strangers, checking_commands
from broker.edge.cli.completing import completion
from broker.edge.cli.drilling import drill
from broker.edge.cli.explaining import explain
from broker.edge.cli.explaining_more import denial, path
from broker.edge.cli.explaining_more import token as token_fate
from broker.edge.cli.listening import verifiers
from broker.edge.cli.logging_in import login, logout
from broker.edge.cli.policies import Validate, policy_group
from broker.edge.cli.program import NAME, Program
from broker.edge.cli.proof_checking import verify_proof_command
from broker.edge.cli.proving import checkpoint, prove
from broker.edge.cli.reporting import report, report_verify_command
from broker.edge.cli.revoking import revoke
from broker.edge.cli.runs import run
from broker.edge.cli.serving import Dev, Serve, dev_command, serve_command
from broker.edge.cli.state import status, trust
from broker.edge.cli.tokens import token
from broker.edge.cli.witnessing import Witness, witness_command

__all__ = ["cli_with", "main"]

for one in (checkpoint, prove, query, trail, after_revocation):
    audit.add_command(one)
for one in (denial, token_fate, path):
    explain.add_command(one)


_HELP = "Hand out credentials for restricted AI models, and revoke them everywhere."


def cli_with(
    *,
    dev: Dev,
    serve: Serve,
    witness: Witness,
    backup: Backup,
    restore: Restore,
    archive: Archive,
    validate: Validate,
    strangers: Strangers,
) -> click.Group:
    """Return the whole program. What needs the server's parts is given by the composition root."""
    program = _program(validate)
    program.add_command(dev_command(dev))
    program.add_command(serve_command(serve))
    program.add_command(witness_command(witness))
    program.add_command(backup_command(backup))
    program.add_command(restore_command(restore))
    program.add_command(archive_command(archive))
    for command in (*checking_commands(strangers), verify_proof_command(strangers)):
        audit.add_command(command)
    report.add_command(report_verify_command(strangers))
    return program


def main() -> NoReturn:
    """Run the commands that are only clients, without those that need the server's parts."""
    _program(None).main()


def _program(validate: Validate | None) -> Program:
    program = Program(
        NAME,
        help=_HELP,
        epilog="Exit codes: 0 done or accepted, 1 failed, 2 usage, 3 denied, 130 interrupted.",
        examples=[
            "broker dev",
            "broker token mint --realm evaluation --partner acme --user alice --model mythos",
            'broker revoke --partner acme --reason "contract ended" --wait',
        ],
    )
    click.version_option(__version__, prog_name=NAME)(program)
    policy = policy_group(validate)
    for command in (
        *(token, run, policy, explain, revoke, reinstate, revocations),
        *(approval, login, logout),
        *(verifiers, drill, audit, report, status, trust, completion),
    ):
        program.add_command(command)
    return program
