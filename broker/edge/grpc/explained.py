"""What is explained, as messages."""

from collections.abc import Iterable
from datetime import UTC, datetime

from broker.domain.decision import Rule
from broker.edge.grpc.translate import timestamp
from broker.service.explain import Explanation
from broker.service.explain_path import Reached
from broker.service.explain_ports import Denial
from broker.service.explain_token import Fate
from broker.v1 import policy_pb2 as pb


def rules_of(rules: Iterable[Rule]) -> list[pb.ExplainedRule]:
    """Return rules."""
    return [pb.ExplainedRule(rule=rule.rule, passes=rule.passes, detail=rule.detail) for rule in rules]


def explanation_message(explanation: Explanation) -> pb.ExplainResponse:
    """Return why a mint would be allowed or denied."""
    return pb.ExplainResponse(
        allowed=explanation.is_allowed,
        grant=explanation.grant,
        rules=rules_of(explanation.rules),
        demands=[
            pb.ExplainedDemand(rule=one.rule, detail=one.detail, enforced=one.is_enforced)
            for one in explanation.demands
        ],
        remedy=explanation.remedy,
    )


def denial_message(denial: Denial) -> pb.ExplainDenialResponse:
    """Return why a request was denied."""
    return pb.ExplainDenialResponse(
        partner=denial.partner,
        principal=denial.principal,
        at=timestamp(denial.at),
        method=denial.method,
        reason=denial.reason,
        message=denial.message,
        rules=rules_of(denial.rules),
        remedy=denial.remedy,
        policy_version=max(denial.version, 0),
    )


def fate_message(fate: Fate) -> pb.ExplainTokenResponse:
    """Return what became of a token."""
    claims = fate.claims
    return pb.ExplainTokenResponse(
        alive=fate.is_alive,
        rule=fate.rule,
        detail=fate.detail,
        token=claims.jti,
        index=claims.idx,
        minted_at=timestamp(fate.minted_at),
        expires_at=timestamp(datetime.fromtimestamp(claims.exp, UTC)),
        realm=claims.realm,
        partner=claims.partner,
        user=claims.user or "",
        workload=claims.workload or "",
        environment=claims.env,
        models=claims.models,
        run=claims.run or "",
        by=fate.by,
        grant=fate.grant,
        policy_version=fate.policy_version,
        revocations=fate.revocations,
        mintable=fate.today.is_allowed,
        rules=rules_of(fate.today.rules),
        remedy=fate.today.remedy,
    )


def reached_message(reached: Reached) -> pb.ExplainPathResponse:
    """Return who reaches a model, and who can change that."""
    return pb.ExplainPathResponse(
        version=max(reached.version, 0),
        ways=[
            pb.ModelPath(
                partner=way.partner,
                subjects=way.subjects,
                environments=way.environments,
                grant=way.grant,
                terms=way.terms,
                callers=way.callers,
                block=way.block,
            )
            for way in reached.ways
        ],
        changers=[pb.PathChanger(by=one.by, who=one.who, what=one.what) for one in reached.changers],
    )
