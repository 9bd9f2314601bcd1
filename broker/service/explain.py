"""Say why a mint would be allowed or denied, by the same code that decides it."""

from dataclasses import dataclass

from broker.domain.asking import Ask
from broker.domain.changes import listed
from broker.domain.decision import Allowed, Denied, Rule, decide, explain, may_know, told
from broker.domain.demands import Demanded, demands
from broker.domain.policy import Role
from broker.domain.remedy import also_allowed_by, remedy
from broker.service.calling import Caller
from broker.service.policies import Policies, PolicyInForce

NO_ONE_THING = "no one thing would change it; ask an admin"


@dataclass(frozen=True, slots=True)
class Explanation:
    """The verdict, the rules in the order in which they were tried, and what would change the verdict.

    `demands`: what is demanded beyond it, if it is allowed.
    """

    grant: str
    is_allowed: bool
    rules: tuple[Rule, ...]
    demands: tuple[Demanded, ...]
    remedy: str


class Explain:
    """Explains. Who has a partner learns only about its own, and nothing of what that was never granted (P8)."""

    def __init__(self, policies: Policies) -> None:
        self._policies = policies

    def __call__(self, caller: Caller, ask: Ask) -> Explanation:
        """Explain `ask`. Raises Forbidden."""
        caller.must_be(Role.HARNESS, Role.PARTNER_ADMIN, Role.ADMIN, Role.AUDITOR)
        if caller.role in (Role.HARNESS, Role.PARTNER_ADMIN):
            caller.must_act_for(ask.partner)
        self._policies.refresh()
        return explained(ask, self._policies.current(), for_partner=caller.partner is not None)


def explained(ask: Ask, in_force: PolicyInForce, *, for_partner: bool) -> Explanation:
    """Explain `ask` under a policy. `for_partner`: without what its partner may not know."""
    policy, blocks = in_force.policy, in_force.blocks
    match decide(ask, policy, blocks):
        case Allowed(grant=grant_id):
            grant = policy.grant(grant_id)
            others = also_allowed_by(ask, policy, grant_id)
            change = f"only grant {grant_id} allows it: without it, it would be denied"
            if others:
                change = f"nothing by itself: {listed([grant_id, *others])} each allow it"
            asked = demands(policy, ask.partner, grant) if grant is not None else ()
            return Explanation(grant_id, True, explain(ask, policy, blocks), asked, change)
        case Denied(why=why):
            if for_partner and not may_know(ask, policy):
                # Which rules pass would tell what there is.
                public = told(ask, policy, why)
                rules: tuple[Rule, ...] = (Rule(public.rule, False, public.detail),)
                return Explanation("", False, rules, (), NO_ONE_THING)
            found = remedy(ask, policy, blocks)
            text = found.text if found is not None else NO_ONE_THING
            return Explanation("", False, explain(ask, policy, blocks), (), text)
