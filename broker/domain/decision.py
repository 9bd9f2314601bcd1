"""The decision: one walk through the rules, denied by default."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from broker.domain.asking import UNRECOGNISED, Ask
from broker.domain.policy import Grant, Policy
from broker.token.identifiers import bare_name
from broker.token.revocation import Dimension, Facts, Selector

INVALID = "INVALID"
BLOCKED = "BLOCKED"
NOT_GRANTED = "NOT_GRANTED"
LIMIT_REACHED = "LIMIT_REACHED"


@dataclass(frozen=True, slots=True)
class Allowed:
    """Granted by `grant`, for `ttl_s` seconds: no longer than asked, nor than the grant and the realm allow."""

    grant: str
    ttl_s: int


@dataclass(frozen=True, slots=True)
class Reason:
    """Why not: a code out of INVALID, BLOCKED, NOT_GRANTED and LIMIT_REACHED, the rule, and words for people."""

    code: str
    rule: str
    detail: str


@dataclass(frozen=True, slots=True)
class Denied:
    """Refused."""

    why: Reason


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule that was tried."""

    rule: str
    passes: bool
    detail: str


@dataclass(frozen=True, slots=True)
class _Step:
    """A rule's outcome; a step with a `verdict` ends the walk."""

    rule: Rule
    verdict: Allowed | Denied | None = None


def decide(ask: Ask, policy: Policy, blocks: Mapping[Selector, int]) -> Allowed | Denied:
    """Decide `ask`. Denies by default: what is unknown, blocked, or covered by no single grant."""
    for step in _walk(ask, policy, blocks):
        if step.verdict is not None:
            return step.verdict
    return Denied(Reason(NOT_GRANTED, "default", _no_grant(ask)))


def over_limit(grants: Sequence[str], policy: Policy) -> Iterator[tuple[Grant, Reason]]:
    """Yield each grant, one for each name, of which so many tokens may not be minted at once, and why not."""
    for grant_id, count in Counter(grants).items():
        grant = policy.grant(grant_id)
        most = None if grant is None else grant.limits.batch
        if grant is not None and most is not None and count > most:
            detail = f"{count} tokens at once, grant {grant.id} allows {most}"
            yield grant, Reason(LIMIT_REACHED, f"grant {grant.id}", detail)


def told(ask: Ask, policy: Policy, why: Reason) -> Reason:
    """Return what the partner that asked may know of a denial: nothing of realms and models that it was never granted.

    Whether they exist, or are blocked, would otherwise be learnt by asking (P8).
    """
    return why if may_know(ask, policy) else Reason(NOT_GRANTED, "default", _no_grant(ask))


def may_know(ask: Ask, policy: Policy) -> bool:
    """Tell whether the partner was granted each model of the ask in its realm, to whomever and from wherever."""
    grants = policy.grants_for(ask.partner, ask.realm)
    return bool(grants) and all(
        policy.knows_model(model) and any(grant.covers_model(model, policy.labels_of_model(model)) for grant in grants)
        for model in ask.models
    )


def explain(ask: Ask, policy: Policy, blocks: Mapping[Selector, int]) -> tuple[Rule, ...]:
    """Return the rules that `decide` tries for `ask`, in their order, up to the one that decides."""
    rules = []
    for step in _walk(ask, policy, blocks):
        rules.append(step.rule)
        if step.verdict is not None:
            break
    return tuple(rules)


def _walk(ask: Ask, policy: Policy, blocks: Mapping[Selector, int]) -> Iterator[_Step]:
    yield from _known(ask, policy)
    yield from _unblocked(ask, policy, blocks)
    yield from _granted(ask, policy)


def _known(ask: Ask, policy: Policy) -> Iterator[_Step]:
    partner = policy.partners.get(ask.partner)
    unknown = [model for model in ask.models if not policy.knows_model(model)]
    places = partner.environments if partner is not None and ask.environment != UNRECOGNISED else {}
    checks = (
        ("realm", ask.realm, ask.realm in policy.realms),
        ("partner", ask.partner, partner is not None),
        ("model", ", ".join(unknown or ask.models), not unknown),
        ("environment", ask.environment, ask.environment in places),
        ("user", ask.user, ask.user is None or (partner is not None and ask.user in partner.users)),
        ("workload", ask.workload, ask.workload is None or (partner is not None and ask.workload in partner.workloads)),
    )
    for name, value, is_known in checks:
        if not is_known:
            yield _denied(NOT_GRANTED, name, f"{name} {value} is not in the policy")
        elif value is not None:
            yield _Step(Rule(name, True, f"{value} is in the policy"))
    if policy.realms[ask.realm].needs_both:
        if ask.user is None or ask.workload is None:
            missing = "user" if ask.user is None else "workload"
            detail = f"realm {ask.realm} needs a user and a workload; no {missing} is named"
            yield _denied(NOT_GRANTED, "subjects", detail)
        else:
            yield _Step(Rule("subjects", True, f"{ask.workload} acts for {ask.user}"))


