"""The one thing that would change an answer: found by trying each, with the decision as the judge."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from broker.domain.asking import UNRECOGNISED, Ask
from broker.domain.changes import listed
from broker.domain.decision import Allowed, decide
from broker.domain.policy import Grant, Policy
from broker.token.revocation import Selector

# Each trial makes a whole policy.
MOST_TRIED = 10


@dataclass(frozen=True, slots=True)
class AskOtherwise:
    """Ask for this instead."""

    ask: Ask
    text: str


@dataclass(frozen=True, slots=True)
class Lift:
    """Reinstate this block."""

    block: Selector

    @property
    def text(self) -> str:
        """Say it."""
        return f"an admin reinstates {self.block}"


@dataclass(frozen=True, slots=True)
class Extend:
    """Add these names to one field of a grant."""

    grant: str
    field: str
    names: frozenset[str]

    @property
    def text(self) -> str:
        """Say it."""
        return f"an admin adds {listed(self.names)} to {self.field} of grant {self.grant}"


Remedy = AskOtherwise | Lift | Extend


def remedy(ask: Ask, policy: Policy, blocks: Mapping[Selector, int]) -> Remedy | None:
    """Return the one thing that would make a denied ask allowed; None: there is none, or it is allowed already.

    What the caller can do comes before what an admin can.
    """
    if isinstance(decide(ask, policy, blocks), Allowed):
        return None
    for other in _asks(ask, policy):
        if isinstance(decide(other.ask, policy, blocks), Allowed):
            return other
    for block in blocks:
        rest = {selector: index for selector, index in blocks.items() if selector != block}
        if isinstance(decide(ask, policy, rest), Allowed):
            return Lift(block)
    for extension in _extensions(ask, policy):
        if isinstance(decide(ask, extended(policy, extension), blocks), Allowed):
            return extension
    return None


def extended(policy: Policy, extension: Extend) -> Policy:
    """Return the policy with the extension made."""
    return replace(policy, grants=tuple(_with(grant, extension) for grant in policy.grants))


def also_allowed_by(ask: Ask, policy: Policy, grant_id: str) -> tuple[str, ...]:
    """Return the other grants that would allow the ask, were this one not there."""
    found: list[str] = []
    rest = policy
    gone = {grant_id}
    while True:
        rest = replace(rest, grants=tuple(grant for grant in rest.grants if grant.id not in gone))
        verdict = decide(ask, rest, {})
        if not isinstance(verdict, Allowed):
            return tuple(found)
        found.append(verdict.grant)
        gone = {verdict.grant}


def _with(grant: Grant, extension: Extend) -> Grant:
    if grant.id != extension.grant:
        return grant
    match extension.field:
        case "models":
            return replace(grant, models=grant.models | extension.names)
        case "environments":
            return replace(grant, environments=grant.environments | extension.names)
        case "users":
            return replace(grant, users=grant.users | extension.names)
        case _:
            return replace(grant, workloads=grant.workloads | extension.names)


def _asks(ask: Ask, policy: Policy) -> Iterator[AskOtherwise]:
    """Yield what could be asked for instead: less of the same, from another place, or with both subjects."""
    bounds = policy.realms.get(ask.realm)
    if ask.ttl_s is not None and bounds is not None:
        tops = {min(grant.max_ttl_s, bounds.max_ttl_s) for grant in policy.grants_for(ask.partner, ask.realm)}
        for most_s in sorted((top for top in tops if top < ask.ttl_s), reverse=True):
            yield AskOtherwise(replace(ask, ttl_s=most_s), f"ask for a lifetime of at most {most_s} s")
    partner = policy.partners.get(ask.partner)
    if partner is None or bounds is None:
        return
    if ask.workload is None and bounds.needs_both:
        for name in sorted(partner.workloads):
            yield AskOtherwise(replace(ask, workload=name), f"name a workload beside the user, as {name}")
    if ask.user is None and bounds.needs_both:
        for name in sorted(partner.users):
            yield AskOtherwise(replace(ask, user=name), f"name the user for whom it acts, as {name}")
    for name in sorted(partner.environments.keys() - {ask.environment, UNRECOGNISED}):
        yield AskOtherwise(replace(ask, environment=name), f"ask from environment {name}")
    if len(ask.models) > 1:
        for model in ask.models:
            rest = tuple(one for one in ask.models if one != model)
            yield AskOtherwise(replace(ask, models=rest), f"leave out {model}")


def _extensions(ask: Ask, policy: Policy) -> Iterator[Extend]:
    """Yield what would make one grant cover the whole ask, where it lacks one kind of thing only."""
    tried = 0
    for grant in policy.grants_for(ask.partner, ask.realm):
        lacks = {
            "models": frozenset(
                model for model in ask.models if not grant.covers_model(model, policy.labels_of_model(model))
            ),
            "environments": frozenset({ask.environment} - grant.environments),
            "users": frozenset({ask.user} - {None} - grant.users),
            "workloads": frozenset({ask.workload} - {None} - grant.workloads),
        }
        missing = [(field, names) for field, names in lacks.items() if names]
        if len(missing) == 1:
            [(field, names)] = missing
            tried += 1
            yield Extend(grant.id, field, frozenset(name for name in names if name is not None))
        if tried == MOST_TRIED:
            return
