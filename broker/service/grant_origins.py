"""Who put a grant into the policy, and who changed it last: found in the policies that were."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from broker.domain.policy import Grant, Policy
from broker.errors import ConfigInvalid
from broker.service.policy_ports import PolicyDocument, PolicyVersion

MAX_VERSIONS = 200


@dataclass(frozen=True, slots=True)
class Origin:
    """By which versions a grant came into the policy and was changed last. None: longer ago than was looked."""

    granted: PolicyVersion | None
    changed: PolicyVersion | None


def grant_origins(
    grants: Sequence[Grant], back: Iterator[PolicyDocument], parse: Callable[[str], Policy]
) -> Mapping[str, Origin]:
    """Return the origin of each of `grants`, of the newest policy in `back`, by id.

    A grant that was taken out and put in again was granted then.
    """
    pending = {one.id: one for one in grants}
    granted: dict[str, PolicyVersion] = {}
    changed: dict[str, PolicyVersion] = {}
    last: dict[str, PolicyVersion] = {}
    for kept in islice(back, MAX_VERSIONS):
        try:
            then = {one.id: one for one in parse(kept.document).grants}
        except ConfigInvalid:
            # Of a form that is not read any more: who made what it says cannot be told.
            break
        for name, grant in list(pending.items()):
            if name in last and then.get(name) != grant:
                changed.setdefault(name, last[name])
            if name in then:
                last[name] = kept.applied
            elif name in last:
                granted[name] = last[name]
                del pending[name]
        if not pending:
            break
    else:
        if next(back, None) is None:
            granted |= {name: last[name] for name in pending if name in last}
    return {one.id: Origin(granted.get(one.id), changed.get(one.id, granted.get(one.id))) for one in grants}
