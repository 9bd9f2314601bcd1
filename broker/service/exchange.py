"""Exchange a token for a child of it: fewer models, a shorter life, a holder of its own (RFC 8693)."""

from collections.abc import Callable

from broker.domain.asking import Ask
from broker.domain.decision import Denied, told
from broker.domain.delegation import Child, Wish, child_of
from broker.domain.policy import Role
from broker.errors import ApprovalNeeded, ClockAstray, Forbidden, Invalid, NotGranted, PolicyMoved
from broker.service.binding import must_be_bound
from broker.service.calling import Caller, RunProof, must_still_be_known
from broker.service.enforcing import Demand, enforce
from broker.service.metering import Meter
from broker.service.mint import MAX_ATTEMPTS, NOT_BEFORE_MARGIN_S, REFUSALS, Mint, Minted
from broker.service.policies import Policies, PolicyInForce
from broker.service.ports import Clock, RequestKey, RunIsOpen
from broker.service.subjects import Subject, Subjects
from broker.token.binding import Shown, bound_of
from broker.token.claims import encode_claims
from broker.token.jws import MAX_TOKEN_BYTES

# What a token has beside its claims: header, signature, dots.
_ROUND_CLAIMS = 256


class Exchange:
    """Derives tokens from tokens. Blocks on the store and the signer: call it in a thread."""

    def __init__(
        self,
        subjects: Subjects,
        mint: Mint,
        policies: Policies,
        clock: Clock,
        *,
        new_id: Callable[[], str],
        meter: Meter,
    ) -> None:
        self._subjects = subjects
        self._mint = mint
        self._policies = policies
        self._clock = clock
        self._new_id = new_id
        self._meter = meter

    def subject(self, caller: Caller, token: str) -> Subject:
        """Return what the token is that the caller wants a child of.

        Raises:
            Forbidden: It is not the caller's partner's, or the caller speaks for somebody else, or from elsewhere.
            Whatever `Subjects.judge` raises.
        """
        caller.must_be(Role.HARNESS)
        subject = self._subjects.judge(token)
        claims = subject.claims
        caller.must_act_for(claims.partner)
        caller.must_speak_for(claims.user, claims.workload)
        if isinstance(caller.proof, RunProof) and caller.proof.run != claims.run:
            raise Forbidden("a run's key speaks for the tokens of that run only", hint="log in, or use the other run")
        if caller.environment != claims.env:
            raise Forbidden(
                f"the token is of environment {claims.env}, and the caller is not there",
                hint="exchange it where it is used",
            )
        return subject

    def __call__(
        self, caller: Caller, token: str, subject: Subject, wish: Wish, *, shown: Shown | None, request: RequestKey
    ) -> Minted:
        """Mint the child of a subject, which holds at the commit: neither it nor an ancestor is revoked, its run open.

        Raises:
            NotHolder: The token is bound, and the caller does not show that it is theirs.
            NotGranted, Blocked, Invalid, BindingNeeded, ApprovalNeeded, LimitReached: Denied; nothing was written.
            Revoked, RunEnded: Its parent is dead.
            SignerUnavailable, ClockAstray, and what `Ledger.append` raises.
        """
        astray = self._clock.is_astray()
        if astray is not None:
            raise ClockAstray(astray)
        self._subjects.must_hold(token, subject, shown)
        for _ in range(MAX_ATTEMPTS):
            try:
                return self._attempt(caller, subject, wish, request)
            except PolicyMoved:
                self._policies.refresh()
        raise PolicyMoved("the policy kept moving while the exchange was decided", hint="retry")

    def _attempt(self, caller: Caller, subject: Subject, wish: Wish, request: RequestKey) -> Minted:
        in_force = self._policies.current()
        must_still_be_known(caller, in_force)
        parent, now = subject.claims, self._clock.now()
        now_s = int(now.timestamp())
        child = child_of(
            parent,
            wish,
            in_force.policy,
            in_force.blocks,
            client=caller.principal,
            token_id=self._new_id(),
            now_s=now_s,
            not_before_s=now_s - NOT_BEFORE_MARGIN_S,
            parent_kid=subject.kid,
        )
        if isinstance(child, Denied):
            ask = Ask(
                parent.realm, parent.partner, parent.user, parent.workload, wish.models or parent.models, parent.env
            )
            why = told(ask, in_force.policy, child.why)
            raise REFUSALS.get(why.code, NotGranted)(why.detail, metadata={"rule": why.rule})
        self._must_meet_demands(child, subject, in_force)
        if len(encode_claims(child.claims)) * 4 // 3 + _ROUND_CLAIMS > MAX_TOKEN_BYTES:
            raise Invalid("models", "the child would be longer than any verifier reads", hint="ask for fewer models")
        guards: tuple[RunIsOpen, ...] = ()
        if parent.run is not None:
            guards = (RunIsOpen(parent.run, parent.partner, parent.realm, now),)
        reserved = self._mint.record(
            caller, child.claims, child.grant.id, request, in_force=in_force, at=now, guards=(*guards, subject.alive)
        )
        [minted] = self._mint.finish(reserved)
        return minted

    def _must_meet_demands(self, child: Child, subject: Subject, in_force: PolicyInForce) -> None:
        grant = child.grant
        must_be_bound(bound_of(child.claims), grant.id, in_force.policy, self._meter)
        if grant.approvals is not None and grant.id != subject.grant:
            # What was approved is the parent, by another grant.
            needed = ApprovalNeeded(
                f"grant {grant.id} needs approvals, and the parent was minted by grant {subject.grant}",
                hint="mint a token by that grant, with its approval, and exchange it",
                metadata={"grant": grant.id},
            )
            enforce(grant, Demand.APPROVALS, needed, self._meter)
