"""What a grant demands that its tokens are bound to."""

from broker.domain.policy import Binding, Policy
from broker.errors import BindingNeeded
from broker.service.enforcing import Demand, enforce
from broker.service.metering import Meter
from broker.token.binding import Bound, Method

_SATISFIED = {
    Binding.MTLS: frozenset({Method.MTLS}),
    Binding.DPOP: frozenset({Method.DPOP}),
    Binding.ANY: frozenset(Method),
}
_WHAT = {
    Binding.MTLS: "a client certificate",
    Binding.DPOP: "a DPoP key",
    Binding.ANY: "a client certificate or a DPoP key",
}


def must_be_bound(bound: Bound | None, grant_id: str, policy: Policy, meter: Meter, *, where: str = "") -> None:
    """Refuse a token that is not bound as the grant that allows it demands. Raises BindingNeeded."""
    grant = policy.grant(grant_id)
    if grant is None or grant.binding is Binding.NONE:
        return
    if bound is not None and bound.method in _SATISFIED[grant.binding]:
        return
    message = f"{where}grant {grant.id} demands tokens that are bound to {_WHAT[grant.binding]}"
    enforce(grant, Demand.BINDING, BindingNeeded(message, metadata={"binding": grant.binding.value}), meter)
