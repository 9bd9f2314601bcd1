"""Say who reaches a model, and who can change that."""

from collections.abc import Iterable
from dataclasses import dataclass

from broker.domain.paths import Changer, Path, changers, paths
from broker.domain.policy import Role
from broker.errors import NotFound
from broker.service.calling import Caller
from broker.service.policies import Policies
from broker.token.identifiers import identifier, model_name


@dataclass(frozen=True, slots=True)
class Reached:
    """Every way to a model at `version` of the policy, and who can change them."""

    version: int
    ways: tuple[Path, ...]
    changers: tuple[Changer, ...]


class ExplainPath:
    """Answers for a restricted model: who can reach it, and who can create or reuse a path to it."""

    def __init__(self, policies: Policies, configured: Iterable[str]) -> None:
        self._policies = policies
        self._configured = tuple(configured)

    def __call__(self, caller: Caller, realm: str, model: str) -> Reached:
        """List them.

        Raises:
            Forbidden: The role may not see the policy.
            Invalid, NotFound: There is no such realm or model.
        """
        caller.must_be(Role.ADMIN, Role.AUDITOR)
        identifier("realm", realm)
        model_name("model", model)
        self._policies.refresh()
        in_force = self._policies.current()
        policy = in_force.policy
        if realm not in policy.realms:
            raise NotFound(f"there is no realm {realm}", hint="see: broker policy show")
        if not policy.knows_model(model):
            raise NotFound(f"there is no model {model}", hint="see: broker policy show")
        found = tuple(paths(policy, in_force.blocks, realm, model))
        grants = [grant for path in found if (grant := policy.grant(path.grant)) is not None]
        return Reached(in_force.version, found, tuple(changers(policy, self._configured, grants)))
