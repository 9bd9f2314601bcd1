"""Show and restore the policies that were ever applied."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from broker.domain.policy import Role
from broker.errors import ConfigInvalid, NotFound, StoreCorrupt
from broker.ledger.entry import Kind, decode_entry
from broker.service.apply_policy import ApplyPolicy
from broker.service.calling import Caller
from broker.service.policies import Policies
from broker.service.policy_ports import PolicyDocument, PolicyHistory, PolicyVersion
from broker.service.ports import Ledger, RequestKey
from broker.service.revoke import checked_reason

# What a store can count to; the wire's numbers go beyond it.
MAX_VERSION = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Shown:
    """A policy as it was in force at `version`; `kept` None: no policy was, and nothing was allowed."""

    version: int
    kept: PolicyDocument | None


class PolicyVersions:
    """Every policy is kept with author and reason, and its letters are those that the ledger holds the hash of."""

    def __init__(
        self,
        ledger: Ledger,
        history: PolicyHistory,
        policies: Policies,
        apply: ApplyPolicy,
        *,
        digest: Callable[[bytes], str],
    ) -> None:
        self._ledger = ledger
        self._history = history
        self._policies = policies
        self._apply = apply
        self._digest = digest

    def listed(self, caller: Caller, below: int | None, limit: int) -> Sequence[PolicyVersion]:
        """Return what was applied below a version, the newest first. Raises Forbidden."""
        caller.must_be(Role.ADMIN, Role.AUDITOR)
        return self._history.applied(None if below is None else min(below, MAX_VERSION), limit)

    def show(self, caller: Caller, version: int | None) -> Shown:
        """Return the policy in force, or the one that was at `version`.

        Raises:
            Forbidden: The role may not see it.
            NotFound: There is no such version yet, or no policy was in force then.
            StoreCorrupt: The document is not the one that was applied.
        """
        caller.must_be(Role.ADMIN, Role.AUDITOR)
        now = self._policies.refresh().version
        if version is None:
            return Shown(now, self._sound(self._history.as_of(min(now, MAX_VERSION))))
        return Shown(version, self._at(version))

    def restore(
        self,
        caller: Caller,
        version: int,
        *,
        reason: str,
        expected_version: int | None,
        request: RequestKey,
    ) -> tuple[int, int]:
        """Apply the policy of `version` again, as a new version; return (version, index).

        Raises:
            NotFound: There is no such version yet, or no policy was in force then.
            ConfigInvalid: This broker cannot read the old document; nothing was written.
            Whatever applying a policy raises.
        """
        caller.must_be(Role.ADMIN)
        why = checked_reason(reason)
        kept = self._at(version)
        try:
            return self._apply(
                caller,
                kept.document,
                expected_version=expected_version,
                request=request,
                reason=why,
                restored=kept.applied.version,
            )
        except ConfigInvalid as unreadable:
            number = kept.applied.version
            failure = ConfigInvalid(f"policy version {number}", unreadable.problems)
            failure.hint = f"this broker cannot read it: broker policy show --version {number}, mend it, and apply that"
            raise failure from unreadable

    def back_from(self, version: int) -> Iterator[PolicyDocument]:
        """Yield what was applied at `version` or before, the newest first. Raises StoreCorrupt."""
        while (kept := self._sound(self._history.as_of(min(version, MAX_VERSION)))) is not None:
            yield kept
            version = kept.applied.version - 1

    def _at(self, version: int) -> PolicyDocument:
        newest = self._policies.refresh().version
        if version > newest:
            raise NotFound(f"there is no policy version {version}", hint=f"the newest is {max(newest, 0)}")
        kept = self._sound(self._history.as_of(version))
        if kept is None:
            raise NotFound(f"no policy was in force at version {version}", hint="see: broker policy versions")
        return kept

    def _sound(self, kept: PolicyDocument | None) -> PolicyDocument | None:
        """P10: what lies in a table could have been edited; what the ledger holds the hash of could not."""
        if kept is None:
            return None
        index = kept.applied.index
        found = self._ledger.entries(index, index + 1)
        entry = decode_entry(found[0]) if found else None
        if (
            entry is None
            or entry.kind is not Kind.POLICY_APPLIED
            or entry.body.get("sha256") != self._digest(kept.document.encode())
        ):
            raise StoreCorrupt(
                f"the policy of version {kept.applied.version} is not the one that ledger entry {index} tells of"
            )
        return kept
