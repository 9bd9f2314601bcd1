"""Say why a mint would be allowed or denied, by the same code that decides it."""

from dataclasses import dataclass

from broker.domain.asking import Ask
from broker.domain.decision import Allowed, Rule, decide, explain
from broker.domain.policy import Role
from broker.service.calling import Caller
from broker.service.policies import Policies


@dataclass(frozen=True, slots=True)
class Explanation:
    """The verdict and the rules in the order in which they were tried."""

    grant: str
    is_allowed: bool
    rules: tuple[Rule, ...]


class Explain:
    """Explains. A harness learns only about its own partner, from its own environment."""

    def __init__(self, policies: Policies) -> None:
        self._policies = policies

    def __call__(self, caller: Caller, ask: Ask) -> Explanation:
        """Explain `ask`. Raises Forbidden."""
        caller.must_be(Role.HARNESS, Role.ADMIN, Role.AUDITOR)
        if caller.role is Role.HARNESS:
            caller.must_act_for(ask.partner)
        in_force = self._policies.refresh()
        verdict = decide(ask, in_force.policy, in_force.blocks)
        rules = explain(ask, in_force.policy, in_force.blocks)
        return Explanation(verdict.grant if isinstance(verdict, Allowed) else "", isinstance(verdict, Allowed), rules)
