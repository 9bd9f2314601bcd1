"""Which limits a write must keep, and what it counts for them, by the policy that allowed it."""

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from broker.domain.policy import NO_QUOTA, Grant, Limits, Policy, Quota
from broker.errors import LimitReached
from broker.service.enforcing import Demand, enforce
from broker.service.limit_ports import Count, Counted, Limit, Scope, TokensCounted, WithinLimits, subject_of
from broker.service.metering import Meter
from broker.token.claims import Claims

Minting = tuple[tuple[WithinLimits, ...], tuple[TokensCounted, ...]]
"""Guards and effects to add to a write; empty where nobody set a limit, who then pays nothing for it."""

NO_LIMITS = Limits()


def limits_of_mint(tokens: Sequence[tuple[Claims, str]], policy: Policy, now: datetime) -> Minting:
    """Return what the store must count for these tokens, each with the id of the grant that allows it."""
    if not any(_counts(policy, grant, partner) for grant, partner in {(grant, c.partner) for c, grant in tokens}):
        return (), ()
    limits: Counter[tuple[Counted, int, Scope, str | None, bool]] = Counter()
    counts: Counter[tuple[Scope, int, str | None]] = Counter()
    runs: Counter[str] = Counter()
    alike = Counter((grant, c.partner, c.user, c.workload, c.run, c.exp) for c, grant in tokens)
    for (grant_id, partner, user, workload, run, exp), tokens_alike in alike.items():
        grant = policy.grant(grant_id)
        for scope, quota, is_audit in _scopes(policy, grant, partner, subject_of(partner, user, workload)):
            for counted, most in (
                (Counted.MINTS_PER_MINUTE, quota.mints_per_minute),
                (Counted.LIVE_TOKENS, quota.live_tokens),
            ):
                if most is not None:
                    limits[counted, most, scope, None, is_audit] += tokens_alike
            if quota.mints_per_minute is not None or quota.live_tokens is not None:
                counts[scope, exp, run] += tokens_alike
        if grant is not None and grant.limits.tokens_per_run is not None and run is not None:
            most = grant.limits.tokens_per_run
            limits[Counted.TOKENS_PER_RUN, most, Scope(grant=grant.id), run, grant.is_audit_only] += tokens_alike
            runs[run] += tokens_alike
    if not limits:
        # Of runs alone, and these tokens are of none.
        return (), ()
    effect = TokensCounted(
        tuple(Count(scope, many, datetime.fromtimestamp(exp, UTC), run) for (scope, exp, run), many in counts.items()),
        now,
        tuple(runs.items()),
    )
    return (_guard(limits, now),), (effect,)


def limits_of_run(
    grants: Iterable[str], partner: str, user: str | None, workload: str | None, policy: Policy, now: datetime
) -> tuple[WithinLimits, ...]:
    """Return the guard of one more live run that these grants allow, if any of them, or the partner, limits runs."""
    limits: Counter[tuple[Counted, int, Scope, str | None, bool]] = Counter()
    for grant_id in dict.fromkeys(grants):
        grant = policy.grant(grant_id)
        for scope, quota, is_audit in _scopes(policy, grant, partner, subject_of(partner, user, workload)):
            if quota.live_runs is not None:
                limits[Counted.LIVE_RUNS, quota.live_runs, scope, None, is_audit] = 1
    return (_guard(limits, now),) if limits else ()


def note_limits(noted: Iterable[LimitReached], policy: Policy, meter: Meter) -> None:
    """Note what the limits of grants that are only audited would have refused."""
    for reached in noted:
        grant = policy.grant(reached.metadata.get("grant", ""))
        if grant is not None and grant.is_audit_only:
            enforce(grant, Demand(reached.metadata["limit"]), reached, meter)


def _counts(policy: Policy, grant_id: str, partner: str) -> bool:
    """Tell whether anybody limits what is minted under this grant: most policies do not, and pay nothing for it."""
    known, grant = policy.partners.get(partner), policy.grant(grant_id)
    own = NO_LIMITS if grant is None else grant.limits
    quotas = (NO_QUOTA if known is None else known.quota, own.all, own.user)
    return own.tokens_per_run is not None or any(quota is not NO_QUOTA and quota != NO_QUOTA for quota in quotas)


def _scopes(
    policy: Policy, grant: Grant | None, partner: str, subject: str | None
) -> Iterable[tuple[Scope, Quota, bool]]:
    known = policy.partners.get(partner)
    if known is not None:
        yield Scope(partner=partner), known.quota, False
    if grant is not None:
        yield Scope(grant=grant.id), grant.limits.all, grant.is_audit_only
        if subject is not None:
            yield Scope(grant=grant.id, subject=subject), grant.limits.user, grant.is_audit_only


def _guard(limits: Counter[tuple[Counted, int, Scope, str | None, bool]], now: datetime) -> WithinLimits:
    return WithinLimits(
        tuple(
            Limit(counted, most, wanted, scope, run, is_audit_only=is_audit)
            for (counted, most, scope, run, is_audit), wanted in limits.items()
        ),
        now,
    )
