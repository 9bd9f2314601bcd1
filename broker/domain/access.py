"""Who can reach which model, one row for each: by a grant, from where, through which harness; and the grants' state."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date, timedelta

from broker.domain.demands import demands
from broker.domain.paths import block_of, callers_of
from broker.domain.policy import Grant, Policy, Principal, Role
from broker.domain.reach import Way, ways
from broker.token.identifiers import bare_name
from broker.token.revocation import Selector

NO_REVIEW, REVIEW_LATER, REVIEW_SOON, OVERDUE, OVERDUE_CLOSED = "none", "later", "soon", "overdue", "overdue-closed"


@dataclass(frozen=True, slots=True)
class Scope:
    """What is looked at; None: each."""

    realm: str | None = None
    partner: str | None = None
    model: str | None = None

    def realms(self, policy: Policy) -> list[str]:
        """Return the realms that are looked at."""
        return sorted(policy.realms) if self.realm is None else [self.realm]

    def partners(self, policy: Policy) -> list[str]:
        """Return the partners that are looked at."""
        return sorted(policy.partners) if self.partner is None else [self.partner]

    def models(self, grants: tuple[Grant, ...]) -> set[str] | None:
        """Return the models that are looked at: of a name, its instances too. None: all that are granted."""
        if self.model is None:
            return None
        return {self.model, *(one for grant in grants for one in grant.models if bare_name(one) == self.model)}

    def covers(self, policy: Policy, grant: Grant) -> bool:
        """Tell whether a grant is looked at."""
        if self.realm not in (None, grant.realm):
            return False
        if self.partner is not None and grant not in policy.grants_for(self.partner, grant.realm):
            return False
        models = self.models((grant,))
        return models is None or any(grant.covers_model(one, policy.labels_of_model(one)) for one in models)


@dataclass(frozen=True, slots=True)
class Access:
    """That somebody can have tokens for a model. `block`: what closes that now, or nothing.

    A user, a workload, or a workload for a user. `environments` and `callers` (principals) by name.
    """

    partner: str
    realm: str
    model: str
    user: str | None
    workload: str | None
    grant: str
    environments: tuple[str, ...]
    callers: tuple[str, ...]
    block: str


def accesses(policy: Policy, blocks: Mapping[Selector, int], scope: Scope) -> Iterator[Access]:
    """Yield each access that the policy gives, blocked ones included."""
    for partner in scope.partners(policy):
        for realm in scope.realms(policy):
            models = scope.models(policy.grants_for(partner, realm))
            found: dict[tuple[str, str | None, str | None, str], set[str]] = {}
            for way, (terms,) in ways([policy], partner, realm, models):
                if terms is None:
                    continue
                for model in way.models:
                    for user, workload in way.subjects:
                        found.setdefault((model, user, workload, terms.grant), set()).update(way.environments)
            for (model, user, workload, grant), places in sorted(found.items(), key=lambda one: _sortable(one[0])):
                way = Way(partner, realm, frozenset({(user, workload)}), frozenset({model}), frozenset(places))
                yield Access(
                    partner,
                    realm,
                    model,
                    user,
                    workload,
                    grant,
                    tuple(sorted(places)),
                    tuple(one.id for one in callers_of(policy, way)),
                    block_of(policy, blocks, way),
                )


def grants_in(policy: Policy, scope: Scope) -> list[Grant]:
    """Return the grants that are looked at, those that allow nothing any more included, by id."""
    return sorted((one for one in policy.grants if scope.covers(policy, one)), key=lambda one: one.id)


def partners_of(policy: Policy, grant: Grant, scope: Scope) -> list[str]:
    """Return whose a grant is, of those that are looked at."""
    return [name for name in scope.partners(policy) if grant.is_for(policy.partners[name])]


def review_state(policy: Policy, grant: Grant, today: date, soon: timedelta) -> str:
    """Return how near a grant's review is."""
    if grant.review_by is None:
        return NO_REVIEW
    if grant.review_by < today:
        return OVERDUE_CLOSED if policy.denies_overdue else OVERDUE
    return REVIEW_SOON if grant.review_by - today <= soon else REVIEW_LATER


def demanded(policy: Policy, grant: Grant, partners: list[str]) -> list[str]:
    """Return what a grant demands of a mint beside what it covers, in words; for one partner, its quota too."""
    partner = partners[0] if len(partners) == 1 else ""
    return [
        one.detail if one.is_enforced else f"{one.detail} (noted only: mode audit)"
        for one in demands(policy, partner, grant)
    ]


def verifiers_in(policy: Policy, realm: str) -> list[Principal]:
    """Return who may verify in a realm."""
    return [one for one in policy.principals.values() if one.role is Role.VERIFIER and one.realm in (None, realm)]


def _sortable(key: tuple[str | None, ...]) -> tuple[str, ...]:
    return tuple(one or "" for one in key)
