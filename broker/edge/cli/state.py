"""`broker status` and `trust`: how the broker is, what to pin."""

import json

import click
from rich.console import Group, RenderableType
from rich.text import Text

from broker.edge.cli.command import Command, Session, calls_broker, named
from broker.edge.cli.context import Context
from broker.edge.cli.durations import shown
from broker.edge.cli.output import plain, table, yes
from broker.edge.cli.problems import Unusable
from broker.v1 import status_pb2


@click.command(
    cls=Command,
    examples=["broker status", "broker status -o json | jq .minting"],
    keys="version, incarnation, head, policy_version, minting, problems: [text], "
    "realms: [realm, key, key_signs_for_s, verifiers, revocations].",
)
@calls_broker()
def status(session: Session) -> None:
    """Say how the broker is."""
    with session.settings.connect(Context.for_admin) as broker:
        answer: status_pb2.GetStatusResponse = broker.call(broker.status.GetStatus, status_pb2.GetStatusRequest())
    result = {
        "version": answer.version,
        "incarnation": answer.incarnation,
        "head": answer.head,
        "policy_version": answer.policy_version,
        "minting": answer.minting,
        "problems": list(answer.problems),
        "realms": [
            {
                "realm": realm.realm,
                "key": realm.key,
                "key_signs_for_s": realm.key_signs_for.seconds,
                "verifiers": realm.verifiers,
                "revocations": realm.revocations,
            }
            for realm in answer.realms
        ],
    }
    session.output.show(result, _status_text(answer))


@click.command(
    cls=Command,
    examples=["broker trust > trust.json", "broker trust --realm evaluation -o json"],
    keys="realms: {NAME: {issuer, audience, roots: [JWK]}}, which is the trust file itself.",
)
@named("--realm", "Only this realm's.")
@calls_broker()
def trust(session: Session, *, realm: str | None) -> None:
    """Print the trust file that verifiers pin.

    Fetch it once, over a connection that you trust: whoever can change it decides which tokens are believed.
    """
    request = status_pb2.GetTrustRequest(realm=realm or "")
    with session.settings.connect(Context.for_admin) as broker:
        document: str = broker.call(broker.status.GetTrust, request).document
    try:
        trusted = json.loads(document)
    except ValueError as bad:
        raise Unusable("the broker's trust document is not JSON", reason="INTERNAL", hint="report it") from bad
    session.output.show(trusted, document.removesuffix("\n"))


def _status_text(answer: status_pb2.GetStatusResponse) -> RenderableType:
    ledger = f"ledger {answer.incarnation} with {answer.head} entries"
    lines = [
        f"broker {answer.version}, {ledger}, policy version {answer.policy_version}",
        f"minting: {yes(answer.minting)}",
        *(f"problem: {problem}" for problem in answer.problems),
    ]
    rows = [
        (
            realm.realm,
            realm.key or "none",
            shown(realm.key_signs_for.seconds) if realm.key else "",
            realm.verifiers,
            realm.revocations,
        )
        for realm in answer.realms
    ]
    realms = table(["REALM", "SIGNING KEY", "SIGNS FOR", "VERIFIERS", "REVOCATIONS"], rows)
    return Group(*(Text(plain(line)) for line in lines), *([realms] if rows else []))
