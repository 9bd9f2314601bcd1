"""The policy: realms, partners, models, grants and principals, with what must be looked up fast."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import date
from enum import StrEnum

from broker.domain.trust import Network, Provider, TrustRule
from broker.token.identifiers import bare_name

# Names of drills. No policy may define them, so no grant can cover a canary, nor a canary anything that is granted.
CANARY_PARTNER = "broker-drill"
CANARY_MODEL = "broker-drill-canary"


class Role(StrEnum):
    """What a principal is."""

    HARNESS = "harness"
    VERIFIER = "verifier"
    ADMIN = "admin"
    SECURITY = "security"
    APPROVER = "approver"
    OPERATOR = "operator"
    AUDITOR = "auditor"
    PARTNER_ADMIN = "partner-admin"


class Binding(StrEnum):
    """To what a token must be bound: to a client certificate (RFC 8705), a DPoP key (RFC 9449), or either."""

    NONE = "none"
    MTLS = "mtls"
    DPOP = "dpop"
    ANY = "any"


class Receipts(StrEnum):
    """Which receipts of uses a realm's verifiers must keep."""

    NONE = "none"
    SUMMED = "summed"
    EACH = "each"


@dataclass(frozen=True, slots=True)
class Realm:
    """A separate path to models. Shares neither issuer nor audience with another realm (P8).

    Where it `needs_both`, a token is for a user and the workload that acts for them.
    """

    name: str
    issuer: str
    audience: str
    max_ttl_s: int
    lease_ms: int = 5000
    heartbeat_ms: int = 1000
    needs_both: bool = False
    labels: tuple[str, ...] = ()
    receipts: Receipts = Receipts.NONE


@dataclass(frozen=True, slots=True)
class Environment:
    """A place from which a partner may work: a certificate's URI SAN or an identity, and optionally a network."""

    name: str
    certificate: str = ""
    rule: TrustRule | None = None
    networks: tuple[Network, ...] = ()


@dataclass(frozen=True, slots=True)
class Quota:
    """Bounds on what one partner, user or grant has at a time; None is no bound."""

    mints_per_minute: int | None = None
    live_tokens: int | None = None
    live_runs: int | None = None


NO_QUOTA = Quota()


@dataclass(frozen=True, slots=True)
class Partner:
    """An outside organization. A user is a human, a workload a program; no name is both."""

    name: str
    labels: tuple[str, ...]
    users: frozenset[str]
    workloads: frozenset[str]
    environments: Mapping[str, Environment]
    quota: Quota = NO_QUOTA


@dataclass(frozen=True, slots=True)
class Limits:
    """Optional bounds of a grant; None is no bound of its own. `user`: for each user or workload by itself."""

    batch: int | None = None
    tokens_per_run: int | None = None
    uses_per_token: int | None = None
    all: Quota = NO_QUOTA
    user: Quota = NO_QUOTA


@dataclass(frozen=True, slots=True)
class ApprovalRule:
    """`needed` different people of `group` must approve within `window_s` of the request.

    What they approved can be used for `valid_s`; each must have logged in at most `login_s` before.
    """

    needed: int
    group: str
    window_s: int
    valid_s: int
    login_s: int


@dataclass(frozen=True, slots=True)
class Grant:
    """This partner may use these models in this realm, from these environments, for these principals.

    With `partner` empty it is for each partner that has all of `partner_labels`. A model is covered by name, or by
    having all of `model_labels`. `delegation` is how deep children of a token may go.
    """

    id: str
    partner: str
    realm: str
    models: frozenset[str]
    environments: frozenset[str]
    users: frozenset[str]
    workloads: frozenset[str]
    default_ttl_s: int
    max_ttl_s: int
    limits: Limits = Limits()
    partner_labels: frozenset[str] = frozenset()
    model_labels: frozenset[str] = frozenset()
    binding: Binding = Binding.NONE
    delegation: int = 0
    approvals: ApprovalRule | None = None
    is_audit_only: bool = False
    review_by: date | None = None

    def is_for(self, partner: Partner) -> bool:
        """Tell whether it is this partner's, by name or by labels."""
        if self.partner:
            return self.partner == partner.name
        return bool(self.partner_labels) and self.partner_labels <= set(partner.labels)

    def covers_model(self, model: str, labels: frozenset[str] = frozenset()) -> bool:
        """Tell whether it grants a model that has `labels`.

        A bare name grants each instance, an instance only itself.
        """
        by_name = model in self.models or bare_name(model) in self.models
        return by_name or (bool(self.model_labels) and self.model_labels <= labels)


@dataclass(frozen=True, slots=True)
class Principal:
    """Who may call: proven by the certificate that `id` names or by an identity, with one role.

    A harness that is itself one of its partner's workloads has tokens minted for that one, unless it names another
    user or workload; one that is a user, a human, speaks for that user alone. `person` is one human, whatever the
    names that they go by.
    """

    id: str
    role: Role
    partner: str | None = None
    realm: str | None = None
    workload: str | None = None
    user: str | None = None
    person: str | None = None
    rule: TrustRule | None = None


