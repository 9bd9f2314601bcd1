"""What a grant demands of a mint beyond what it covers, in words."""

from collections.abc import Iterator
from dataclasses import dataclass

from broker.domain.changes import span
from broker.domain.policy import ApprovalRule, Binding, Grant, Policy, Quota

_BINDINGS = {
    Binding.MTLS: "the token must be bound to a client certificate (RFC 8705)",
    Binding.DPOP: "the token must be bound to a DPoP key (RFC 9449)",
    Binding.ANY: "the token must be bound, to a client certificate (RFC 8705) or a DPoP key (RFC 9449)",
}


@dataclass(frozen=True, slots=True)
class Demanded:
    """One demand. `is_enforced`: false where the grant's mode is audit, and it is only noted."""

    rule: str
    detail: str
    is_enforced: bool


def demands(policy: Policy, partner: str, grant: Grant) -> tuple[Demanded, ...]:
    """Return what is demanded of a mint by `grant` for `partner`, beside what the grant covers."""
    of_grant = [
        *([("binding", _BINDINGS[grant.binding])] if grant.binding in _BINDINGS else []),
        *([("approvals", approval_text(grant.approvals))] if grant.approvals is not None else []),
        *_limits(grant),
    ]
    known = policy.partners.get(partner)
    of_partner = list(_quota(known.quota, f" of {partner} in all")) if known is not None else []
    return (
        *(Demanded(rule, detail, not grant.is_audit_only) for rule, detail in of_grant),
        *(Demanded(rule, detail, True) for rule, detail in of_partner),
    )


def approval_text(rule: ApprovalRule) -> str:
    """Return who must approve, and when."""
    return (
        f"{rule.needed} of group {rule.group} must approve within {span(rule.window_s)}, each after a login not older "
        f"than {span(rule.login_s)}; then it is valid for {span(rule.valid_s)}"
    )


def _limits(grant: Grant) -> Iterator[tuple[str, str]]:
    limits = grant.limits
    for rule, most, what in (
        ("batch", limits.batch, "tokens in one batch"),
        ("tokens_per_run", limits.tokens_per_run, "tokens in one run"),
        ("uses_per_token", limits.uses_per_token, "uses of one token, where a verifier can count them"),
    ):
        if most is not None:
            yield rule, f"at most {most} {what}"
    yield from _quota(limits.all, f" by grant {grant.id}")
    yield from _quota(limits.user, " for each user or workload")


def _quota(quota: Quota, whose: str) -> Iterator[tuple[str, str]]:
    for rule, most, what in (
        ("mints_per_minute", quota.mints_per_minute, "tokens minted in a minute"),
        ("live_tokens", quota.live_tokens, "live tokens"),
        ("live_runs", quota.live_runs, "open runs"),
    ):
        if most is not None:
            yield rule, f"at most {most} {what}{whose}"
