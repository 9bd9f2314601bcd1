"""Mint tokens: decide, record, and only then sign."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from broker.domain.asking import Ask
from broker.domain.decision import Allowed, Denied, decide, over_limit, told
from broker.domain.policy import Policy, Role
from broker.errors import (
    Blocked,
    ClockAstray,
    Defect,
    Failure,
    Invalid,
    LimitReached,
    NotGranted,
    PolicyMoved,
    RequestReused,
    RunProofRefused,
    SignerUnavailable,
    StoreCorrupt,
)
from broker.ledger.entry import Entry, Kind, decode_entry, encode_entry
from broker.service.binding import must_be_bound
from broker.service.calling import Caller, must_still_be_known
from broker.service.enforcing import Demand, enforce
from broker.service.limits import limits_of_mint, note_limits
from broker.service.metering import Meter
from broker.service.policies import Policies, PolicyInForce
from broker.service.ports import (
    Appended,
    Clock,
    Draft,
    Guard,
    KeyIsTrusted,
    Ledger,
    RequestKey,
    RunIsOpen,
    Signer,
    SigningKey,
    Write,
)
from broker.service.spending import NOTHING_HELD, Held, Use, is_about_approval, spend_approval
from broker.service.users import must_prove_users
from broker.token.approval import Wanted
from broker.token.claims import TOKEN_TYP, Claims, encode_claims, numbered
from broker.token.jws import assemble, signing_input
from broker.token.keys import Purpose

MAX_BATCH = 1000
# A token is minted by one broker's clock and judged by another's; `nbf` lies this far before `iat`.
NOT_BEFORE_MARGIN_S = 5
# The policy can move between deciding and appending; a mint that loses so often is not unlucky.
MAX_ATTEMPTS = 20


@dataclass(frozen=True, slots=True)
class Minted:
    """A token that may leave: its entry is durable."""

    token: str
    id: str
    index: int
    expires_at: datetime
    grant: str


@dataclass(slots=True)
class _Slip:
    """One token on its way; `signing_input` is filled in when its index is known."""

    claims: Claims
    grant: str
    key: SigningKey
    signing_input: bytes = b""
    index: int = 0
    approval: str = ""

    @property
    def life_s(self) -> int:
        return self.claims.exp - self.claims.iat


@dataclass(frozen=True, slots=True)
class Reserved:
    """Recorded, not yet signed. `finish` turns it into tokens."""

    slips: tuple[_Slip, ...]


class Mint:
    """Mints tokens for a harness. P1, P3: a token is signed after its entry, decided on this policy, is durable."""

    def __init__(
        self,
        ledger: Ledger,
        policies: Policies,
        signer: Signer,
        clock: Clock,
        *,
        new_id: Callable[[], str],
        meter: Meter,
    ) -> None:
        self._ledger = ledger
        self._policies = policies
        self._signer = signer
        self._clock = clock
        self._new_id = new_id
        self._meter = meter
        self._elsewhere = ThreadPoolExecutor(2, thread_name_prefix="mint-again")

    def reserve(
        self, caller: Caller, asks: Sequence[Ask], request: RequestKey, held: Held = NOTHING_HELD
    ) -> Future[Reserved]:
        """Decide all of `asks` and record them, all or none. Does no I/O itself unless the policy moved.

        `held`: the approvals that they may use, which are spent with them.

        Raises (at once or through the future):
            Forbidden, NotGranted, Blocked, Invalid, LimitReached: Denied; nothing was written.
            ApprovalNeeded, ApprovalOver, ApprovalMismatch, NotFound: As `spend_approval`; nothing was written.
            SignerUnavailable, ClockAstray: Nothing can be minted now; nothing was written.
            Whatever `Ledger.append` raises.
        """
        caller.must_be(Role.HARNESS)
        if not 1 <= len(asks) <= MAX_BATCH:
            raise Invalid("specs", f"{len(asks)} given", hint=f"ask for 1 to {MAX_BATCH} tokens")
        for ask in asks:
            caller.must_act_for(ask.partner)
            caller.must_speak_for(ask.user, ask.workload)
        astray = self._clock.is_astray()
        if astray is not None:
            raise ClockAstray(astray)
        outcome: Future[Reserved] = Future()
        self._attempt(caller, asks, request, held, outcome, attempts_left=MAX_ATTEMPTS)
        return outcome

    def record(
        self,
        caller: Caller,
        claims: Claims,
        grant: str,
        request: RequestKey,
        *,
        in_force: PolicyInForce,
        at: datetime,
        guards: tuple[Guard, ...],
    ) -> Reserved:
        """Record one token that was decided elsewhere under this policy, as `reserve` does. Blocks.

        Raises:
            PolicyMoved: Decide again.
            LimitReached, SignerUnavailable, and what the guards and `Ledger.append` raise: Nothing was written.
        """
        slip = _Slip(claims, grant, self._key(claims.realm, at))
        within, counted = limits_of_mint([(claims, grant)], in_force.policy, at)
        write = Write(
            [_readable(_draft(slip, at, request, caller.proven_by))],
            request=request,
            expecting=in_force.version,
            guards=(*guards, *within),
            effects=counted,
        )
        appended = self._ledger.append(write).result()
        if appended.is_repeat:
            return self._repeat(appended, request)
        note_limits(appended.noted, in_force.policy, self._meter)
        return Reserved((slip,))

    def finish(self, reserved: Reserved) -> list[Minted]:
        """Sign what is recorded. Blocks while the signer works. Raises SignerUnavailable."""
        by_key: dict[str, list[_Slip]] = {}
        for slip in reserved.slips:
            by_key.setdefault(slip.key.kid, []).append(slip)
        pending = [(slips, slips[0].key.sign([slip.signing_input for slip in slips])) for slips in by_key.values()]
        tokens: dict[int, str] = {}
        for slips, signatures in pending:
            for slip, signature in zip(slips, signatures.result(), strict=True):
                tokens[slip.index] = assemble(slip.signing_input, signature)
        for slip in reserved.slips:
            self._meter.minted(slip.claims.realm, 1)
        return [
            Minted(
                tokens[slip.index],
                slip.claims.jti,
                slip.index,
                datetime.fromtimestamp(slip.claims.exp, UTC),
                slip.grant,
            )
            for slip in reserved.slips
        ]

    def _attempt(
        self,
        caller: Caller,
        asks: Sequence[Ask],
        request: RequestKey,
        held: Held,
        outcome: Future[Reserved],
        *,
        attempts_left: int,
    ) -> None:
        in_force = self._policies.current()
        must_still_be_known(caller, in_force)
        must_prove_users(caller, asks, in_force)
        now = self._clock.now()
        slips = self._slips(caller, asks, in_force, now)
        drafts = [_draft(slip, now, request, caller.proven_by) for slip in slips]
        runs = {(ask.run, ask.partner, ask.realm) for ask in asks if ask.run is not None}
        guards = tuple(RunIsOpen(run, partner, realm, now) for run, partner, realm in sorted(runs))
        within, counted = limits_of_mint([(slip.claims, slip.grant) for slip in slips], in_force.policy, now)
        uses = [
            Use(Wanted.TOKEN, ask, slip.grant, slip.life_s, caller.principal, ask.approval, slip.claims.jti)
            for ask, slip in zip(asks, slips, strict=True)
            if is_about_approval(ask, slip.grant, in_force.policy)
        ]
        spending = spend_approval(uses, held, in_force.policy, now, request, self._meter)
        for slip in slips if spending.used else ():
            slip.approval = spending.used.get(slip.claims.jti, "")
        write = Write(
            [*drafts, *spending.drafts],
            request=request,
            expecting=in_force.version,
            guards=(*guards, *within, *spending.guards),
            effects=(*counted, *spending.effects),
        )

        def settle(done: Future[Appended]) -> None:
            # This is the ledger's own thread: what reads or writes again must go elsewhere, or it waits for itself.
            try:
                appended = done.result()
                if appended.is_repeat:
                    self._elsewhere.submit(self._settle_repeat, appended, request, outcome)
                else:
                    note_limits(appended.noted, in_force.policy, self._meter)
                    outcome.set_result(Reserved(tuple(slips)))
            except PolicyMoved:
                self._elsewhere.submit(self._reattempt, caller, asks, request, held, outcome, attempts_left)
            except BaseException as failure:  # noqa: BLE001 - a future carries whatever happened
                outcome.set_exception(failure)

        self._ledger.append(write).add_done_callback(settle)

    def _settle_repeat(self, appended: Appended, request: RequestKey, outcome: Future[Reserved]) -> None:
        try:
            outcome.set_result(self._repeat(appended, request))
        except BaseException as failure:  # noqa: BLE001 - a future carries whatever happened
            outcome.set_exception(failure)

    def _reattempt(
        self,
        caller: Caller,
        asks: Sequence[Ask],
        request: RequestKey,
        held: Held,
        outcome: Future[Reserved],
        attempts_left: int,
    ) -> None:
        try:
            if attempts_left <= 1:
                raise PolicyMoved("the policy kept moving while the mint was decided", hint="retry")
            self._policies.refresh()
            self._attempt(caller, asks, request, held, outcome, attempts_left=attempts_left - 1)
        except BaseException as failure:  # noqa: BLE001 - a future carries whatever happened
            outcome.set_exception(failure)

    def _slips(self, caller: Caller, asks: Sequence[Ask], in_force: PolicyInForce, now: datetime) -> list[_Slip]:
        keys: dict[str, SigningKey] = {}
        # A batch asks mostly for the same, for one test after the other, on which no rule depends.
        verdicts: dict[object, Allowed] = {}
        slips = []
        for position, ask in enumerate(asks):
            judged = (ask.realm, ask.partner, ask.user, ask.workload, ask.models, ask.environment, ask.ttl_s)
            allowed = verdicts.get(judged)
            if allowed is None:
                allowed = verdicts[judged] = allowed_or_refused(ask, in_force, position if len(asks) > 1 else None)
            where = f"specs[{position}]: " if len(asks) > 1 else ""
            must_be_bound(ask.bound, allowed.grant, in_force.policy, self._meter, where=where)
            if ask.realm not in keys:
                keys[ask.realm] = self._key(ask.realm, now)
            claims = claims_for(ask, allowed, caller.principal, in_force.policy, now, self._new_id())
            slips.append(_Slip(claims, allowed.grant, keys[ask.realm]))
        for grant, why in over_limit([slip.grant for slip in slips], in_force.policy):
            too_many = LimitReached(why.detail, hint="split the batch", metadata={"limit": "batch"})
            enforce(grant, Demand.BATCH, too_many, self._meter)
        return slips

    def _key(self, realm: str, now: datetime) -> SigningKey:
        key = self._signer.current(realm, Purpose.TOKEN)
        if key.signs_until <= now:
            raise SignerUnavailable(f"the signing key of realm {realm} has ended")
        return key

    def _repeat(self, appended: Appended, request: RequestKey) -> Reserved:
        """Make the first answer again: the same ids, indices and ends; a later key signs if the first is gone."""
        entries = [decode_entry(data) for data in self._ledger.entries(appended.indices.start, appended.indices.stop)]
        now = self._clock.now()
        slips = []
        stale_kids: set[str] = set()
        for entry in entries:
            if entry.kind is not Kind.TOKEN_MINTED:
                # An approval that was spent with them.
                continue
            if request.proof and entry.body.get("run_proof") == request.proof:
                # Also where another broker took it, or this one before it was restarted (B3).
                raise RunProofRefused("the run proof was used before")
            claims = decode_claims_of(entry)
            if claims.exp <= now.timestamp():
                raise RequestReused("this request was answered with a token that has expired since")
            key = self._key(claims.realm, now)
            if entry.body["kid"] != key.kid:
                stale_kids.add(str(entry.body["kid"]))
                # The new key vouches only for what is issued in its own time.
                claims = replace(claims, iat=int(now.timestamp()))
            slip = _Slip(claims, str(entry.body["grant"]), key, index=entry.index)
            _spell(slip)
            slips.append(slip)
        if stale_kids:
            self._record_resigned(slips, stale_kids, request, now)
        return Reserved(tuple(slips))

    def _record_resigned(
        self, slips: Sequence[_Slip], stale_kids: set[str], request: RequestKey, now: datetime
    ) -> None:
        # Without the guard, a token of a revoked key would come back to life under another key (P4).
        drafts: list[Draft] = [
            lambda index, slip=slip: _entry(index, slip, now, request, Kind.TOKEN_RESIGNED)  # type: ignore[misc]
            for slip in slips
        ]
        guards = tuple(KeyIsTrusted(kid) for kid in sorted(stale_kids))
        self._ledger.append(Write(drafts, guards=guards)).result()


def decode_claims_of(entry: Entry) -> Claims:
    """Return the claims that a mint's entry records. Raises Defect for any other entry."""
    claims = entry.body.get("claims")
    if not isinstance(claims, Mapping):
        raise Defect(f"entry {entry.index} records no token")
    named: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in claims.items()}
    return Claims(**{"user": None, "workload": None, "run": None, "test": None, **named})


