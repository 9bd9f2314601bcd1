"""Who vouches for an identity, and which of its claims make it somebody whom the policy knows."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Network, IPv6Network, ip_address

Network = IPv4Network | IPv6Network


class ProviderKind(StrEnum):
    """How a provider names its subjects."""

    OIDC = "oidc"
    GITHUB = "github"
    KUBERNETES = "kubernetes"


# What a provider never gives to anybody else: names of repositories, owners and service accounts are given anew
# after they were deleted ("Sub:jugation"), these are not. The first one is what rules are looked up by.
IMMUTABLE: Mapping[ProviderKind, tuple[str, ...]] = {
    ProviderKind.OIDC: ("sub",),
    ProviderKind.GITHUB: ("repository_id", "repository_owner_id"),
    ProviderKind.KUBERNETES: ("uid",),
}


@dataclass(frozen=True, slots=True)
class Provider:
    """One issuer of identities: of humans or of workloads, never both. `review`: TokenReview of that API server."""

    name: str
    kind: ProviderKind
    for_humans: bool
    issuer: str
    audience: str
    review: str = ""


@dataclass(frozen=True, slots=True)
class TrustRule:
    """An identity of `provider` that has each of `claims`, compared as a whole and letter by letter."""

    provider: str
    claims: tuple[tuple[str, str], ...]

    def matches(self, provider: str, claims: Mapping[str, str]) -> bool:
        """Tell whether a verified identity is meant. A rule without claims means nobody."""
        return provider == self.provider and bool(self.claims) and self.claims_hold(claims)

    def claims_hold(self, claims: Mapping[str, str]) -> bool:
        """Tell whether each claim is there, with exactly this value."""
        return all(claims.get(name) == value for name, value in self.claims)

    def subject(self, kind: ProviderKind) -> str:
        """Return the value of the provider's first immutable claim; empty when the rule has none."""
        return dict(self.claims).get(IMMUTABLE[kind][0], "")


def is_within(address: str, networks: tuple[Network, ...]) -> bool:
    """Tell whether an address lies in one of `networks`; any does where none is named, and no unreadable one does."""
    if not networks:
        return True
    try:
        place = ip_address(address)
    except ValueError:
        return False
    # An IPv4 caller of a dual-stack socket has an IPv4-mapped address.
    mapped = getattr(place, "ipv4_mapped", None)
    return any((mapped or place) in network for network in networks)
