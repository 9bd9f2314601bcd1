"""`broker token inspect`: what a token says, believed by nobody."""

import binascii
import json
from base64 import urlsafe_b64decode
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, NoReturn

import click
from rich.console import Group
from rich.text import Text

from broker.edge.cli.command import Command, answers
from broker.edge.cli.output import Output, table
from broker.edge.cli.stdin import read_token
from broker.errors import Malformed

_INSTANTS = frozenset({"iat", "nbf", "exp"})
_WARNING = "NOT VERIFIED: anybody can write this; to verify, use: broker token verify"


@click.command(
    cls=Command,
    examples=["broker token inspect < token", "broker token inspect -o json < token | jq -r .claims.jti"],
    keys="verified (always false), header, claims.",
)
@answers
def inspect(output: Output) -> None:
    """Show what a token on stdin says. Trusts nothing, checks nothing, needs no network."""
    header, claims = unverified_parts(read_token())
    shown = Group(
        Text(_WARNING),
        table(["HEADER", ""], _rows(header)),
        table(["CLAIM", ""], _rows(claims)),
    )
    output.show({"verified": False, "header": header, "claims": claims}, shown)


def unverified_parts(token: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return header and claims of anything that has the form of a JWT. Raises Malformed."""
    segments = token.split(".")
    if len(segments) != 3:  # noqa: PLR2004 - RFC 7515 §3.1
        raise Malformed("not a token: it is not three segments joined by dots")
    return _object("header", segments[0]), _object("payload", segments[1])


def _object(what: str, segment: str) -> dict[str, Any]:
    try:
        data = urlsafe_b64decode(segment.encode("ascii") + b"=" * (-len(segment) % 4))
        unverified = json.loads(data.decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, binascii.Error, RecursionError) as bad:
        raise Malformed(f"not a token: its {what} is not JSON in base64url") from bad
    if not isinstance(unverified, dict):
        raise Malformed(f"not a token: its {what} is not an object")
    return unverified


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)


def _rows(names: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(name, _shown(name, value)) for name, value in names.items()]


def _shown(name: str, value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    if name not in _INSTANTS or type(value) is not int:
        return text
    try:
        return f"{text} ({datetime.fromtimestamp(value, UTC):%Y-%m-%dT%H:%M:%SZ})"
    except (ValueError, OverflowError, OSError):
        return text
