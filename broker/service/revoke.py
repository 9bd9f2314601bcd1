"""Revoke and reinstate: write the entry that every kind of ending writes."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from broker.domain.policy import Role
from broker.errors import Invalid, NotFound
from broker.ledger.entry import Entry, Kind, decode_entry, encode_entry
from broker.service.calling import Caller
from broker.service.metering import Meter
from broker.service.policies import Policies
from broker.service.ports import (
    BlockIsSet,
    BlockLifted,
    Clock,
    Draft,
    Guard,
    Ledger,
    RequestKey,
    RevocationAdded,
    Write,
)
from broker.token.revocation import Dimension, Selector

MAX_REASON_CHARS = 500
# A revocation is kept for the longest life of a token, and this much longer, so that a broker whose
# clock stood wrong by an hour in either direction cannot make verifiers forget it too early (P4).
KEEP_MARGIN = timedelta(hours=2)


@dataclass(frozen=True, slots=True)
class Revoked:
    """Committed: matching tokens with an index below `index` are dead."""

    index: int
    at: datetime
    blocks: bool
    bound_ms: int
    is_repeat: bool


@dataclass(frozen=True, slots=True)
class Revocations:
    """Builds the write of a revocation; every path that ends tokens goes through it."""

    clock: Clock
    max_ttl: timedelta

    def write(
        self,
        selector: Selector,
        *,
        reason: str,
        by: str,
        kind: Kind,
        request: RequestKey | None,
        guards: tuple[Guard, ...] = (),
    ) -> Write:
        """Return the write that makes every matching token of a smaller index dead."""
        at = self.clock.now()
        effect = RevocationAdded(
            selector=selector,
            reason=reason,
            by=by,
            at=at,
            keep_until=at + self.max_ttl + KEEP_MARGIN,
            blocks=selector.is_blocking,
        )
        body = {"selector": selector_body(selector), "reason": reason, "blocks": effect.blocks}
        if request is not None:
            body["request"] = request.request_id
        return Write([_draft(kind, at, by, body)], request=request, guards=guards, effects=(effect,), urgent=True)


class Revoke:
    """Revokes. Never waits for Vault, and fits on a disk that is too full to mint (P11)."""

    def __init__(self, ledger: Ledger, policies: Policies, revocations: Revocations, meter: Meter) -> None:
        self._ledger = ledger
        self._policies = policies
        self._revocations = revocations
        self._meter = meter

    def __call__(
        self, caller: Caller, selector: Selector, *, reason: str, whole_realm: bool, request: RequestKey
    ) -> Revoked:
        """Commit a revocation. P4 and P5 hold from the moment that this returns.

        Raises:
            Forbidden, Invalid: Refused; nothing was written.
            RequestReused, Overloaded, StoreUnavailable: As `Ledger.append`.
        """
        caller.must_be(Role.ADMIN)
        reason_text = checked_reason(reason)
        if selector.names_only(Dimension.REALM) and not whole_realm:
            raise Invalid(
                "selector",
                "this would revoke everything in the realm",
                hint="if you mean it, set whole_realm (on the command line: --yes)",
            )
        self._must_be_a_realm(selector.get(Dimension.REALM))
        write = self._revocations.write(
            selector, reason=reason_text, by=caller.principal, kind=Kind.REVOKED, request=request
        )
        appended = self._ledger.append(write).result()
        if appended.is_repeat:
            [entry] = self._ledger.entries(appended.indices.start, appended.indices.stop)
            at = decode_entry(entry).at
        else:
            at = write_time(write)
            self._meter.revoked("+".join(dimension.name.lower() for dimension, _ in selector.conditions))
        if selector.is_blocking:
            self._policies.refresh()
        return Revoked(appended.indices.start, at, selector.is_blocking, self.bound_ms(selector), appended.is_repeat)

    def _must_be_a_realm(self, realm: str | None) -> None:
        """Refuse a realm of which no token can live: a slip of the pen would look like a revocation.

        Other names are not looked up: tokens of a partner, user or model that has left the policy
        live on, and must be revocable above all.
        """
        if realm is None or realm in self._policies.current().policy.realms:
            return
        realms = self._policies.refresh().policy.realms
        if realm in realms:
            return
        # A token lives no longer than the certificate of the key that signed it, also in a realm that has left.
        certificates = self._ledger.changes(0, now=self._revocations.clock.now()).certificates
        if not any(certificate.realm == realm for certificate in certificates):
            raise Invalid(
                "selector.realm",
                f"there is no realm {realm}, nor a live token of one",
                hint=f"the realms are {', '.join(sorted(realms))}" if realms else "apply a policy first",
            )

    def bound_ms(self, selector: Selector) -> int:
        """Return the longest freshness lease among the realms that the selector concerns."""
        realms = self._policies.current().policy.realms.values()
        return max((realm.lease_ms for realm in realms if selector.concerns(realm.name)), default=0)


class Reinstate:
    """Lifts a block. Dead tokens stay dead: the revocation itself is not touched (P4)."""

    def __init__(self, ledger: Ledger, policies: Policies, clock: Clock) -> None:
        self._ledger = ledger
        self._policies = policies
        self._clock = clock

    def __call__(self, caller: Caller, selector: Selector, *, reason: str, request: RequestKey) -> int | None:
        """Lift the block with exactly this selector; return the index, or None if there is no such block.

        Raises:
            Forbidden, Invalid: Refused; nothing was written.
            RequestReused, Overloaded, StoreUnavailable: As `Ledger.append`.
        """
        caller.must_be(Role.ADMIN)
        body = {
            "selector": selector_body(selector),
            "reason": checked_reason(reason),
            "request": request.request_id,
        }
        draft = _draft(Kind.REINSTATED, self._clock.now(), caller.principal, body)
        write = Write([draft], request=request, guards=(BlockIsSet(selector),), effects=(BlockLifted(selector),))
        try:
            appended = self._ledger.append(write).result()
        except NotFound:
            return None
        self._policies.refresh()
        return appended.indices.start


def checked_reason(reason: str) -> str:
    """Return a reason fit for the ledger. Raises Invalid."""
    text = reason.strip()
    if not text:
        raise Invalid("reason", "is empty", hint="say why in a few words; it goes to the ledger")
    if len(text) > MAX_REASON_CHARS:
        raise Invalid("reason", f"has {len(text)} characters", hint=f"use at most {MAX_REASON_CHARS}")
    if not text.isprintable():
        raise Invalid("reason", "has control characters", hint="use one line of plain text")
    return text


def selector_body(selector: Selector) -> dict[str, str]:
    """Return a selector as entries record it."""
    return {dimension.name.lower(): value for dimension, value in selector.conditions}


def write_time(write: Write) -> datetime:
    """Return the instant that a revocation's write carries."""
    effect = write.effects[0]
    assert isinstance(effect, RevocationAdded)  # noqa: S101 - built by Revocations.write
    return effect.at


def _draft(kind: Kind, at: datetime, by: str, body: Mapping[str, object]) -> Draft:
    return lambda index: encode_entry(Entry(index, kind, at, by, body))
