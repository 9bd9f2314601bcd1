"""The policy in force as this process knows it: parsed once per version, reread when it moved."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import date, datetime

from broker.domain.policy import EMPTY_POLICY, Policy, reviewed
from broker.errors import ConfigInvalid
from broker.service.ports import Clock, Ledger, RealmKeys
from broker.token.revocation import Selector


@dataclass(frozen=True, slots=True)
class PolicyInForce:
    """A policy with its blocks, as of `version`."""

    version: int
    policy: Policy
    blocks: Mapping[Selector, int]
    revoked_keys: frozenset[str]
    document: str
    by: str
    applied_at: datetime | None
    problem: str = ""
    reason: str = ""


class Policies:
    """Holds the policy in force. Reading never does I/O; `refresh` does. Safe for use by several threads.

    What it holds may be behind the store: a mint is safe all the same, because the append
    compares the version (P3). No realm allows longer lives than `max_ttl_s`, whatever its policy says.
    """

    def __init__(
        self, ledger: Ledger, parse: Callable[[str], Policy], clock: Clock, *, max_ttl_s: int | None = None
    ) -> None:
        self._ledger = ledger
        self._parse = parse
        self._max_ttl_s = max_ttl_s
        self._clock = clock
        self._judged_on: date | None = None
        self._lock = threading.Lock()
        self._in_force = PolicyInForce(-1, EMPTY_POLICY, {}, frozenset(), "", "", None)
        self._watchers: list[Callable[[PolicyInForce], None]] = []
        self.refresh()

    def current(self) -> PolicyInForce:
        """Return the policy as last read, its grants as of today."""
        if self._in_force.policy.changes_by_day and self._clock.now().date() != self._judged_on:
            with self._lock:
                self._in_force = replace(self._in_force, policy=self._as_of_today(self._in_force.policy))
        return self._in_force

    def refresh(self) -> PolicyInForce:
        """Read the policy again if it moved. Raises StoreUnavailable."""
        with self._lock:
            record = self._ledger.policy()
            before = self._in_force
            if record.version <= before.version:
                return before
            problem = ""
            if record.document == before.document:
                policy, problem = before.policy, before.problem
            else:
                try:
                    policy = self._bounded(self._parse(record.document)) if record.document else EMPTY_POLICY
                except ConfigInvalid as invalid:
                    # P7: a stored policy that this version cannot read allows nothing.
                    policy, problem = EMPTY_POLICY, f"the stored policy cannot be read: {invalid}"
            self._in_force = PolicyInForce(
                record.version,
                self._as_of_today(policy),
                dict(record.blocks),
                record.revoked_keys,
                record.document,
                record.by,
                record.applied_at,
                problem,
                record.reason,
            )
            in_force = self._in_force
        for watcher in self._watchers:
            watcher(in_force)
        return in_force

    def _as_of_today(self, policy: Policy) -> Policy:
        self._judged_on = self._clock.now().date()
        return reviewed(policy, self._judged_on)

    def _bounded(self, policy: Policy) -> Policy:
        """A policy may have been applied when the broker's own maximum was higher; it binds all the same."""
        if self._max_ttl_s is None:
            return policy
        most_s = self._max_ttl_s
        realms = {name: replace(realm, max_ttl_s=min(realm.max_ttl_s, most_s)) for name, realm in policy.realms.items()}
        return replace(policy, realms=realms)

    def watch(self, watcher: Callable[[PolicyInForce], None]) -> None:
        """Call `watcher` with each policy in force from now on, in the thread that found it."""
        self._watchers.append(watcher)

    def realm_keys(self) -> tuple[RealmKeys, ...]:
        """Return what a signer must know of the realms of the policy in force."""
        return tuple(
            RealmKeys(realm.name, realm.issuer, realm.audience, realm.max_ttl_s)
            for realm in self._in_force.policy.realms.values()
        )
