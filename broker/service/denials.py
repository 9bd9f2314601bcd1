"""Keep each denial for a while, so that whoever was denied can ask why, by the id of the request."""

import threading
from collections import OrderedDict
from collections.abc import Sequence

from broker.domain.asking import Ask
from broker.domain.decision import Denied, Rule, decide, explain, may_know
from broker.domain.policy import Role
from broker.errors import Failure, Forbidden, NotFound
from broker.service.calling import Caller
from broker.service.explain import explained
from broker.service.explain_ports import KEEP_DENIALS, Denial, Denials
from broker.service.policies import Policies, PolicyInForce
from broker.service.ports import Clock

# What waits to be written, and what was written just now: more denials than that in a second are not all kept.
MOST_WAITING = 2000
SEES_DENIALS = (Role.HARNESS, Role.PARTNER_ADMIN, Role.ADMIN, Role.AUDITOR)
_PROBLEM = "problem-"
# Nothing was decided, or nobody was recognised.
_NO_DENIALS = frozenset(
    {
        *(
            "OVERLOADED",
            "STORE_UNAVAILABLE",
            "STORE_FULL",
            "STORE_CORRUPT",
            "ARCHIVE_UNAVAILABLE",
            "SIGNER_UNAVAILABLE",
            "CLOCK_ASTRAY",
        ),
        *("INTERNAL", "UNAUTHENTICATED", "REQUEST_REUSED", "POLICY_MOVED"),
    }
)


class DenialBook:
    """Notes denials without waiting, and finds them again. Safe for use by several threads."""

    def __init__(self, denials: Denials, policies: Policies, clock: Clock) -> None:
        self._denials = denials
        self._policies = policies
        self._clock = clock
        self._lock = threading.Lock()
        self._waiting: OrderedDict[tuple[str, str, str], Denial] = OrderedDict()

    def note(self, caller: Caller, method: str, request_id: str, asks: Sequence[Ask], failure: Failure) -> None:
        """Keep why a request of `caller`'s was refused, until the next `write`. Does no I/O."""
        if failure.reason in _NO_DENIALS or caller.partner is None:
            return
        in_force = self._policies.current()
        rules, remedy, is_partners = _judged(caller, asks, failure, in_force)
        denial = Denial(
            partner=caller.partner,
            request_id=request_id,
            principal=caller.principal,
            at=self._clock.now(),
            method=method,
            reason=failure.reason,
            message=failure.message,
            rules=rules,
            remedy=remedy,
            version=in_force.version,
            is_partners=is_partners,
        )
        key = (denial.partner, denial.principal, denial.request_id)
        with self._lock:
            self._waiting.pop(key, None)
            self._waiting[key] = denial
            while len(self._waiting) > MOST_WAITING:
                self._waiting.popitem(last=False)

    def write(self) -> None:
        """Write what waits. Raises StoreUnavailable; then it goes on waiting."""
        with self._lock:
            due = dict(self._waiting)
        self._denials.note(list(due.values()))
        with self._lock:
            for key, denial in due.items():
                if self._waiting.get(key) is denial:
                    del self._waiting[key]

    def find(self, caller: Caller, request_id: str, partner: str | None) -> Denial:
        """Return why a request was denied; who has a partner is told of its own, and what that may know.

        Raises:
            Forbidden: The role may not ask.
            NotFound: It was not denied, too long ago, or another partner's: these cannot be told apart.
        """
        caller.must_be(*SEES_DENIALS)
        if caller.partner is not None:
            if partner not in (None, caller.partner):
                raise _not_found(request_id)
            partner = caller.partner
        since = self._clock.now() - KEEP_DENIALS
        with self._lock:
            here = [one for one in self._waiting.values() if one.request_id == request_id]
        found = next((one for one in reversed(here) if partner in (None, one.partner)), None)
        found = found or self._denials.find(request_id, partner, since=since)
        if found is None:
            raise _not_found(request_id)
        return found if caller.partner is None or found.is_partners else _public(found)


def _judged(
    caller: Caller, asks: Sequence[Ask], failure: Failure, in_force: PolicyInForce
) -> tuple[tuple[Rule, ...], str, bool]:
    """Return rules, remedy, and whether they are the partner's to know, by the ask that was refused."""
    policy, blocks = in_force.policy, in_force.blocks
    told = _told(failure)
    if any(name.startswith(_PROBLEM) for name in failure.metadata):
        # A run is told all its problems together, as its partner may know them.
        return told, failure.hint, True
    own = [ask for ask in asks if ask.partner == caller.partner]
    if isinstance(failure, Forbidden) or not own:
        return told, failure.hint, True
    denied = next((ask for ask in own if isinstance(decide(ask, policy, blocks), Denied)), None)
    if denied is None:
        # Covered and not blocked: a run, a limit, a binding or an approval stood in the way.
        return (*explain(own[0], policy, blocks), *told), failure.hint, True
    explanation = explained(denied, in_force, for_partner=False)
    return explanation.rules, explanation.remedy, may_know(denied, policy)


def _told(failure: Failure) -> tuple[Rule, ...]:
    """Return what the failure itself names: each of its problems, or its rule, or what it is."""
    numbered = [name for name in failure.metadata if name.startswith(_PROBLEM)]
    if numbered:
        return tuple(
            Rule(name, False, failure.metadata[name]) for name in sorted(numbered, key=lambda one: (len(one), one))
        )
    name = failure.metadata.get("limit") or failure.metadata.get("rule") or failure.metadata.get("field")
    return (Rule(name or failure.reason.lower(), False, failure.message),)


def _public(denial: Denial) -> Denial:
    return Denial(
        denial.partner,
        denial.request_id,
        denial.principal,
        denial.at,
        denial.method,
        denial.reason,
        denial.message,
        (Rule("default", False, denial.message),),
        "no one thing would change it; ask an admin",
        denial.version,
        True,
    )


def _not_found(request_id: str) -> NotFound:
    days = KEEP_DENIALS.days
    return NotFound(
        f"no denial of request {request_id} is known",
        hint=f"the newest of a partner are kept for {days} days; the id is the one that the request had",
    )
