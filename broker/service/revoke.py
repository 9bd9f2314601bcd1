"""Revoke and reinstate: write the entry that every kind of ending writes."""

from collections.abc import Mapping, Sequence
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
    TokensRevoked,
    Write,
)
from broker.service.proof_ports import CompletionAwaited
from broker.token.keys import Purpose
from broker.token.revocation import Dimension, Selector

MAX_REASON_CHARS = 500
MAX_TOKENS = 10_000
# A revocation is kept for the longest life of a token, and this much longer, so that a broker whose
# clock stood wrong by an hour in either direction cannot make verifiers forget it too early (P4).
KEEP_MARGIN = timedelta(hours=2)


@dataclass(frozen=True, slots=True)
class Revoked:
    """Committed: matching tokens with an index below `index`, that of the last of `entries`, are dead.

    `realms` are those that it concerned at the commit, `bound_ms` their longest freshness lease.
    """

    index: int
    at: datetime
    blocks: bool
    bound_ms: int
    is_repeat: bool
    selector: Selector
    reason: str
    by: str
    realms: tuple[str, ...]
    awaits_completion: bool
    entries: int = 1


@dataclass(frozen=True, slots=True)
class Revocations:
    """Builds the write of a revocation; every path that ends tokens goes through it."""

    clock: Clock
    max_ttl: timedelta

    def now(self) -> datetime:
        """Return the instant to record, as entries spell it: whoever asks later is told the same."""
        at = self.clock.now()
        return at.replace(microsecond=at.microsecond // 1000 * 1000)

    def keep_until(self, at: datetime) -> datetime:
        """Return until when verifiers must keep a revocation of this instant."""
        return at + self.max_ttl + KEEP_MARGIN

    def write(
        self,
        selector: Selector,
        *,
        reason: str,
        by: str,
        kind: Kind,
        request: RequestKey | None,
        guards: tuple[Guard, ...] = (),
        awaited: CompletionAwaited | None = None,
    ) -> Write:
        """Return the write that makes every matching token of a smaller index dead."""
        at = self.now()
        effect = RevocationAdded(
            selector=selector,
            reason=reason,
            by=by,
            at=at,
            keep_until=self.keep_until(at),
            blocks=selector.is_blocking,
        )
        body = {"selector": selector_body(selector), "reason": reason, "blocks": effect.blocks}
        if request is not None:
            body["request"] = request.request_id
        effects = (effect,) if awaited is None else (effect, awaited)
        return Write([_draft(kind, at, by, body)], request=request, guards=guards, effects=effects, urgent=True)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A revocation that passed every check, and is not made yet."""

    selector: Selector
    realms: tuple[str, ...]
    bound_ms: int
    awaits_completion: bool
    write: Write

    @property
    def blocks(self) -> bool:
        """Whether new mints will be blocked until Reinstate."""
        return self.selector.is_blocking


class Revoke:
    """Revokes. Never waits for Vault, and fits on a disk that is too full to mint (P11)."""

    def __init__(self, ledger: Ledger, policies: Policies, revocations: Revocations, meter: Meter) -> None:
        self._ledger = ledger
        self._policies = policies
        self._revocations = revocations
        self._meter = meter

    def prepare(
        self,
        caller: Caller,
        selector: Selector,
        *,
        reason: str,
        whole_realm: bool,
        request: RequestKey,
        is_waited_for: bool = False,
    ) -> Prepared:
        """Judge a revocation and build its write, which `commit` makes and a dry run does not.

        Raises:
            Forbidden, Invalid: Refused.
        """
        caller.must_be(Role.ADMIN, Role.SECURITY, Role.PARTNER_ADMIN)
        if caller.role is Role.PARTNER_ADMIN:
            # What does not name its partner could hit another one.
            caller.must_act_for(selector.get(Dimension.PARTNER) or "")
        reason_text = checked_reason(reason)
        if selector.names_only(Dimension.REALM) and not whole_realm:
            raise Invalid(
                "selector",
                "this would revoke everything in the realm",
                hint="if you mean it, set whole_realm (on the command line: --yes)",
            )
        self.must_be_a_realm(selector.get(Dimension.REALM))
        realms, bound_ms = self.concerned(selector)
        # What blocks is an emergency, or might be one: its completion is made whether or not anybody waits.
        awaited = CompletionAwaited(realms, bound_ms) if is_waited_for or selector.is_blocking else None
        write = self._revocations.write(
            selector, reason=reason_text, by=caller.principal, kind=Kind.REVOKED, request=request, awaited=awaited
        )
        return Prepared(selector, realms, bound_ms, awaited is not None, write)

    def commit(self, prepared: Prepared) -> Revoked:
        """Make it. P4 and P5 hold from the moment that this returns.

        Raises:
            RequestReused, Overloaded, StoreUnavailable: As `Ledger.append`.
        """
        write, selector = prepared.write, prepared.selector
        appended = self._ledger.append(write).result()
        effect = write.effects[0]
        assert isinstance(effect, RevocationAdded)  # noqa: S101 - built by Revocations.write
        at = effect.at
        if appended.is_repeat:
            [entry] = self._ledger.entries(appended.indices.start, appended.indices.stop)
            at = decode_entry(entry).at
        else:
            self._meter.revoked("+".join(dimension.name.lower() for dimension, _ in selector.conditions))
        if selector.is_blocking:
            self._policies.refresh()
        return Revoked(
            appended.indices.start,
            at,
            selector.is_blocking,
            prepared.bound_ms,
            appended.is_repeat,
            selector,
            effect.reason,
            effect.by,
            prepared.realms,
            prepared.awaits_completion,
        )

    def __call__(
        self, caller: Caller, selector: Selector, *, reason: str, whole_realm: bool, request: RequestKey
    ) -> Revoked:
        """Prepare and commit. Raises what these raise; then nothing was written."""
        return self.commit(self.prepare(caller, selector, reason=reason, whole_realm=whole_realm, request=request))

    def must_be_a_realm(self, realm: str | None) -> None:
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
        if not any((one.realm, one.purpose) == (realm, Purpose.TOKEN) for one in certificates):
            raise Invalid(
                "selector.realm",
                f"there is no realm {realm}, nor a live token of one",
                hint=f"the realms are {', '.join(sorted(realms))}" if realms else "apply a policy first",
            )

    def concerned(self, selector: Selector) -> tuple[tuple[str, ...], int]:
        """Return the realms that the selector concerns, sorted, and the longest freshness lease among them."""
        realms = self._policies.current().policy.realms
        concerned = {name: realm.lease_ms for name, realm in realms.items() if selector.concerns(name)}
        return tuple(sorted(concerned)), max(concerned.values(), default=0)


class RevokeTokens:
    """Revokes many single tokens in one commit, each at an index of its own; gives way to other revocations."""

    def __init__(self, ledger: Ledger, revocations: Revocations, revoke: Revoke, meter: Meter) -> None:
        self._ledger = ledger
        self._revocations = revocations
        self._revoke = revoke
        self._meter = meter

    def __call__(
        self,
        caller: Caller,
        realm: str,
        tokens: Sequence[str],
        *,
        reason: str,
        request: RequestKey,
        is_waited_for: bool = False,
    ) -> Revoked:
        """Commit all of them, or none.

        Raises:
            Forbidden, Invalid: Refused; nothing was written.
            RequestReused, Overloaded, StoreFull, StoreUnavailable: As `Ledger.append`.
        """
        caller.must_be(Role.ADMIN, Role.SECURITY)
        text = checked_reason(reason)
        if not 1 <= len(tokens) <= MAX_TOKENS:
            raise Invalid("tokens", f"{len(tokens)} given", hint=f"name 1 to {MAX_TOKENS} token ids")
        if len(set(tokens)) != len(tokens):
            raise Invalid("tokens", "names a token twice", hint="name each token once")
        everything = Selector.of(realm=realm)
        self._revoke.must_be_a_realm(realm)
        selectors = tuple(Selector(((Dimension.REALM, realm), (Dimension.TOKEN, token))) for token in tokens)
        at = self._revocations.now()
        drafts = _token_drafts(at, caller.principal, realm, tokens, text, request.request_id)
        realms, bound_ms = self._revoke.concerned(everything)
        revoked = TokensRevoked(selectors, text, caller.principal, at, self._revocations.keep_until(at))
        effects = (revoked, CompletionAwaited(realms, bound_ms)) if is_waited_for else (revoked,)
        appended = self._ledger.append(Write(drafts, request=request, effects=effects)).result()
        if appended.is_repeat:
            [last] = self._ledger.entries(appended.indices.stop - 1, appended.indices.stop)
            at = decode_entry(last).at
        else:
            self._meter.revoked("realm+token")
        return Revoked(
            appended.indices.stop - 1,
            at,
            False,
            bound_ms,
            appended.is_repeat,
            everything,
            text,
            caller.principal,
            realms,
            is_waited_for,
            entries=len(appended.indices),
        )


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


def _draft(kind: Kind, at: datetime, by: str, body: Mapping[str, object]) -> Draft:
    return lambda index: encode_entry(Entry(index, kind, at, by, body))


def _token_drafts(
    at: datetime, by: str, realm: str, tokens: Sequence[str], reason: str, request_id: str
) -> Sequence[Draft]:
    """Return drafts that are alike but for token and index: spelled once, and cut where these two stand.

    They are spelled within the append, where an urgent revocation waits for them: a tenth of the time counts.
    """
    body = {
        "selector": {"realm": realm, "token": tokens[0]},
        "reason": reason,
        "blocks": False,
        "request": request_id,
    }
    sample = encode_entry(Entry(0, Kind.REVOKED, at, by, body))
    # No string in it can hold these bytes: a quotation mark within a string is escaped.
    head, tail = sample.split(f'"token":"{tokens[0]}"'.encode("ascii"))
    middle, end = tail.split(b',"index":0,')

    def draft(token: str) -> Draft:
        return lambda index: b'%b"token":"%b"%b,"index":%d,%b' % (head, token.encode("ascii"), middle, index, end)

    return [draft(token) for token in tokens]
