"""`broker token verify`: a real verifier, fresh, judges one token."""

import logging
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime

import click
from rich.console import Group
from rich.text import Text

from broker.edge.cli.command import Command, Name, Session, calls_broker, named
from broker.edge.cli.durations import shown
from broker.edge.cli.output import plain, table
from broker.edge.cli.stdin import read_token
from broker.errors import (
    Expired,
    Malformed,
    NotAllowed,
    NotHolder,
    NotYetValid,
    ReceiptsUnkept,
    Rejected,
    Revoked,
    Stale,
    Untrusted,
    UsedUp,
    WrongRealm,
)
from broker.sdk.uses import Proof
from broker.sdk.verifier import Verifier, VerifierState

# What each refusal is called in a sentence; a token passes all of them or none of it counts.
RULES: Mapping[type[Rejected], str] = {
    Malformed: "form",
    Untrusted: "signing key",
    WrongRealm: "realm",
    Expired: "expiry",
    NotYetValid: "start of life",
    NotAllowed: "model",
    NotHolder: "holder",
    Revoked: "revocation",
    UsedUp: "uses",
    Stale: "freshness",
    ReceiptsUnkept: "receipts",
}


@click.command(
    cls=Command,
    examples=[
        "broker token verify --realm evaluation --model mythos < token",
        'printf %s "$TOKEN" | broker token verify --realm evaluation --model mythos@eu-1 -o json',
    ],
    keys="accepted (true; a refusal is an error, exit code 3), rules: [passed], id, realm, model, partner, user, "
    "workload, run, test (null where absent), environment, key, index, expires_at, head, fresh_for_ms.",
)
@named("--realm", "Realm to verify in.", required=True)
@click.option("--model", type=Name(), required=True, help="Model that is asked for.")
@calls_broker()
def verify(session: Session, *, realm: str, model: str) -> None:
    """Verify the token on stdin, and say which rule decided.

    Does what a service in front of a model does: listens to the feed until fresh, then judges offline. Not
    fresh within the deadline is denied.
    """
    token = read_token()
    settings = session.settings
    # The SDK logs what it says in its errors, too; stderr is for one line.
    logging.getLogger("broker.sdk").addHandler(logging.NullHandler())
    identity = settings.identity(lambda context: context.for_realm(realm))
    try:
        # Where the realm demands receipts, this verdict leaves one, too.
        with (
            tempfile.TemporaryDirectory(prefix="broker-verify-") as folder,
            Verifier.connect(
                settings.address(), realm=realm, trust=settings.trust_file(), identity=identity, state_dir=folder
            ) as verifier,
        ):
            verifier.wait_fresh(settings.deadline_s)
            proof = verifier.verify(token, model)
            state = verifier.state()
    except Rejected as rejected:
        rejected.message = f"{rejected.message} (rule: {rule_of(rejected)})"
        raise
    session.output.show(_accepted(proof, state), _acceptance(proof, state))


def rule_of(rejected: Rejected) -> str:
    """Return the rule that refused."""
    return next((RULES[kind] for kind in type(rejected).__mro__ if kind in RULES), "closed by default")


def _accepted(proof: Proof, state: VerifierState) -> dict[str, object]:
    claims = proof.claims
    return {
        "accepted": True,
        "rules": list(RULES.values()),
        "id": claims.jti,
        "realm": claims.realm,
        "model": proof.model,
        "partner": claims.partner,
        "user": claims.user,
        "workload": claims.workload,
        "run": claims.run,
        "test": claims.test,
        "environment": claims.env,
        "key": proof.kid,
        "index": claims.idx,
        "expires_at": _instant(claims.exp),
        "head": state.head,
        "fresh_for_ms": round(state.fresh_for_s * 1000),
    }


def _acceptance(proof: Proof, state: VerifierState) -> Group:
    claims = proof.claims
    rows = {
        "form": f"token {claims.jti}, all claims as they must be",
        "signing key": f"{proof.kid}, certified by a pinned root",
        "realm": claims.realm,
        "expiry": f"ends {_instant(claims.exp)}",
        "start of life": f"begun {_instant(claims.nbf)}",
        "model": f"{proof.model} is covered by {' '.join(claims.models)}",
        "holder": "bound to no key: whoever has it may use it",
        "revocation": f"none of {state.revocations} up to index {state.head} kills index {claims.idx}",
        "uses": "without end" if claims.uses is None else f"{claims.uses} at a verifier, of which this is one",
        "freshness": f"heard from {state.endpoint}, good for {shown(state.fresh_for_s)}",
        "receipts": "kept, where the realm demands them",
    }
    verdict = f"accepted: {claims.sub} may use {proof.model} in {claims.realm}; every rule passed"
    return Group(Text(plain(verdict)), table(["RULE", "BECAUSE"], list(rows.items())))


def _instant(unix_s: int) -> str:
    return f"{datetime.fromtimestamp(unix_s, UTC):%Y-%m-%dT%H:%M:%SZ}"
