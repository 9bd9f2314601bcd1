"""What approval is asked for in tests: a policy with a board, a request, and people with keys who sign."""

import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from broker.domain.policy import (
    ApprovalRule,
    Environment,
    Grant,
    Partner,
    Policy,
    Principal,
    Realm,
    Role,
)
from broker.domain.trust import Provider, ProviderKind, TrustRule
from broker.token.approval import ApprovalRequest, ApprovalStatement, Decision, Wanted, statement_signing_input
from broker.token.jws import assemble
from broker.token.keys import public_jwk
from tests.realm_keys import sign

AT = datetime(2026, 11, 23, 12, 0, 0, 250_000, UTC)
RULE = ApprovalRule(needed=2, group="board", window_s=3600, valid_s=7200, login_s=900)
GRANT = Grant(
    "acme-restricted",
    "acme",
    "evaluation",
    frozenset({"mythos"}),
    frozenset({"acme-ci"}),
    frozenset({"bob"}),
    frozenset({"ci"}),
    600,
    3600,
    approvals=RULE,
)
PRINCIPALS = (
    Principal("spiffe://acme.example/ci", Role.HARNESS, "acme", workload="ci"),
    Principal("bob", Role.HARNESS, "acme", user="bob", person="bob", rule=TrustRule("sso", (("sub", "u-1"),))),
    Principal("alice", Role.APPROVER, person="alice", rule=TrustRule("sso", (("sub", "a-1"),))),
    Principal("spiffe://lab.example/carol", Role.APPROVER, person="carol"),
    Principal("spiffe://lab.example/carol-at-home", Role.APPROVER, person="carol"),
    Principal("spiffe://lab.example/dave", Role.APPROVER, person="dave"),
    Principal("spiffe://lab.example/robert", Role.APPROVER, person="bob"),
    Principal("spiffe://lab.example/ops", Role.ADMIN),
    Principal("robot", Role.APPROVER, person="robot", rule=TrustRule("github", (("repository_id", "1"),))),
    Principal("spiffe://lab.example/unnamed", Role.APPROVER),
)


def policy(*, principals: Any = PRINCIPALS, grants: Any = (GRANT,), board: Any = None) -> Policy:
    return Policy(
        realms={"evaluation": Realm("evaluation", "https://broker.example/evaluation", "models.evaluation", 3600)},
        models=frozenset({"mythos"}),
        partners={
            "acme": Partner(
                "acme",
                (),
                frozenset({"bob"}),
                frozenset({"ci"}),
                {"acme-ci": Environment("acme-ci", "spiffe://acme.example/ci")},
            )
        },
        grants=grants,
        principals={one.id: one for one in principals},
        providers={
            "sso": Provider("sso", ProviderKind.OIDC, True, "https://sso.example", "broker"),
            "github": Provider("github", ProviderKind.GITHUB, False, "https://github.example", "broker"),
        },
        groups={"board": frozenset(board or {"alice", "bob", "carol", "dave", "robot"})},
    )


def asked(**changed: Any) -> ApprovalRequest:
    return replace(
        ApprovalRequest(
            id="A" * 22,
            nonce="n" * 22,
            created_at=AT,
            purpose=Wanted.TOKEN,
            realm="evaluation",
            partner="acme",
            user="bob",
            workload="ci",
            environment="acme-ci",
            models=("mythos",),
            lifetime_s=600,
            grant="acme-restricted",
            requester="spiffe://acme.example/ci",
            person=None,
            needed=2,
            group="board",
            window_s=3600,
            valid_s=7200,
            login_s=900,
            binding="none",
            delegation=0,
        ),
        **changed,
    )


def after(seconds: float) -> datetime:
    return AT + timedelta(seconds=seconds)


class Person:
    """Somebody with a key, who signs what they are shown."""

    def __init__(self, principal: str) -> None:
        self.principal = principal
        self.private = ec.generate_private_key(ec.SECP256R1())

    @property
    def jwk(self) -> dict[str, str]:
        return public_jwk(self.private.public_key())

    def says(
        self,
        request: str,
        decision: Decision = Decision.APPROVE,
        *,
        iat: int | None = None,
        approver: str | None = None,
    ) -> str:
        statement = ApprovalStatement(request, decision, approver or self.principal, iat or int(time.time()))
        message = statement_signing_input(self.jwk, statement)
        return assemble(message, sign(self.private, message))
