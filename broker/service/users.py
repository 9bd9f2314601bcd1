"""Users who prove themselves beside the workload that calls: whom realms with two subjects ask for."""

from collections.abc import Sequence

from broker.domain.asking import Ask
from broker.errors import Forbidden, Unauthenticated
from broker.service.calling import Caller, IdentityProof, ProvenUser, identify
from broker.service.policies import PolicyInForce


def prove_user(proof: IdentityProof, partner: str | None, in_force: PolicyInForce) -> ProvenUser:
    """Return which user of `partner` an identity proves.

    Raises:
        Unauthenticated: None, or it is another partner's, a program's, or a human's who is no user.
    """
    provider = in_force.policy.providers.get(proof.provider)
    if provider is None or not provider.for_humans:
        raise Unauthenticated(f"user_token: provider {proof.provider} vouches for no humans", hint=_HINT)
    human = identify(proof, in_force, frozenset())
    if human.user is None or partner is None or human.partner != partner:
        # Whose else it is, is nobody's business here.
        raise Unauthenticated(f"user_token: it proves no user of {partner}", hint=_HINT)
    return ProvenUser(human.user, proof)


def must_prove_users(caller: Caller, asks: Sequence[Ask], in_force: PolicyInForce) -> None:
    """Refuse a user who is named without proof, in realms that need two subjects, or in place of the proven one.

    Raises:
        Unauthenticated: What was shown for the user proves none under this policy (P3).
        Forbidden: A user is named who is not proven.
    """
    proven = None
    if caller.beside is not None:
        proven = prove_user(caller.beside.proof, caller.partner, in_force).name
    for ask in asks:
        if ask.user is None or ask.user in (caller.user, proven):
            continue
        if ask.run is not None and ask.run in caller.runs:
            # Proven when the run was opened, for this user and no other; who has the run's key goes on with it.
            continue
        if proven is not None:
            raise Forbidden(f"user_token proves {proven}, and {ask.user} is named", hint="name the user that it proves")
        realm = in_force.policy.realms.get(ask.realm)
        if realm is not None and realm.needs_both:
            raise Forbidden(
                f"realm {ask.realm} takes nobody's word for a user, and {ask.user} is not proven",
                hint="send the user's own identity token as user_token, or use a run that was opened with it",
            )


_HINT = "send the identity token of a human whom the policy knows as a user of the caller's partner"
