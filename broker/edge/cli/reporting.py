"""`broker report access` and `broker report verify`: who can reach what, to be handed on."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
from rich.console import Group as Lines
from rich.console import RenderableType
from rich.text import Text

from broker.edge.cli.checking import Strangers
from broker.edge.cli.command import FILE, Command, Group, Name, Session, answers, calls_broker
from broker.edge.cli.context import Context, context_path, read_context
from broker.edge.cli.exporting import must_be_free, write_new
from broker.edge.cli.output import Output, plain, table
from broker.edge.cli.problems import Misused, Unusable
from broker.edge.cli.report_page import page, read_page
from broker.edge.cli.report_rows import last_use, names, review_words, rows_csv, subject, watched
from broker.v1 import reports_pb2 as pb

_MAX_FILE_BYTES = 96 << 20
_SAVED = "access"
_FOLDER = click.Path(file_okay=False, path_type=Path)
_AGAIN = "nothing is lost: ask the broker again"


@click.group(cls=Group, examples=["broker report access --model mythos -o html > access.html"])
def report() -> None:
    """Make signed reports for a review."""


@report.command(
    "access",
    cls=Command,
    examples=[
        "broker report access --model mythos",
        "broker report access --partner acme -o html > access.html",
        "broker report access --realm production --save ./review-2026-11",
    ],
    keys="report: {report, made_at, made_for, scope, ledger: {origin, size, root, checkpoint}, policy, realms, "
    "summary, "
    "paths: [partner, realm, model, user, workload, grant, environments, harnesses, closed_by, minted, used, "
    "seen_from], grants: [grant, realm, partners, models, max_ttl_s, demands, approvers, granted, changed, approved, "
    "review_by, review (none, later, soon, overdue, overdue-closed), ...], not_granted_now, environments, harnesses, "
    "verifiers, changers}, note (what signs it).",
)
@click.option("--partner", type=Name(), help="Partner.")
@click.option("--realm", type=Name(), help="Realm.")
@click.option("--model", type=Name(), help="Model; a name also reports on its instances.")
@click.option(
    "--soon",
    type=click.IntRange(0, 3650),
    default=30,
    show_default=True,
    metavar="DAYS",
    help="A review that is due within so many days is soon.",
)
@click.option("--save", type=_FOLDER, metavar="DIR", help="Write access.html, .csv and .json to a folder.")
@click.option("--force", is_flag=True, help="Overwrite what is there.")
@calls_broker(forms=["csv", "html"])
def access(session: Session, *, soon: int, save: Path | None, force: bool, **scope: str | None) -> None:
    """Report who can reach what: by which path and whose leave, last used or never, and what is due for a review.

    At least one of --partner, --realm and --model is needed. The report is signed with the ledger's key: `broker
    report verify FILE` checks it without a broker.
    """
    named = {name: value for name, value in scope.items() if value is not None}
    if not named:
        raise Misused("nothing says on what to report", hint="give --partner, --realm or --model")
    if save is not None:
        _must_take(save, force=force)
    with session.settings.connect(Context.for_admin) as broker:
        answer: pb.AccessResponse = broker.call(broker.reports.Access, pb.AccessRequest(soon_days=soon, **named))
    told, note = json.loads(answer.document), answer.note.decode()
    forms: dict[str, Callable[[], str]] = {
        "html": lambda: page(told, note),
        "csv": lambda: rows_csv(told),
        "json": lambda: json.dumps({"report": told, "note": note}, indent=2) + "\n",
    }
    if save is not None:
        for form, made in forms.items():
            write_new(made().encode(), save / f"{_SAVED}.{form}", force=force, hint=_AGAIN)
        session.output.note(f"wrote {', '.join(str(save / f'{_SAVED}.{form}') for form in forms)}")
    if session.output.form in forms:
        click.echo(forms[session.output.form](), nl=False)
    elif save is None:
        session.output.show({}, _text(told))


def report_verify_command(strangers: Strangers) -> click.Command:
    """Return `broker report verify`."""

    @click.command(
        "verify",
        cls=Command,
        examples=[
            "broker report verify access.html --trust trust.json",
            "broker report verify access.csv --trust trust.json",
        ],
        keys="good (true; anything else is an error, exit code 1), file, made_at, made_for, scope, size.",
    )
    @click.argument("file", type=FILE)
    @click.option(
        "--trust", "trust_file", type=FILE, envvar="BROKER_TRUST", help="Trust file. Default: the one of the context."
    )
    @click.option("--context", "context_file", type=FILE, envvar="BROKER_CONTEXT", help="Context file.")
    @answers
    def verify(output: Output, *, file: Path, trust_file: Path | None, context_file: Path | None) -> None:
        """Check a report that was handed on: its signature, and that the file shows what was signed and nothing else.

        Asks nobody. A .csv is checked against the .json beside it.
        """
        pinned = trust_file or read_context(context_file or context_path(os.environ)).trust
        if pinned is None:
            raise Misused("no trust file", hint="name one with --trust, from: broker trust > trust.json")
        shown = _read(file)
        told, note, again = _opened(file, shown)
        strangers().check_report_of(told, note, _read(pinned))
        if again != shown:
            raise Unusable(
                f"{file}: the signed report is good, but the file does not show just that: it was changed, or made by "
                "another version",
                reason="NOT_PROVEN",
                hint="do not go by it; make the file again from the .json, or ask the broker anew",
            )
        scope = {name: value for name, value in told["scope"].items() if value}
        result = {
            "good": True,
            "file": str(file),
            "made_at": told["made_at"],
            "made_for": told["made_for"],
            "scope": scope,
            "size": told["ledger"]["size"],
        }
        about = ", ".join(f"{name} {value}" for name, value in scope.items())
        output.show(result, plain(f"good: access report on {about}, made {told['made_at']} for {told['made_for']}"))

    return verify


def _must_take(folder: Path, *, force: bool) -> None:
    folder.mkdir(exist_ok=True)
    for form in ("html", "csv", "json"):
        must_be_free(folder / f"{_SAVED}.{form}", force=force)


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise Unusable(f"{path} has more than {_MAX_FILE_BYTES} bytes: it is no report", reason="FILE")
        return path.read_bytes().decode()
    except UnicodeDecodeError as bad:
        raise Unusable(f"{path} is no text", reason="FILE") from bad


def _opened(file: Path, shown: str) -> tuple[dict[str, Any], str, str]:
    """Return what was signed, its note, and what the file must be."""
    try:
        if file.suffix == ".csv":
            told, note = _of_json(_read(file.with_suffix(".json")))
            return told, note, rows_csv(told)
        if shown.lstrip().startswith("{"):
            told, note = _of_json(shown)
            # However it is laid out: what it says is what is checked.
            return told, note, shown
        told, note = read_page(shown)
        return told, note, page(told, note)
    except (ValueError, KeyError, TypeError, AttributeError) as bad:
        raise Unusable(
            f"{file} is no access report", reason="NOT_PROVEN", hint="it is made by: broker report access --save DIR"
        ) from bad


def _of_json(text: str) -> tuple[dict[str, Any], str]:
    saved = json.loads(text, object_pairs_hook=_each_once)
    told, note = saved.pop("report"), saved.pop("note")
    if saved or not isinstance(told, dict) or not isinstance(note, str):
        raise ValueError("it is no report")
    return told, note


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object: of two members of one name, a reader would see one and the check the other."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name is there twice")
    return found


def _text(told: Mapping[str, Any]) -> Lines:
    seen = watched(told)
    paths = [
        (
            one["partner"],
            subject(one),
            one["model"],
            one["realm"],
            one["grant"],
            names(one["environments"]),
            last_use(one, seen),
            f"closed by {one['closed_by']}" if one["closed_by"] else "open",
        )
        for one in told["paths"]
    ]
    grants = [
        (
            one["grant"],
            " ".join(part for part in (review_words(one["review"]), one["review_by"]) if part),
            _version(one["granted"]),
            _version(one["changed"]),
            names(one["approved"][0]["by"] or []) if one["approved"] else "-",
        )
        for one in told["grants"]
    ]
    summary = told["summary"]
    parts: list[RenderableType] = [
        Text(
            plain(
                f"{summary['paths']} paths, {summary['used']} used, {summary['never_minted']} never had a token, "
                f"{summary['closed_now']} closed now; {summary['reviews_overdue']} reviews overdue, "
                f"{summary['reviews_soon']} due within {summary['review_within_days']} days"
            )
        ),
        Text(),
        table(["PARTNER", "WHO", "MODEL", "REALM", "GRANT", "FROM", "LAST USE", "NOW"], paths),
        Text(),
        table(["GRANT", "REVIEW", "GRANTED BY", "CHANGED BY", "LAST APPROVED BY"], grants),
    ]
    if told["not_granted_now"]:
        rows = [
            (one["partner"], subject(one), one["model"], one["realm"], one["grant"], one["environment"])
            for one in told["not_granted_now"]
        ]
        parts += [Text(), table(["HAD, NOT GRANTED NOW", "WHO", "MODEL", "REALM", "GRANT", "FROM"], rows)]
    verifiers = [
        (one["verifier"], one["realm"], one["state"], "kept" if one["keeps_receipts"] else "none")
        for one in told["verifiers"]
    ]
    return Lines(*parts, Text(), table(["VERIFIER", "REALM", "STATE", "RECEIPTS"], verifiers))


def _version(one: Mapping[str, Any] | None) -> str:
    return "-" if one is None else f"{one['by']} (version {one['version']})"
