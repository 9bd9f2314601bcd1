"""`broker policy`."""

from collections.abc import Callable
from pathlib import Path

import click

from broker.edge.cli.command import Command, Group, Session, answers, calls_broker, request_id_option
from broker.edge.cli.context import Context
from broker.edge.cli.output import Output, instant, plain
from broker.edge.cli.problems import Unusable
from broker.errors import ConfigInvalid, Invalid
from broker.v1 import policy_pb2

MAX_DOCUMENT_BYTES = 1 << 20
Validate = Callable[[str, str], list[str]]
"""Takes a policy document and the name of its source; returns what is wrong with it."""

_DOCUMENT = click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path)


def policy_group(validate: Validate | None) -> click.Group:
    """Return `broker policy`; without `validate` it lacks that command, the only one that needs no broker."""
    group = Group(
        "policy",
        help="Validate, apply and show the policy.",
        examples=["broker policy validate policy.yaml && broker policy apply policy.yaml"],
    )
    for command in (*([_validate_command(validate)] if validate is not None else []), apply, show):
        group.add_command(command)
    return group


def _validate_command(validate: Validate) -> click.Command:
    @click.command(
        "validate",
        cls=Command,
        examples=["broker policy validate policy.yaml", "broker policy validate - -o json < policy.yaml"],
        keys="valid, problems: [text].",
    )
    @click.argument("file", type=_DOCUMENT)
    @answers
    def command(output: Output, *, file: Path) -> None:
        """Check a policy file, offline. Names each problem with its file, line, field and fix."""
        problems = validate(_document(file), str(file))
        for problem in problems:
            output.note(problem)
        if output.as_json or not problems:
            output.show({"valid": not problems, "problems": problems}, plain(f"{file} is valid"))
        if problems:
            count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
            raise Unusable(f"{file} has {count}", reason="INVALID", hint="mend it and validate again")

    return command


@click.command(
    "apply",
    cls=Command,
    examples=["broker policy apply policy.yaml", "broker policy apply policy.yaml --expected-version 7 -o json"],
    keys="version, index, request_id.",
)
@click.argument("file", type=_DOCUMENT)
@click.option(
    "--expected-version", type=click.IntRange(min=0, max=2**63), help="Refuse unless this version is in force."
)
@request_id_option
@calls_broker()
def apply(session: Session, *, file: Path, expected_version: int | None, request_id: str) -> None:
    """Replace the policy in force by a file."""
    request = policy_pb2.ApplyPolicyRequest(
        request_id=request_id, document=_document(file), expected_version=expected_version
    )
    with session.settings.connect(Context.for_admin) as broker:
        try:
            answer: policy_pb2.ApplyPolicyResponse = broker.call(broker.policy.ApplyPolicy, request)
        except Invalid as bad:
            # The command line was right, the file was not.
            raise ConfigInvalid(str(file), (bad.problem,)) from bad
    session.output.show(
        {"version": answer.version, "index": answer.index, "request_id": request_id},
        f"policy version {answer.version} is in force, at index {answer.index}",
    )


@click.command(
    "show",
    cls=Command,
    examples=["broker policy show > policy.yaml", "broker policy show -o json | jq .version"],
    keys="version, by, applied_at (null before the first), document.",
)
@calls_broker()
def show(session: Session) -> None:
    """Print the policy in force, as it was applied."""
    with session.settings.connect(Context.for_admin) as broker:
        answer: policy_pb2.ShowPolicyResponse = broker.call(broker.policy.ShowPolicy, policy_pb2.ShowPolicyRequest())
    applied_at = instant(answer.applied_at) if answer.HasField("applied_at") else None
    result = {"version": answer.version, "by": answer.by, "applied_at": applied_at, "document": answer.document}
    if not answer.document:
        session.output.note("no policy was applied: nothing is allowed; see: broker policy apply --help")
    session.output.show(result, answer.document.removesuffix("\n"))


def _document(file: Path) -> str:
    """Read a policy file. Raises Unusable."""
    try:
        with click.open_file(str(file), "rb") as opened:
            data: bytes = opened.read(MAX_DOCUMENT_BYTES + 1)
        if len(data) > MAX_DOCUMENT_BYTES:
            raise Unusable(f"{file} is larger than 1 MiB", reason="FILE", hint="is it a policy file?")
        return data.decode("utf-8")
    except UnicodeDecodeError as bad:
        raise Unusable(f"{file} is not UTF-8", reason="FILE", hint="is it a policy file?") from bad