@dataclass(frozen=True, slots=True)
class Policy:
    """Everything that allows. What it does not say is denied."""

    realms: Mapping[str, Realm] = field(default_factory=dict)
    models: frozenset[str] = frozenset()
    partners: Mapping[str, Partner] = field(default_factory=dict)
    grants: tuple[Grant, ...] = ()
    principals: Mapping[str, Principal] = field(default_factory=dict)
    providers: Mapping[str, Provider] = field(default_factory=dict)
    groups: Mapping[str, frozenset[str]] = field(default_factory=dict)
    labels_by_model: Mapping[str, frozenset[str]] = field(default_factory=dict)
    denies_overdue: bool = False
    """A grant whose review is overdue allows nothing new."""
    overdue: frozenset[str] = field(default=frozenset(), compare=False)
    """Grants whose review date is past, on the day that the policy was last judged by `reviewed`."""
    _grants_at: Mapping[tuple[str, str], tuple[Grant, ...]] = field(init=False, repr=False, compare=False)
    _grants_by_id: Mapping[str, Grant] = field(init=False, repr=False, compare=False)
    _places: Mapping[str, tuple[str, str]] = field(init=False, repr=False, compare=False)
    _identities: Mapping[tuple[str, str], tuple[Principal, ...]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_grants_at", self._sorted_grants())
        object.__setattr__(self, "_grants_by_id", {grant.id: grant for grant in self.grants})
        places = {
            environment.certificate: (partner.name, environment.name)
            for partner in self.partners.values()
            for environment in partner.environments.values()
            if environment.certificate
        }
        object.__setattr__(self, "_places", places)
        identities: dict[tuple[str, str], tuple[Principal, ...]] = {}
        for principal in self.principals.values():
            if principal.rule is not None and principal.rule.provider in self.providers:
                at = (principal.rule.provider, principal.rule.subject(self.providers[principal.rule.provider].kind))
                identities[at] = (*identities.get(at, ()), principal)
        object.__setattr__(self, "_identities", identities)

    def _sorted_grants(self) -> Mapping[tuple[str, str], tuple[Grant, ...]]:
        """Return the grants of each partner: the longest maximum first, then by id, whatever the file's order."""
        found: dict[tuple[str, str], list[Grant]] = {}
        for grant in sorted(self.grants, key=lambda grant: (-grant.max_ttl_s, grant.id)):
            if grant.partner:
                names = [grant.partner]
            else:
                names = [partner.name for partner in self.partners.values() if grant.is_for(partner)]
            for name in names:
                found.setdefault((name, grant.realm), []).append(grant)
        return {at: tuple(grants) for at, grants in found.items()}

    @property
    def changes_by_day(self) -> bool:
        """Tell whether what it allows can change without a new version."""
        return self.denies_overdue

    def grants_for(self, partner: str, realm: str) -> tuple[Grant, ...]:
        """Return the grants of a partner in a realm, in the order in which they are tried."""
        return self._grants_at.get((partner, realm), ())

    def realms_of(self, partner: str) -> frozenset[str]:
        """Return the realms in which a partner has a grant: it is told of no other."""
        return frozenset(realm for name, realm in self._grants_at if name == partner)

    def grant(self, grant_id: str) -> Grant | None:
        """Return the grant of this id."""
        return self._grants_by_id.get(grant_id)

    def environment_of(self, uri: str) -> tuple[str, str] | None:
        """Return (partner, environment) that this certificate proves, or None."""
        return self._places.get(uri)

    def environment_proven(self, partner: str, provider: str, claims: Mapping[str, str]) -> Environment | None:
        """Return the partner's one environment that this identity proves; None where there is none, or not just one."""
        known = self.partners.get(partner)
        if known is None:
            return None
        proven = [
            environment
            for environment in known.environments.values()
            if environment.rule is not None and environment.rule.matches(provider, claims)
        ]
        return proven[0] if len(proven) == 1 else None

    def principals_proven(self, provider: str, claims: Mapping[str, str]) -> tuple[Principal, ...]:
        """Return the principals whose trust rule a verified identity fulfils: more than one is one too many."""
        known = self.providers.get(provider)
        if known is None:
            return ()
        subject = TrustRule(provider, tuple(claims.items())).subject(known.kind)
        candidates = self._identities.get((provider, subject), ())
        return tuple(one for one in candidates if one.rule is not None and one.rule.matches(provider, claims))

    def knows_model(self, model: str) -> bool:
        """Tell whether the model, or the name it is an instance of, is in the list."""
        return model in self.models or bare_name(model) in self.models

    def labels_of(self, partner: str) -> tuple[str, ...]:
        """Return a partner's labels, sorted."""
        known = self.partners.get(partner)
        return known.labels if known is not None else ()

    def labels_of_model(self, model: str) -> frozenset[str]:
        """Return a model's labels: an instance has those of its name, too."""
        own, of_all = self.labels_by_model.get(model), self.labels_by_model.get(bare_name(model))
        return (own or frozenset()) | (of_all or frozenset())

    def labels_for(self, partner: str, realm: str, models: tuple[str, ...]) -> tuple[str, ...]:
        """Return what a token is labelled with: the labels of its partner, its realm and its models, sorted."""
        known = self.realms.get(realm)
        labels = self.labels_of(partner)
        extra = known.labels if known is not None else ()
        if not extra and not self.labels_by_model:
            return labels
        # A token for a name reaches each instance of it, and a revocation by an instance's label must reach the token.
        of_models = {
            label
            for model in models
            for known_as, own in self.labels_by_model.items()
            if known_as == bare_name(model) or known_as == model or bare_name(known_as) == model
            for label in own
        }
        return tuple(sorted({*labels, *extra, *of_models}))


def reviewed(policy: Policy, today: date) -> Policy:
    """Return the policy as of `today` (UTC): a grant is overdue from the day after its review date."""
    overdue = {grant.id for grant in policy.grants if grant.review_by is not None and grant.review_by < today}
    return policy if overdue == policy.overdue else replace(policy, overdue=frozenset(overdue))


EMPTY_POLICY = Policy()
