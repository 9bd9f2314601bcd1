"""Who vouches for an identity, and which of its claims make it somebody whom the policy knows."""

import re
from collections.abc import Iterator, Mapping
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

GITHUB_ISSUER = "https://token.actions.githubusercontent.com"

_FORMS: Mapping[ProviderKind, Mapping[str, tuple[re.Pattern[str], str]]] = {
    ProviderKind.OIDC: {},
    ProviderKind.GITHUB: {
        "repository_id": (re.compile(r"[1-9][0-9]{0,19}", re.ASCII), "a number; see: gh api repos/OWNER/NAME --jq .id"),
        "repository_owner_id": (
            re.compile(r"[1-9][0-9]{0,19}", re.ASCII),
            "a number; see: gh api repos/OWNER/NAME --jq .owner.id",
        ),
    },
    ProviderKind.KUBERNETES: {
        "uid": (
            re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII),
            "a uid; see: kubectl get serviceaccount NAME -o jsonpath={.metadata.uid}",
        ),
    },
}
# Subjects made of names: they are somebody else's once the name is. GitLab puts the project's path there.
_NAMES_IN_SUB: Mapping[str, str] = {
    "repo:": "use a provider of kind github, and its numbers",
    "system:serviceaccount:": "use a provider of kind kubernetes, and its uid",
    "project_path:": "add project_id and namespace_id, which are not",
}
_NUMBERS_BESIDE = frozenset({"project_id", "namespace_id"})


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

    def could_share(self, other: "TrustRule") -> bool:
        """Tell whether one identity can fulfil both rules: none of their claims tells them apart."""
        mine = dict(self.claims)
        return self.provider == other.provider and all(mine.get(name, value) == value for name, value in other.claims)


def mistaken_claims(kind: ProviderKind, claims: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield (claim, problem and fix) for each claim that can never be right, or is right for a stranger some day."""
    for name, (form, what) in _FORMS[kind].items():
        if name in claims and not form.fullmatch(claims[name]):
            yield name, f"is not {what}"
    if kind is ProviderKind.OIDC:
        for start, fix in _NAMES_IN_SUB.items():
            is_mended = start == "project_path:" and set(claims) >= _NUMBERS_BESIDE
            if claims.get("sub", "").startswith(start) and not is_mended:
                yield "sub", f"is made of names, which are given anew to others; {fix}"


def is_githubs(issuer: str) -> bool:
    """Tell whether an issuer is GitHub Actions', of all or of one enterprise."""
    return issuer == GITHUB_ISSUER or issuer.startswith(f"{GITHUB_ISSUER}/")


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
