"""`broker policy`."""

from collections.abc import Callable
from pathlib import Path

import click

from broker.edge.cli.command import (
    Command,
    Group,
    Name,
    Session,
    answers,
    calls_broker,
    reason_option,
    request_id_option,
)
from broker.edge.cli.context import Context
from broker.edge.cli.output import Output, instant, plain, table
from broker.edge.cli.planning import plan, show_plan
from broker.edge.cli.policy_document import DOCUMENT, read_document
from broker.edge.cli.problems import Misused, Unusable
from broker.errors import ConfigInvalid, Invalid
from broker.v1 import policy_pb2

VERSION_KEYS = "version, index, by, applied_at, reason"
Validate = Callable[[str, str], list[str]]
"""Takes a policy document and the name of its source; returns what is wrong with it."""

_VERSION = click.IntRange(min=0, max=2**63 - 1)
_expected_version_option = click.option(
    "--expected-version", type=_VERSION, help="Refuse unless this version is in force."
)


def policy_group(validate: Validate | None) -> click.Group:
    """Return `broker policy`; without `validate` it lacks that command, the only one that needs no broker."""
    group = Group(
        "policy",
        help="Validate, plan, apply, show and restore the policy.",
        examples=['broker policy validate policy.yaml && broker policy apply policy.yaml --reason "globex joins"'],
    )
    offline = [_validate_command(validate)] if validate is not None else []
    for command in (*offline, plan, apply, show, versions, restore):
        group.add_command(command)
    return group


def _validate_command(validate: Validate) -> click.Command:
    @click.command(
        "validate",
        cls=Command,
        examples=["broker policy validate policy.yaml", "broker policy validate - -o json < policy.yaml"],
        keys="valid, problems: [text].",
    )
    @click.argument("file", type=DOCUMENT)
    @answers
    def command(output: Output, *, file: Path) -> None:
        """Check a policy file, offline. Names each problem with its file, line, field and fix."""
        problems = validate(read_document(file), str(file))
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
    examples=[
        'broker policy apply policy.yaml --reason "globex joins"',
        'broker policy apply policy.yaml --reason "globex joins" --expected-version 7 -o json',
        "broker policy apply policy.yaml --dry-run",
    ],
    keys="version, index, request_id; with --dry-run those of `broker policy plan`.",
)
@click.argument("file", type=DOCUMENT)
@click.option("--plan", "plan_id", type=Name(), metavar="ID", help="Apply exactly what this plan showed, or nothing.")
@_expected_version_option
@click.option("--dry-run", is_flag=True, help="Say what would change, as `broker policy plan` does; apply nothing.")
@click.option("--reason", type=Name(), metavar="TEXT", help="Why, in one line; it is kept, and goes to the ledger.")
@request_id_option
@calls_broker()
def apply(
    session: Session,
    *,
    file: Path,
    plan_id: str | None,
    expected_version: int | None,
    dry_run: bool,
    reason: str | None,
    request_id: str,
) -> None:
    """Replace the policy in force by a file. Every version is kept, with author and reason."""
    if dry_run:
        show_plan(session, file)
        return
    if reason is None:
        raise Misused("a policy is applied for a reason, which is kept with it", hint="say why: --reason TEXT")
    request = policy_pb2.ApplyPolicyRequest(
        request_id=request_id,
        document=read_document(file),
        expected_version=expected_version,
        reason=reason,
        plan=plan_id,
    )
    with session.settings.connect(Context.for_admin) as broker:
        try:
            answer: policy_pb2.ApplyPolicyResponse = broker.call(broker.policy.ApplyPolicy, request)
        except Invalid as bad:
            if bad.field in {"reason", "plan", "expected_version"}:
                raise
            # The command line was right, the file was not.
            raise ConfigInvalid(str(file), (bad.problem,)) from bad
    session.output.show(
        {"version": answer.version, "index": answer.index, "request_id": request_id},
        f"policy version {answer.version} is in force, at index {answer.index}",
    )


@click.command(
    "show",
    cls=Command,
    examples=["broker policy show > policy.yaml", "broker policy show --version 7 -o json | jq -r .reason"],
    keys="version, by, applied_at (null before the first), document, reason, applied_version.",
)
@click.option("--version", type=_VERSION, help="The policy that was in force then. Default: now.")
@calls_broker()
def show(session: Session, *, version: int | None) -> None:
    """Print the policy in force, or an earlier one, as it was applied."""
    request = policy_pb2.ShowPolicyRequest(version=version)
    with session.settings.connect(Context.for_admin) as broker:
        answer: policy_pb2.ShowPolicyResponse = broker.call(broker.policy.ShowPolicy, request)
    applied_at = instant(answer.applied_at) if answer.HasField("applied_at") else None
    result = {
        "version": answer.version,
        "by": answer.by,
        "applied_at": applied_at,
        "document": answer.document,
        "reason": answer.reason,
        "applied_version": answer.applied_version,
    }
    if not answer.document:
        session.output.note("no policy was applied: nothing is allowed; see: broker policy apply --help")
    session.output.show(result, answer.document.removesuffix("\n"))


@click.command(
    "versions",
    cls=Command,
    examples=["broker policy versions", "broker policy versions --limit 10 --below 7 -o json"],
    keys=f"versions: [{VERSION_KEYS}], the newest first; more (there are older ones).",
)
@click.option("--limit", type=click.IntRange(1, 1000), default=100, show_default=True, help="At most so many.")
@click.option("--below", type=_VERSION, help="Only versions below this one.")
@calls_broker()
def versions(session: Session, *, limit: int, below: int | None) -> None:
    """List the policies that were ever applied, the newest first, with author and reason."""
    request = policy_pb2.ListPolicyVersionsRequest(limit=limit, below=below)
    with session.settings.connect(Context.for_admin) as broker:
        answer: policy_pb2.ListPolicyVersionsResponse = broker.call(broker.policy.ListPolicyVersions, request)
    rows = [
        {
            "version": one.version,
            "index": one.index,
            "by": one.by,
            "applied_at": instant(one.applied_at),
            "reason": one.reason,
        }
        for one in answer.versions
    ]
    if answer.more:
        session.output.note(f"there are older ones: broker policy versions --below {answer.versions[-1].version}")
    session.output.show(
        {"versions": rows, "more": answer.more},
        table(["VERSION", "INDEX", "BY", "APPLIED", "REASON"], [tuple(row.values()) for row in rows]),
    )


@click.command(
    "restore",
    cls=Command,
    examples=[
        'broker policy restore 7 --reason "version 8 locked globex out"',
        'broker policy restore 7 --reason "a slip" --expected-version 8 -o json',
    ],
    keys="version, index, restored, request_id.",
)
@click.argument("version", type=_VERSION)
@_expected_version_option
@reason_option
@request_id_option
@calls_broker()
def restore(session: Session, *, version: int, expected_version: int | None, reason: str, request_id: str) -> None:
    """Apply the policy of an earlier version again, as a new version. No block is lifted, no token revived."""
    request = policy_pb2.RestorePolicyRequest(
        request_id=request_id, version=version, expected_version=expected_version, reason=reason
    )
    with session.settings.connect(Context.for_admin) as broker:
        answer: policy_pb2.RestorePolicyResponse = broker.call(broker.policy.RestorePolicy, request)
    session.output.show(
        {"version": answer.version, "index": answer.index, "restored": version, "request_id": request_id},
        f"policy version {answer.version} is in force, at index {answer.index}: that of version {version} again",
    )
