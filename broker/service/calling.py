"""Who is calling: from a certificate's URI to a role, judged anew on each call."""

from dataclasses import dataclass

from broker.domain.policy import Role
from broker.errors import Forbidden, Unauthenticated
from broker.service.policies import PolicyInForce


@dataclass(frozen=True, slots=True)
class Caller:
    """A principal as the policy in force knows it."""

    principal: str
    role: Role
    partner: str | None = None
    realm: str | None = None
    environment: str | None = None
    workload: str | None = None

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


def identify(uri: str, in_force: PolicyInForce, admins: frozenset[str]) -> Caller:
    """Recognise the principal `uri`; `admins` come from the configuration, so that a first policy can be applied.

    Raises:
        Unauthenticated: The policy does not know it.
    """
    principal = in_force.policy.principals.get(uri)
    if principal is not None:
        place = in_force.policy.environment_of(uri)
        environment = place[1] if place is not None and place[0] == principal.partner else None
        return Caller(uri, principal.role, principal.partner, principal.realm, environment, principal.workload)
    if uri in admins:
        return Caller(uri, Role.ADMIN)
    raise Unauthenticated(f"{uri} is not a principal of the policy")


def must_still_be_known(caller: Caller, in_force: PolicyInForce) -> None:
    """Refuse a caller who was recognised under an earlier policy and is another under this one (P3).

    Raises:
        Forbidden, Unauthenticated: What is decided under this policy must not be done for it.
    """
    if identify(caller.principal, in_force, frozenset()) != caller:
        raise Forbidden(f"the policy no longer knows {caller.principal} as it did", hint="ask an admin")
