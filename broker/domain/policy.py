"""The policy: realms, partners, models, grants and principals, with what must be looked up fast."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from broker.token.identifiers import bare_name

# Names of drills. No policy may define them, so no grant can cover a canary, nor a canary anything that is granted.
CANARY_PARTNER = "broker-drill"
CANARY_MODEL = "broker-drill-canary"


class Role(StrEnum):
    """What a principal is."""

    HARNESS = "harness"
    VERIFIER = "verifier"
    ADMIN = "admin"
    AUDITOR = "auditor"


@dataclass(frozen=True, slots=True)
class Realm:
    """A separate path to models. Shares neither issuer nor audience with another realm (P8)."""

    name: str
    issuer: str
    audience: str
    max_ttl_s: int
    lease_ms: int = 5000
    heartbeat_ms: int = 1000


@dataclass(frozen=True, slots=True)
class Environment:
    """A place from which a partner may work, recognised by a client certificate's URI SAN."""

    name: str
    certificate: str


@dataclass(frozen=True, slots=True)
class Partner:
    """An outside organization. A user is a human, a workload a program; no name is both."""

    name: str
    labels: tuple[str, ...]
    users: frozenset[str]
    workloads: frozenset[str]
    environments: Mapping[str, Environment]


@dataclass(frozen=True, slots=True)
class Limits:
    """Optional bounds of a grant; None is no bound of its own."""

    batch: int | None = None


@dataclass(frozen=True, slots=True)
class Grant:
    """This partner may use these models in this realm, from these environments, for these principals."""

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

    def covers_model(self, model: str) -> bool:
        """Tell whether it grants a model; a bare name grants each instance, an instance only itself."""
        return model in self.models or bare_name(model) in self.models


@dataclass(frozen=True, slots=True)
class Principal:
    """Who may call: a URI, one role, and the partner or realm that the role is for.

    A harness that is itself one of its partner's workloads has tokens minted for that one, unless it
    names another user or workload.
    """

    id: str
    role: Role
    partner: str | None = None
    realm: str | None = None
    workload: str | None = None


@dataclass(frozen=True, slots=True)
class Policy:
    """Everything that allows. What it does not say is denied."""

    realms: Mapping[str, Realm] = field(default_factory=dict)
    models: frozenset[str] = frozenset()
    partners: Mapping[str, Partner] = field(default_factory=dict)
    grants: tuple[Grant, ...] = ()
    principals: Mapping[str, Principal] = field(default_factory=dict)
    _grants_at: Mapping[tuple[str, str], tuple[Grant, ...]] = field(init=False, repr=False, compare=False)
    _places: Mapping[str, tuple[str, str]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        grants: dict[tuple[str, str], tuple[Grant, ...]] = {}
        # The longest maximum first, then by id: the order in which grants are tried, whatever the file's.
        for grant in sorted(self.grants, key=lambda grant: (-grant.max_ttl_s, grant.id)):
            at = (grant.partner, grant.realm)
            grants[at] = (*grants.get(at, ()), grant)
        object.__setattr__(self, "_grants_at", grants)
        places = {
            environment.certificate: (partner.name, environment.name)
            for partner in self.partners.values()
            for environment in partner.environments.values()
        }
        object.__setattr__(self, "_places", places)

    def grants_for(self, partner: str, realm: str) -> tuple[Grant, ...]:
        """Return the grants of a partner in a realm, in the order in which they are tried."""
        return self._grants_at.get((partner, realm), ())

    def environment_of(self, uri: str) -> tuple[str, str] | None:
        """Return (partner, environment) that this certificate proves, or None."""
        return self._places.get(uri)

    def knows_model(self, model: str) -> bool:
        """Tell whether the model, or the name it is an instance of, is in the list."""
        return model in self.models or bare_name(model) in self.models

    def labels_of(self, partner: str) -> tuple[str, ...]:
        """Return a partner's labels, sorted, as tokens carry them."""
        known = self.partners.get(partner)
        return known.labels if known is not None else ()


EMPTY_POLICY = Policy()
