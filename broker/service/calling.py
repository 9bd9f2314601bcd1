"""Who is calling: from a proof to a role, judged anew on each call."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from broker.domain.policy import Environment, Principal, Role
from broker.domain.trust import is_within
from broker.errors import Forbidden, Unauthenticated
from broker.service.policies import PolicyInForce


@dataclass(frozen=True, slots=True)
class CertificateProof:
    """A client certificate that the TLS layer has verified. `network` is the address that the call came from."""

    uri: str
    not_before: datetime | None = None
    network: str = ""
    sha256: bytes = b""  # of the certificate's DER

    def __str__(self) -> str:
        return "certificate"


@dataclass(frozen=True, slots=True)
class IdentityProof:
    """A token of one of the policy's providers, verified in every respect but whom the policy takes it for.

    `authenticated_at` is when the human logged in, as the provider says; `key` the thumbprint (RFC 7638) of a key
    that the token is bound to.
    """

    provider: str
    claims: Mapping[str, str]
    authenticated_at: datetime | None = None
    key: str | None = None
    network: str = ""

    def __str__(self) -> str:
        return f"identity {self.provider}"


@dataclass(frozen=True, slots=True)
class RunProof:
    """Possession of the key of an open run: it is called by whoever opened it, from where it was opened."""

    run: str
    principal: str
    partner: str
    environment: str | None
    user: str | None
    workload: str | None
    key: str
    network: str = ""

    def __str__(self) -> str:
        return "run"


Proof = CertificateProof | IdentityProof | RunProof


@dataclass(frozen=True, slots=True)
class ProvenUser:
    """A user of the caller's partner, and what proved them."""

    name: str
    proof: IdentityProof


@dataclass(frozen=True, slots=True)
class Caller:
    """A principal as the policy in force knows it."""

    principal: str
    role: Role
    partner: str | None = None
    realm: str | None = None
    environment: str | None = None
    workload: str | None = None
    user: str | None = None
    person: str | None = None
    proof: Proof = field(default=CertificateProof(""), compare=False)
    beside: ProvenUser | None = field(default=None, compare=False)
    """The user who proved themselves for this call, on whose behalf the caller asks."""
    runs: frozenset[str] = field(default=frozenset(), compare=False)
    """Runs that were opened for a user, and whose keys are proven by this call."""

    @property
    def proven_by(self) -> str:
        """How caller and user proved themselves, as the ledger keeps it."""
        return str(self.proof) if self.beside is None else f"{self.proof}, user by {self.beside.proof}"

    def must_be(self, *roles: Role) -> None:
        """Refuse unless the role is one of `roles`. Raises Forbidden."""
        if self.role not in roles:
            wanted = " or ".join(role.value for role in roles)
            raise Forbidden(
                f"{self.principal} is {self.role.value}; this needs the role {wanted}",
                hint="use another identity, or ask an admin to change `principals` in the policy",
            )

    def must_act_for(self, partner: str) -> None:
        """Refuse a partner other than the caller's own. Raises Forbidden."""
        if self.partner is None or self.partner != partner:
            raise Forbidden(
                f"{self.principal} may act for its own partner only",
                hint="name the partner that the policy gives to this principal",
            )

    def must_speak_for(self, user: str | None, workload: str | None) -> None:
        """Refuse to let a human, or a run, speak for anybody but the user and the workload that it is.

        Raises:
            Forbidden: Another one was named.
        """
        if self.user is not None and user != self.user:
            raise Forbidden(f"{self.principal} speaks for user {self.user} only", hint=f"name the user {self.user}")
        is_own = isinstance(self.proof, RunProof) or self.user is not None
        if is_own and workload != self.workload:
            own = "no workload" if self.workload is None else f"workload {self.workload} only"
            raise Forbidden(f"{self.principal} speaks for {own}", hint="leave the workload out, or open another run")


def identify(proof: Proof, in_force: PolicyInForce, admins: frozenset[str]) -> Caller:
    """Recognise who proved themselves.

    `admins` come from the configuration, so that a first policy can be applied.

    Raises:
        Unauthenticated: The policy knows nobody like that, or more than one.
    """
    match proof:
        case CertificateProof(uri):
            return _by_certificate(proof, uri, in_force, admins)
        case IdentityProof():
            return _by_identity(proof, in_force)
        case RunProof():
            return _by_run(proof, in_force)


def must_still_be_known(caller: Caller, in_force: PolicyInForce) -> None:
    """Refuse a caller who was recognised under an earlier policy and is another under this one (P3).

    Raises:
        Forbidden, Unauthenticated: What is decided under this policy must not be done for it.
    """
    if identify(caller.proof, in_force, frozenset()) != caller:
        raise Forbidden(f"the policy no longer knows {caller.principal} as it did", hint="ask an admin")


def _by_certificate(proof: CertificateProof, uri: str, in_force: PolicyInForce, admins: frozenset[str]) -> Caller:
    policy = in_force.policy
    principal = policy.principals.get(uri)
    if principal is not None and principal.rule is None:
        place = policy.environment_of(uri)
        environment = None
        if place is not None and place[0] == principal.partner:
            environment = policy.partners[place[0]].environments[place[1]]
        return _caller(principal, _seen_from(environment, proof.network), proof)
    if uri in admins:
        return Caller(uri, Role.ADMIN, proof=proof)
    raise Unauthenticated(f"{uri} is not a principal of the policy")


def _by_identity(proof: IdentityProof, in_force: PolicyInForce) -> Caller:
    provider = in_force.policy.providers.get(proof.provider)
    # It was verified a moment ago, perhaps when another issuer went by this name (P3).
    if provider is not None and proof.claims.get("iss", provider.issuer) != provider.issuer:
        raise Unauthenticated(f"provider {proof.provider} is another issuer now", hint="get a new identity token")
    found = in_force.policy.principals_proven(proof.provider, proof.claims)
    if len(found) != 1:
        # Whom it would have been is nobody's business who is not let in.
        what = "no principal" if not found else "more than one principal"
        raise Unauthenticated(
            f"the identity of provider {proof.provider} is {what} of the policy",
            hint="ask an admin to name it, and it alone, under principals",
        )
    [principal] = found
    environment = in_force.policy.environment_proven(principal.partner or "", proof.provider, proof.claims)
    return _caller(principal, _seen_from(environment, proof.network), proof)


def _by_run(proof: RunProof, in_force: PolicyInForce) -> Caller:
    principal = in_force.policy.principals.get(proof.principal)
    if principal is None or principal.role is not Role.HARNESS or principal.partner != proof.partner:
        raise Unauthenticated(f"{proof.principal}, who opened the run, is no harness of {proof.partner} any more")
    known = in_force.policy.partners.get(proof.partner)
    place = known.environments.get(proof.environment or "") if known is not None else None
    return Caller(
        principal.id,
        principal.role,
        principal.partner,
        environment=_seen_from(place, proof.network),
        workload=proof.workload,
        user=proof.user,
        proof=proof,
    )


def _seen_from(environment: Environment | None, network: str) -> str | None:
    """Return the environment's name, unless the call came from outside of its networks."""
    return environment.name if environment is not None and is_within(network, environment.networks) else None


def _caller(principal: Principal, environment: str | None, proof: Proof) -> Caller:
    return Caller(
        principal.id,
        principal.role,
        principal.partner,
        principal.realm,
        environment,
        principal.workload,
        principal.user,
        principal.person,
        proof,
    )
