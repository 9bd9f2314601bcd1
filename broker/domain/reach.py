"""Who reaches which models, on what terms: found by the decision itself, for all who are judged alike at once."""

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from broker.domain.asking import Ask
from broker.domain.decision import Allowed, decide
from broker.domain.policy import ApprovalRule, Binding, Grant, Limits, Policy

Subject = tuple[str | None, str | None]
"""A user, a workload, or both: the workload acts for the user."""


@dataclass(frozen=True, slots=True)
class Way:
    """Each of the subjects to each of the models from each of the environments: no rule tells them apart."""

    partner: str
    realm: str
    subjects: frozenset[Subject]
    models: frozenset[str]
    environments: frozenset[str]


@dataclass(frozen=True, slots=True)
class Terms:
    """On what terms a grant lets somebody have tokens. Lifetimes are bounded by the realm's, too."""

    grant: str
    default_ttl_s: int
    max_ttl_s: int
    binding: Binding
    approvals: ApprovalRule | None
    limits: Limits
    delegation: int
    is_audit_only: bool


def ways(
    policies: Sequence[Policy], partner: str, realm: str, models: Iterable[str] | None = None
) -> Iterator[tuple[Way, tuple[Terms | None, ...]]]:
    """Yield each way of a partner in a realm with its terms under each of `policies`; None: there it is denied.

    Blocks are not looked at. Whoever is on no way is denied under all of them. `models`: look at these alone.
    """
    grants = [policy.grants_for(partner, realm) for policy in policies]
    granted = [grant for of_one in grants for grant in of_one]
    users = _alike({name for grant in granted for name in grant.users}, _is_user(policies, partner, grants))
    workloads = _alike({name for grant in granted for name in grant.workloads}, _is_workload(policies, partner, grants))
    places = _alike({name for grant in granted for name in grant.environments}, _is_place(policies, partner, grants))
    named = set(models) if models is not None else set(_models(policies, grants))
    for of_models in _alike(named, _is_model(policies, grants)):
        for subjects in _subjects(policies, realm, users, workloads):
            for of_places in places:
                way = Way(partner, realm, subjects, of_models, of_places)
                terms = tuple(_terms(policy, way) for policy in policies)
                if any(one is not None for one in terms):
                    yield way, terms


def _terms(policy: Policy, way: Way) -> Terms | None:
    """Return the terms for one who stands for all of a way, as a mint would be decided."""
    user, workload = min(way.subjects, key=lambda one: (one[0] or "", one[1] or ""))
    ask = Ask(way.realm, way.partner, user, workload, (min(way.models),), min(way.environments))
    verdict = decide(ask, policy, {})
    grant = policy.grant(verdict.grant) if isinstance(verdict, Allowed) else None
    if grant is None or not isinstance(verdict, Allowed):
        return None
    return Terms(
        grant.id,
        verdict.ttl_s,
        min(grant.max_ttl_s, policy.realms[way.realm].max_ttl_s),
        grant.binding,
        grant.approvals,
        grant.limits,
        grant.delegation,
        grant.is_audit_only,
    )


def _subjects(
    policies: Sequence[Policy], realm: str, users: Sequence[frozenset[str]], workloads: Sequence[frozenset[str]]
) -> Iterator[frozenset[Subject]]:
    asks_both = [policy.realms[realm].needs_both for policy in policies if realm in policy.realms]
    if not all(asks_both):
        yield from (frozenset((user, None) for user in alike) for alike in users)
        yield from (frozenset((None, workload) for workload in alike) for alike in workloads)
    if any(asks_both):
        yield from (frozenset((user, by) for user in one for by in other) for one in users for other in workloads)


def _models(policies: Sequence[Policy], grants: Sequence[Sequence[Grant]]) -> Iterator[str]:
    for policy, of_one in zip(policies, grants, strict=True):
        for grant in of_one:
            yield from grant.models
            if grant.model_labels:
                known = policy.models | policy.labels_by_model.keys()
                yield from (name for name in known if grant.covers_model(name, policy.labels_of_model(name)))


def _alike(names: Iterable[str], judged: Callable[[str], Hashable]) -> list[frozenset[str]]:
    """Return the names in groups that every rule judges alike."""
    groups: dict[Hashable, set[str]] = {}
    for name in sorted(names):
        groups.setdefault(judged(name), set()).add(name)
    return [frozenset(group) for group in groups.values()]


# What the decision asks of a name, under each policy and of each grant, and nothing else of it.


def _is_user(policies: Sequence[Policy], partner: str, grants: Sequence[Sequence[Grant]]) -> Callable[[str], Hashable]:
    known = [found.users if (found := policy.partners.get(partner)) else frozenset() for policy in policies]
    return lambda name: (
        tuple(name in users for users in known),
        tuple(name in grant.users for of_one in grants for grant in of_one),
    )


def _is_workload(
    policies: Sequence[Policy], partner: str, grants: Sequence[Sequence[Grant]]
) -> Callable[[str], Hashable]:
    known = [found.workloads if (found := policy.partners.get(partner)) else frozenset() for policy in policies]
    return lambda name: (
        tuple(name in workloads for workloads in known),
        tuple(name in grant.workloads for of_one in grants for grant in of_one),
    )


def _is_place(policies: Sequence[Policy], partner: str, grants: Sequence[Sequence[Grant]]) -> Callable[[str], Hashable]:
    known = [found.environments if (found := policy.partners.get(partner)) else {} for policy in policies]
    return lambda name: (
        tuple(name in places for places in known),
        tuple(name in grant.environments for of_one in grants for grant in of_one),
    )


def _is_model(policies: Sequence[Policy], grants: Sequence[Sequence[Grant]]) -> Callable[[str], Hashable]:
    return lambda name: tuple(
        (policy.knows_model(name), tuple(grant.covers_model(name, policy.labels_of_model(name)) for grant in of_one))
        for policy, of_one in zip(policies, grants, strict=True)
    )
