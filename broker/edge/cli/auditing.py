"""`broker audit`: check offline, without a broker, what it once signed."""

import json
import os
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import click
from rich.console import Group as Lines
from rich.table import Table
from rich.text import Text

from broker.edge.cli.command import FILE, Command, Group, answers
from broker.edge.cli.context import context_path, read_context
from broker.edge.cli.durations import shown
from broker.edge.cli.outcomes import HOW, hits
from broker.edge.cli.output import Output, plain, table, yes
from broker.edge.cli.problems import Unusable
from broker.errors import Malformed, Untrusted
from broker.token.completion import MAX_DOCUMENT_BYTES, Statement, check_completions, statement_payload
from broker.token.keys import RealmTrust, parse_trust

_MAX_TRUST_BYTES = 1 << 20


@click.group(
    cls=Group,
    examples=["broker audit verify-completion revocation-17.jws --trust trust.json"],
)
def audit() -> None:
    """Check what a broker signed. Asks nobody: a trust file is all that is believed."""


@audit.command(
    "verify-completion",
    cls=Command,
    examples=[
        "broker audit verify-completion revocation-17.jws --trust trust.json",
        "broker audit verify-completion revocation-17.jws --trust trust.json -o json | jq .statements[0].slowest",
    ],
    keys="good (true; anything else is an error, exit code 1), file, took_ms, statements: the claims of each realm's "
    "statement as they were signed: iss, iat, realm, realms, incarnation, index, entries, selector, reason, by, "
    "blocks, committed_at, in_force_at, listening, acknowledged, lapsed, left, verifiers: [verifier, realm, state, "
    "after_ms, uses_cut], slowest, waited_ms, tokens, uses_cut, certificate.",
)
@click.argument("file", type=FILE)
@click.option(
    "--trust", "trust_file", type=FILE, envvar="BROKER_TRUST", help="Trust file. Default: the one of the context."
)
@click.option("--context", "context_file", type=FILE, envvar="BROKER_CONTEXT", help="Context file.")
@answers
def verify_completion(output: Output, *, file: Path, trust_file: Path | None, context_file: Path | None) -> None:
    """Verify the file of a completion: that a revocation is in force everywhere, and since when.

    Every byte of it counts. Exit code 0 only if each realm that was concerned has its statement, signed by a
    key that the realm's root certified for completions.
    """
    pinned = trust_file or read_context(context_file or context_path(os.environ)).trust
    trust = _trust(pinned)
    document = _read(file, MAX_DOCUMENT_BYTES)
    try:
        statements = check_completions(document, trust)
    except (Malformed, Untrusted) as bad:
        raise Unusable(
            f"{file} proves nothing: {bad.message}",
            reason=bad.reason,
            hint=f"fetch it again with: broker revoke show INDEX --export FILE; trusted is what {pinned} says",
        ) from bad
    result = {
        "good": True,
        "file": str(file),
        "took_ms": max(statement.took_ms for statement in statements),
        "statements": [_claims(statement) for statement in statements],
    }
    output.show(result, _report(statements))


def _trust(path: Path) -> dict[str, RealmTrust]:
    try:
        return parse_trust(_read(path, _MAX_TRUST_BYTES))
    except Malformed as bad:
        raise Unusable(
            f"{path} is no trust file: {bad.message}", reason="FILE", hint="get one with: broker trust > trust.json"
        ) from bad


def _read(path: Path, most: int) -> str:
    """Return a file's bytes as text, each for itself: what is not ASCII stays something that is refused."""
    try:
        with path.open("rb") as file:
            return file.read(most + 1).decode("utf-8", "replace")
    except OSError as bad:
        raise Unusable(f"{path}: {bad.strerror or bad}", reason="FILE", hint="name a file that can be read") from bad


def _claims(statement: Statement) -> dict[str, Any]:
    claims: dict[str, Any] = json.loads(statement_payload(statement))
    return claims


def _report(statements: Sequence[Statement]) -> Lines:
    realms = ", ".join(statement.realm for statement in statements)
    parts: list[Text | Table] = [Text(plain(f"good: signed for {realms}, by keys that their roots certified"))]
    for statement in statements:
        parts += [Text(), Text(plain(f"realm {statement.realm}")), _facts(statement)]
        if statement.verifiers:
            parts += [Text(), _stops(statement)]
    return Lines(*parts)


def _facts(statement: Statement) -> Table:
    selector = " ".join(f"{name}={value}" for name, value in statement.selector)
    what = selector if statement.entries == 1 else f"{statement.entries} single tokens of {selector}"
    slowest = statement.slowest
    last = "nobody listens" if slowest is None else f"{slowest.verifier}, {_stopped(slowest.state, slowest.after_ms)}"
    waited = f", of which {_ms(statement.waited_ms)} for verifiers unknown to it" if statement.waited_ms else ""
    counts = (
        f"{statement.acknowledged} acknowledged, {statement.lapsed} by the end of their lease, {statement.left} left"
    )
    rows = [
        ("revoked", what),
        ("because", statement.reason),
        ("by", statement.by),
        ("at index", f"{statement.index} of ledger {statement.incarnation}"),
        ("committed", _instant(statement.committed_at)),
        ("in force", f"{_instant(statement.in_force_at)}, {_ms(statement.took_ms)} later{waited}"),
        ("blocks new mints", yes(statement.blocks)),
        ("it hit", hits(statement.tokens, statement.uses_cut)),
        ("verifiers", f"{statement.listening}: {counts}" if statement.listening else "none"),
        ("slowest", last),
    ]
    made = table(["", ""], rows)
    made.show_header = False
    return made


def _stops(statement: Statement) -> Table:
    return table(
        ["VERIFIER", "HOW", "AFTER", "USES CUT"],
        [(stop.verifier, HOW[stop.state], f"{stop.after_ms} ms", stop.uses_cut) for stop in statement.verifiers],
    )


def _stopped(state: str, after_ms: int) -> str:
    return f"{HOW[state]} after {_ms(after_ms)}"


def _ms(span: int) -> str:
    return shown(span / 1000)


def _instant(at: datetime) -> str:
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
