"""Every way to one model: by whom it can be used, and who can change it, make another, or pretend to be on it."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from broker.domain.access_changes import merged
from broker.domain.asking import Ask
from broker.domain.changes import listed, span
from broker.domain.decision import Denied, decide
from broker.domain.demands import demands
from broker.domain.difference import proof_text, role_text, rule_text
from broker.domain.policy import Environment, Grant, Policy, Principal, Role
from broker.domain.reach import Subject, Terms, Way, ways
from broker.token.identifiers import bare_name
from broker.token.revocation import Selector


@dataclass(frozen=True, slots=True)
class Path:
    """A way with all that is told of it, for people. `block`: what closes it now, or nothing."""

    partner: str
    subjects: tuple[str, ...]
    environments: tuple[str, ...]
    grant: str
    terms: tuple[str, ...]
    callers: tuple[str, ...]
    block: str


@dataclass(frozen=True, slots=True)
class Changer:
    """Who can change a way: `by` policy, configuration, approval, provider, certificates or keys."""

    by: str
    who: str
    what: str


def paths(policy: Policy, blocks: Mapping[Selector, int], realm: str, model: str) -> Iterator[Path]:
    """Yield every way to `model` in `realm`, by partner; a way to an instance of it is one to the model."""
    named = {model, *(one for grant in policy.grants for one in grant.models if bare_name(one) == model)}
    for partner in sorted(policy.partners):
        together: dict[Terms, list[Way]] = {}
        for way, (terms,) in ways([policy], partner, realm, named):
            if terms is not None:
                together.setdefault(terms, []).append(way)
        for terms, alike in together.items():
            for way in merged(alike):
                yield _path(policy, blocks, way, terms)


def changers(policy: Policy, configured: Iterable[str], grants: Iterable[Grant]) -> Iterator[Changer]:
    """Yield who can change the paths that grants make, and who could make others: first by the policy."""
    for principal in policy.principals.values():
        if principal.role is Role.ADMIN:
            yield Changer(
                "policy", principal.id, f"replaces the policy and lifts blocks; proven by {proof_text(principal)}"
            )
    for admin in sorted(set(configured) - policy.principals.keys()):
        yield Changer("configuration", admin, "is an admin by the broker's configuration; proven by its certificate")
    yield Changer(
        "configuration", "whoever writes the broker's configuration", "names admins, the CA of callers, and the store"
    )
    groups = sorted({grant.approvals.group for grant in grants if grant.approvals is not None})
    for group in groups:
        for person in sorted(policy.groups.get(group, ())):
            yield Changer("approval", person, f"approves as group {group}; {_proofs_of(policy, person)}")
    yield from _vouching(policy)
    yield Changer(
        "certificates",
        "whoever signs with the CA of callers",
        "makes a certificate for any principal or environment that is proven by one",
    )
    yield Changer("keys", "whoever uses a root key of the realm", "certifies keys that sign tokens without a mint")


def _path(policy: Policy, blocks: Mapping[Selector, int], way: Way, terms: Terms) -> Path:
    grant = policy.grant(terms.grant)
    demanded = demands(policy, way.partner, grant) if grant is not None else ()
    places = policy.partners[way.partner].environments
    said = [f"for up to {span(terms.max_ttl_s)}"]
    said += [one.detail if one.is_enforced else f"{one.detail} (noted only: mode audit)" for one in demanded]
    if terms.delegation:
        said.append(f"children {terms.delegation} deep, for whom a holder of the token chooses")
    return Path(
        way.partner,
        tuple(sorted(_subject_text(subject) for subject in way.subjects)),
        tuple(f"{name}: {place_text(places[name])}" for name in sorted(way.environments)),
        terms.grant,
        tuple(said),
        tuple(caller_text(one) for one in callers_of(policy, way)),
        block_of(policy, blocks, way),
    )


def _subject_text(subject: Subject) -> str:
    user, workload = subject
    return f"{workload} for {user}" if user and workload else f"user {user}" if user else f"workload {workload}"


def place_text(environment: Environment) -> str:
    """Return how a place is proven."""
    proof = rule_text(environment.rule) if environment.rule is not None else f"certificate {environment.certificate}"
    return f"{proof} from {listed(map(str, environment.networks))}" if environment.networks else proof


def callers_of(policy: Policy, way: Way) -> Iterator[Principal]:
    """Yield the harnesses that may ask: one that is a user speaks for that user alone."""
    for principal in policy.principals.values():
        if principal.role is not Role.HARNESS or principal.partner != way.partner:
            continue
        if principal.user is not None and all(user != principal.user for user, _ in way.subjects):
            continue
        yield principal


def caller_text(principal: Principal) -> str:
    """Return who a principal is, and how it proves that."""
    return f"{principal.id} ({role_text(principal)}), proven by {proof_text(principal)}"


def block_of(policy: Policy, blocks: Mapping[Selector, int], way: Way) -> str:
    """Return a block that closes the whole way now; of a part of it, which part."""
    closed: dict[str, int] = {}
    asked = 0
    for user, workload in sorted(way.subjects, key=str):
        for model in way.models:
            for place in way.environments:
                asked += 1
                ask = Ask(way.realm, way.partner, user, workload, (model,), place)
                verdict = decide(ask, policy, blocks) if blocks else None
                if isinstance(verdict, Denied):
                    closed[verdict.why.rule] = closed.get(verdict.why.rule, 0) + 1
    if not closed:
        return ""
    rules = listed(closed)
    return rules if sum(closed.values()) == asked else f"{rules}, in part"


def _proofs_of(policy: Policy, person: str) -> str:
    proofs = [f"{one.id} proven by {proof_text(one)}" for one in policy.principals.values() if _person(one) == person]
    return listed(proofs) if proofs else "nobody is that person now"


def _person(principal: Principal) -> str:
    return principal.person if principal.person is not None else principal.id


def _vouching(policy: Policy) -> Iterator[Changer]:
    """Yield each provider by whose word somebody is let in: it can say it of anybody."""
    for provider in policy.providers.values():
        who = [
            principal.id
            for principal in policy.principals.values()
            if principal.rule is not None and principal.rule.provider == provider.name
        ]
        places = [
            f"environment {name} of {partner.name}"
            for partner in policy.partners.values()
            for name, environment in partner.environments.items()
            if environment.rule is not None and environment.rule.provider == provider.name
        ]
        if who or places:
            yield Changer("provider", provider.issuer, f"can pretend to be {listed([*who, *places])}")