def allowed_or_refused(ask: Ask, in_force: PolicyInForce, position: int | None) -> Allowed:
    """Decide `ask`, which is the one at `position` if it is one of several. Raises NotGranted, Blocked, Invalid."""
    match decide(ask, in_force.policy, in_force.blocks):
        case Allowed() as allowed:
            return allowed
        case Denied(why=unfiltered):
            why = told(ask, in_force.policy, unfiltered)
            where = "" if position is None else f"specs[{position}]: "
            raise REFUSALS.get(why.code, NotGranted)(f"{where}{why.detail}", metadata={"rule": why.rule})


def _invalid(message: str, *, metadata: Mapping[str, str]) -> Failure:
    return Invalid(metadata.get("rule", "spec"), message)


REFUSALS: Mapping[str, Callable[..., Failure]] = {
    "BLOCKED": Blocked,
    "INVALID": _invalid,
    "NOT_GRANTED": NotGranted,
}


def claims_for(ask: Ask, allowed: Allowed, client: str, policy: Policy, now: datetime, token_id: str) -> Claims:
    """Return what a token says, but for its index, that `client` asked for and was allowed."""
    realm = policy.realms[ask.realm]
    issued = int(now.timestamp())
    kind, name = ("user", ask.user) if ask.user is not None else ("workload", ask.workload)
    acts = ask.user is not None and ask.workload is not None
    return Claims(
        iss=realm.issuer,
        sub=f"{ask.partner}/{kind}/{name}",
        aud=realm.audience,
        client_id=client,
        iat=issued,
        nbf=issued - NOT_BEFORE_MARGIN_S,
        exp=issued + allowed.ttl_s,
        jti=token_id,
        scope=" ".join(f"model:{model}" for model in ask.models),
        realm=ask.realm,
        partner=ask.partner,
        user=ask.user,
        workload=ask.workload,
        run=ask.run,
        test=ask.test,
        models=ask.models,
        env=ask.environment,
        labels=policy.labels_for(ask.partner, ask.realm, ask.models),
        parents=(),
        idx=1,
        cnf=None if ask.bound is None else ask.bound.cnf,
        uses=_uses(policy, allowed.grant),
        act={"sub": f"{ask.partner}/workload/{ask.workload}"} if acts else None,
    )


