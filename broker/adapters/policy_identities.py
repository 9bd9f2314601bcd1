"""Trust rules of a policy file that would let in whoever gets a recycled name, or two at once."""

from collections.abc import Iterable, Iterator

from broker.adapters.policy_forms import IdentityForm, PolicyForm, PrincipalForm
from broker.adapters.policy_yaml import Path
from broker.domain.trust import IMMUTABLE, ProviderKind, TrustRule, is_githubs, mistaken_claims

Problem = tuple[Path, str]
"""Where it is, and what is wrong and how to mend it."""


def person_of(form: PolicyForm, principal: PrincipalForm) -> str | None:
    """Return which human a principal is, or None: it is a program, or nobody says."""
    if principal.person is not None:
        return principal.person
    if principal.identity is not None:
        provider = form.providers.get(principal.identity.provider)
        if provider is not None and provider.for_ == "humans":
            return principal.id
    return None


def identity_problems(form: PolicyForm) -> Iterator[Problem]:
    """Return what is wrong with providers, and with the identities of principals and environments."""
    yield from _provider_problems(form)
    for position, principal in enumerate(form.principals):
        at: Path = ("principals", position)
        yield from _proof_problems(principal, at)
        if principal.identity is not None:
            yield from _rule_problems(form, principal.identity, (*at, "identity"))
            yield from _kind_problems(form, principal, at)
        if principal.role == "approver" and person_of(form, principal) is None:
            yield at, "an approver must be a human; add person, or an identity of a provider for humans"
    rules = (
        (("principals", n, "identity"), principal.id, principal.identity) for n, principal in enumerate(form.principals)
    )
    yield from _shared_problems(form, rules, "principal")
    for name, partner in form.partners.items():
        places = (
            (("partners", name, "environments", place, "identity"), place, environment.identity)
            for place, environment in partner.environments.items()
        )
        yield from _shared_problems(form, places, "environment")
        for place, environment in partner.environments.items():
            at = ("partners", name, "environments", place)
            if (environment.certificate is None) == (environment.identity is None):
                yield at, "needs a certificate or an identity, one of the two; add or remove one"
            if environment.identity is not None:
                yield from _rule_problems(form, environment.identity, (*at, "identity"))
                if _is_for(form, environment.identity, "humans"):
                    yield (*at, "identity", "provider"), "is for humans, and no human is a place; use one for workloads"


def _provider_problems(form: PolicyForm) -> Iterator[Problem]:
    issuers: dict[str, str] = {}
    for name, provider in form.providers.items():
        other = issuers.setdefault(provider.issuer, name)
        if other != name:
            yield ("providers", name, "issuer"), f"is the issuer of {other}, too; one issuer is one provider"
        if is_githubs(provider.issuer) and provider.kind != "github":
            yield ("providers", name, "kind"), "is not that of the issuer, which is GitHub Actions; write github"
        if provider.kind != "oidc" and provider.for_ == "humans":
            yield ("providers", name, "for"), f"a {provider.kind} provider knows no humans; write workloads"
        if provider.review is not None and provider.kind != "kubernetes":
            yield ("providers", name, "review"), f"a {provider.kind} provider has no TokenReview; remove it"


def _proof_problems(principal: PrincipalForm, at: Path) -> Iterator[Problem]:
    by_certificate = principal.id.startswith("spiffe://")
    if by_certificate and principal.identity is not None:
        yield (*at, "identity"), "beside a certificate; give the identity a principal with a name as its id"
    if not by_certificate and principal.identity is None:
        yield (*at, "id"), "is proven by nothing; use a spiffe:// id for a certificate, or add an identity"
    if not by_certificate and principal.role == "verifier":
        yield (*at, "id"), "a verifier needs a certificate; use a spiffe:// id"


def _rule_problems(form: PolicyForm, identity: IdentityForm, at: Path) -> Iterator[Problem]:
    provider = form.providers.get(identity.provider)
    if provider is None:
        yield (*at, "provider"), f"there is no provider {identity.provider}; add it under providers"
        return
    for claim in IMMUTABLE[ProviderKind(provider.kind)]:
        if claim not in identity.claims:
            # Names are given again to somebody else; only what is immutable tells who it is.
            yield (*at, "claims"), f"lack {claim}, which a {provider.kind} provider never gives to another; add it"

    for claim, problem in mistaken_claims(ProviderKind(provider.kind), identity.claims):
        yield (*at, "claims", claim), problem


def _shared_problems(
    form: PolicyForm, rules: Iterable[tuple[Path, str, IdentityForm | None]], what: str
) -> Iterator[Problem]:
    """Find identities that could be two at once: whose they are would depend on who looks."""
    by_subject: dict[tuple[str, str], list[tuple[str, TrustRule]]] = {}
    for at, name, identity in rules:
        provider = form.providers.get(identity.provider) if identity is not None else None
        if identity is None or provider is None:
            continue
        rule = TrustRule(identity.provider, tuple(identity.claims.items()))
        # Most rules differ in what never changes: looked up, ten thousand principals are no hundred million pairs.
        subject = rule.subject(ProviderKind(provider.kind))
        others = by_subject.setdefault((identity.provider, subject), [])
        other = next((known for known, other in others if rule.could_share(other)), None)
        if other is not None:
            yield at, f"can be {other}'s, too; one identity is one {what}: tell them apart by a claim that both name"
        others.append((name, rule))


def _kind_problems(form: PolicyForm, principal: PrincipalForm, at: Path) -> Iterator[Problem]:
    assert principal.identity is not None  # noqa: S101 - the caller looked
    if _is_for(form, principal.identity, "humans"):
        if principal.workload is not None:
            yield (*at, "workload"), "is a program, and its provider is for humans; use user"
        if principal.role == "harness" and principal.user is None:
            yield at, "a harness whose provider is for humans must say which user it is; add user"
    elif _is_for(form, principal.identity, "workloads"):
        for field in ("user", "person"):
            if getattr(principal, field) is not None:
                yield (*at, field), "is a human, and its provider is for workloads; remove it"


def _is_for(form: PolicyForm, identity: IdentityForm, kind: str) -> bool:
    provider = form.providers.get(identity.provider)
    return provider is not None and provider.for_ == kind