def _unblocked(ask: Ask, policy: Policy, blocks: Mapping[Selector, int]) -> Iterator[_Step]:
    if not blocks:
        return
    facts = _facts(ask, policy)
    for selector, index in blocks.items():
        if _blocks(selector, facts, ask):
            yield _denied(BLOCKED, f"block {selector}", f"blocked since index {index} by revocation of {selector}")


def _blocks(selector: Selector, facts: Facts, ask: Ask) -> bool:
    """A block on one instance also stops an ask for all instances, because that would cover it."""
    return all(
        value in facts[dimension] or (dimension is Dimension.MODEL and bare_name(value) in ask.models)
        for dimension, value in selector.conditions
    )


def _granted(ask: Ask, policy: Policy) -> Iterator[_Step]:
    realm_max_s = policy.realms[ask.realm].max_ttl_s
    too_long: Denied | None = None
    overdue: Denied | None = None
    for grant in policy.grants_for(ask.partner, ask.realm):
        missing = _missing(ask, grant, policy)
        rule = f"grant {grant.id}"
        if missing:
            yield _Step(Rule(rule, False, missing))
            continue
        if policy.denies_overdue and grant.id in policy.overdue:
            yield _Step(Rule(rule, False, f"its review was due by {grant.review_by}"))
            overdue = overdue or _overdue(grant)
            continue
        longest_s = min(grant.max_ttl_s, realm_max_s)
        if ask.ttl_s is not None and ask.ttl_s > longest_s:
            detail = f"lifetime {ask.ttl_s} s is above the maximum of {longest_s} s"
            yield _Step(Rule(rule, False, detail))
            too_long = too_long or Denied(Reason(INVALID, "lifetime", f"{detail}; ask for less, or leave it out"))
            continue
        ttl_s = min(grant.default_ttl_s, longest_s) if ask.ttl_s is None else ask.ttl_s
        yield _Step(Rule(rule, True, f"covers all of it, for {ttl_s} s"), Allowed(grant.id, ttl_s))
        return
    verdict = too_long or overdue or Denied(Reason(NOT_GRANTED, "default", _no_grant(ask)))
    yield _Step(Rule("default", False, verdict.why.detail), verdict)


def _missing(ask: Ask, grant: Grant, policy: Policy) -> str:
    """Return what of the ask a grant does not cover; empty when it covers the whole."""
    beyond = [model for model in ask.models if not grant.covers_model(model, policy.labels_of_model(model))]
    if beyond:
        return f"does not cover {', '.join(beyond)}"
    if ask.environment not in grant.environments:
        return f"does not cover environment {ask.environment}"
    if ask.user is not None and ask.user not in grant.users:
        return f"does not cover user {ask.user}"
    if ask.workload is not None and ask.workload not in grant.workloads:
        return f"does not cover workload {ask.workload}"
    return ""


def _facts(ask: Ask, policy: Policy) -> Facts:
    facts: list[tuple[str, ...]] = [()] * (max(Dimension) + 1)
    facts[Dimension.REALM] = (ask.realm,)
    facts[Dimension.PARTNER] = (ask.partner,)
    facts[Dimension.USER] = () if ask.user is None else (ask.user,)
    facts[Dimension.WORKLOAD] = () if ask.workload is None else (ask.workload,)
    facts[Dimension.ENVIRONMENT] = (ask.environment,)
    facts[Dimension.MODEL] = tuple({name for model in ask.models for name in (model, bare_name(model))})
    facts[Dimension.LABEL] = policy.labels_for(ask.partner, ask.realm, ask.models)
    return tuple(facts)


def _overdue(grant: Grant) -> Denied:
    detail = f"grant {grant.id} covers it, and its review was due by {grant.review_by}; an admin must review it"
    return Denied(Reason(NOT_GRANTED, f"grant {grant.id}", detail))


def _no_grant(ask: Ask) -> str:
    who = " by ".join(name for name in (ask.user, ask.workload) if name is not None)
    return (
        f"{ask.partner} may not use {', '.join(ask.models)} in {ask.realm} for {who} from {ask.environment} (no grant)"
    )


def _denied(code: str, rule: str, detail: str) -> _Step:
    return _Step(Rule(rule, False, detail), Denied(Reason(code, rule, detail)))