def _uses(policy: Policy, grant_id: str) -> int | None:
    grant = policy.grant(grant_id)
    return None if grant is None or grant.is_audit_only else grant.limits.uses_per_token


def _draft(slip: _Slip, at: datetime, request: RequestKey, proof: str) -> Draft:
    def draft(index: int) -> bytes:
        slip.index = index
        slip.claims = numbered(slip.claims, index)
        return _entry(index, slip, at, request, Kind.TOKEN_MINTED, proof)

    return draft


def _readable(draft: Draft) -> Draft:
    """Refuse to write what could not be read again: claims that nest have more than one spelling."""

    def checked(index: int) -> bytes:
        data = draft(index)
        try:
            decode_entry(data)
        except StoreCorrupt as bad:
            raise Defect("the entry of a token is not in its one spelling") from bad
        return data

    return checked


def _spell(slip: _Slip) -> bytes:
    """Fill in what is signed, and return the claims in it."""
    payload = encode_claims(slip.claims)
    slip.signing_input = signing_input(typ=TOKEN_TYP, kid=slip.key.kid, payload=payload)
    return payload


def _entry(index: int, slip: _Slip, at: datetime, request: RequestKey, kind: Kind, proof: str = "") -> bytes:
    payload = _spell(slip)
    # The hash is over what is signed and not over the signature: ECDSA signatures can be
    # altered by anyone into another valid one, so they identify nothing.
    body = {
        "request": request.request_id,
        "grant": slip.grant,
        "kid": slip.key.kid,
        "sha256": hashlib.sha256(slip.signing_input).hexdigest(),
    }
    if proof:
        body["proof"] = proof
    if request.proof:
        body["run_proof"] = request.proof
    if slip.approval:
        body["approval"] = slip.approval
    # The claims are recorded letter by letter as they are signed.
    spelled = {"claims": payload.decode("ascii")}
    return encode_entry(Entry(index, kind, at, request.principal, body), spelled=spelled)
