"""The difference between two policies, in words: who gains, who loses, and who else is trusted."""

from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

from broker.domain.access_changes import access_changes, quota_changes, steps
from broker.domain.changes import Change, Direction, less, listed, more, other, span
from broker.domain.policy import Environment, Partner, Policy, Principal, Realm
from broker.domain.trust import Provider, TrustRule

_T = TypeVar("_T")
_ORDER = {Direction.MORE: 0, Direction.LESS: 1, Direction.OTHER: 2}


def difference(before: Policy, after: Policy) -> tuple[Change, ...]:
    """Return what changes, what lets somebody do more first. Nothing: the two mean the same."""
    found = [
        *access_changes(steps(before, after)),
        *_provider_changes(before, after),
        *_principal_changes(before, after),
        *_group_changes(before.groups, after.groups),
        *_partner_changes(before, after),
        *_realm_changes(before, after),
        *_model_changes(before, after),
        *_review_changes(before, after),
    ]
    return tuple(sorted(dict.fromkeys(found), key=lambda change: _ORDER[change.direction]))


def rule_text(rule: TrustRule) -> str:
    """Return by what an identity is recognised."""
    return f"identity of {rule.provider} with {', '.join(f'{name}={value}' for name, value in sorted(rule.claims))}"


def role_text(principal: Principal) -> str:
    """Return a principal's role and what it is for: `harness of acme for workload ci`."""
    text = principal.role.value
    if principal.partner is not None:
        text += f" of {principal.partner}"
    if principal.realm is not None:
        text += f" in {principal.realm}"
    if principal.workload is not None:
        text += f" for workload {principal.workload}"
    if principal.user is not None:
        text += f" for user {principal.user}"
    return text


def proof_text(principal: Principal) -> str:
    """Return how a principal proves itself."""
    return rule_text(principal.rule) if principal.rule is not None else "its certificate"


def _both(before: Mapping[str, _T], after: Mapping[str, _T]) -> Iterator[tuple[str, _T | None, _T | None]]:
    """Yield each name whose value is not the same on both sides; None where there is none."""
    for name in sorted({*before, *after}):
        was, becomes = before.get(name), after.get(name)
        if was != becomes:
            yield name, was, becomes


def _provider_changes(before: Policy, after: Policy) -> Iterator[Change]:
    for name, was, becomes in _both(before.providers, after.providers):
        if becomes is None:
            yield less("providers", f"provider {name} is trusted no more")
        elif was is None:
            yield more("providers", f"provider {name} vouches for {_vouches(becomes)}")
        else:
            yield more("providers", f"provider {name} vouches for {_vouches(becomes)} (was {_vouches(was)})")


def _vouches(provider: Provider) -> str:
    who = "humans" if provider.for_humans else "workloads"
    review = f", reviewed by {provider.review}" if provider.review else ""
    return f"{who}: {provider.kind.value}, {provider.issuer}, audience {provider.audience}{review}"


def _principal_changes(before: Policy, after: Policy) -> Iterator[Change]:
    for name, was, becomes in _both(before.principals, after.principals):
        if was is not None and (becomes is None or role_text(was) != role_text(becomes)):
            yield less("principals", f"{name} is {role_text(was)} no more")
        if becomes is not None and (was is None or role_text(was) != role_text(becomes)):
            yield more("principals", f"{name} is {role_text(becomes)}, proven by {proof_text(becomes)}")
        elif was is not None and becomes is not None and was.rule != becomes.rule:
            text = f"{name} ({role_text(becomes)}) is proven by {proof_text(becomes)} (was {proof_text(was)})"
            yield more("principals", text)
        if was is not None and becomes is not None and was.person != becomes.person:
            yield more("principals", f"{name} is the person {becomes.person} (was {was.person})")


def _group_changes(before: Mapping[str, frozenset[str]], after: Mapping[str, frozenset[str]]) -> Iterator[Change]:
    for name, was, becomes in _both(before, after):
        joins = (becomes or frozenset()) - (was or frozenset())
        leaves = (was or frozenset()) - (becomes or frozenset())
        if joins:
            yield more("groups", f"{listed(joins)} may approve as group {name}")
        if leaves:
            yield less("groups", f"{listed(leaves)} may approve as group {name} no more")


def _partner_changes(before: Policy, after: Policy) -> Iterator[Change]:
    for name, was, becomes in _both(before.partners, after.partners):
        if becomes is None:
            yield less("partners", f"partner {name} is removed")
            continue
        if was is None:
            yield other("partners", f"partner {name} is new")
        yield from _member_changes(name, was, becomes)
        yield from _place_changes(name, was.environments if was is not None else {}, becomes.environments)
        for change in quota_changes(was.quota if was is not None else becomes.quota, becomes.quota):
            yield Change(change.direction, change.subject, f"partner {name}: {change.text}")


def _member_changes(partner: str, was: Partner | None, becomes: Partner) -> Iterator[Change]:
    for field in ("users", "workloads", "labels"):
        old = frozenset(getattr(was, field)) if was is not None else frozenset()
        new = frozenset(getattr(becomes, field))
        if new - old:
            yield other("partners", f"partner {partner} has {field} {listed(new - old)}")
        if old - new:
            yield other("partners", f"partner {partner} has {field} {listed(old - new)} no more")


def _place_changes(
    partner: str, before: Mapping[str, Environment], after: Mapping[str, Environment]
) -> Iterator[Change]:
    for name, was, becomes in _both(before, after):
        what = f"environment {name} of {partner}"
        if becomes is None:
            yield less("environments", f"{what} is removed")
        elif was is None:
            yield more("environments", f"{what} is recognised by {_place_text(becomes)}")
        else:
            yield more("environments", f"{what} is recognised by {_place_text(becomes)} (was {_place_text(was)})")


def _place_text(environment: Environment) -> str:
    proof = rule_text(environment.rule) if environment.rule is not None else f"certificate {environment.certificate}"
    return f"{proof} from {listed(map(str, environment.networks))}" if environment.networks else proof


def _realm_changes(before: Policy, after: Policy) -> Iterator[Change]:
    for name, was, becomes in _both(before.realms, after.realms):
        if becomes is None:
            yield less("realms", f"realm {name} is removed")
        elif was is None:
            yield other("realms", f"realm {name} is new")
        else:
            for change in _one_realm(was, becomes):
                yield Change(change.direction, "realms", f"realm {name}: {change.text}")


def _one_realm(was: Realm, becomes: Realm) -> Iterator[Change]:
    if (was.issuer, was.audience) != (becomes.issuer, becomes.audience):
        text = f"issuer {becomes.issuer}, audience {becomes.audience} (was {was.issuer}, {was.audience})"
        yield other("realms", f"{text}: verifiers must pin anew, and older tokens are worth nothing to them")
    if was.max_ttl_s != becomes.max_ttl_s:
        tell = more if becomes.max_ttl_s > was.max_ttl_s else less
        yield tell("realms", f"tokens live for at most {span(becomes.max_ttl_s)} (was {span(was.max_ttl_s)})")
    if was.lease_ms != becomes.lease_ms:
        is_more = becomes.lease_ms > was.lease_ms
        text = f"a verifier cut off goes on accepting for {span(becomes.lease_ms // 1000)}"
        yield (more if is_more else less)("realms", f"{text} (was {span(was.lease_ms // 1000)})")
    if was.heartbeat_ms != becomes.heartbeat_ms:
        text = f"a heartbeat each {span(becomes.heartbeat_ms // 1000)} (was {span(was.heartbeat_ms // 1000)})"
        yield other("realms", text)
    if was.needs_both != becomes.needs_both:
        text = "a mint needs a user and a workload" if becomes.needs_both else "a user or a workload is enough"
        yield (less if becomes.needs_both else more)("realms", text)
    if was.receipts is not becomes.receipts:
        yield other("realms", f"receipts of uses: {becomes.receipts.value} (was {was.receipts.value})")
    if was.labels != becomes.labels:
        yield other("realms", f"labels {_or_none(becomes.labels)} (were {_or_none(was.labels)})")


def _model_changes(before: Policy, after: Policy) -> Iterator[Change]:
    if after.models - before.models:
        yield other("models", f"{listed(after.models - before.models)}: new in the list of models")
    if before.models - after.models:
        yield less("models", f"{listed(before.models - after.models)}: removed from the list of models")
    for name, was, becomes in _both(before.labels_by_model, after.labels_by_model):
        text = f"model {name} has labels {_or_none(becomes or ())} (had {_or_none(was or ())})"
        yield other("models", text)


def _review_changes(before: Policy, after: Policy) -> Iterator[Change]:
    for grant in after.grants:
        was = before.grant(grant.id)
        if was is not None and was.review_by != grant.review_by:
            yield other("grants", f"grant {grant.id} is to be reviewed by {grant.review_by} (was {was.review_by})")
    if before.denies_overdue and not after.denies_overdue:
        yield more("grants", "grants allow new tokens also when their review is overdue")
    if after.denies_overdue and not before.denies_overdue:
        yield less("grants", "grants allow no new tokens once their review is overdue")


def _or_none(names: Iterable[str]) -> str:
    ordered = list(names)
    return listed(ordered) if ordered else "none"
