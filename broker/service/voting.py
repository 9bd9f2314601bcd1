"""Vote on approvals: a person's decision, with their signature over what they saw."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from broker.domain.approval import Ended, Standing, Vote, is_recent, judge, refusal, told_of
from broker.domain.asking import Ask
from broker.errors import ApprovalOver, Forbidden, Invalid, LoginTooOld, Malformed, PolicyMoved, Untrusted
from broker.ledger.entry import Entry, Kind, encode_entry
from broker.service.approval_ports import ApprovalEnded, ApprovalIsOpen, ApprovalRecord, HasNotVoted, VoteCast
from broker.service.approving import MAX_ATTEMPTS, VOTERS, Approving, Shown
from broker.service.calling import Caller, CertificateProof, IdentityProof, must_still_be_known
from broker.service.mint import allowed_or_refused
from broker.service.policies import Policies, PolicyInForce
from broker.service.ports import Clock, Guard, Ledger, RequestKey, Write
from broker.token.approval import (
    ApprovalRequest,
    ApprovalStatement,
    Decision,
    Wanted,
    check_statement,
    plain_statement,
    request_hash,
    spelled,
)
from broker.token.keys import Jwk, thumbprint

# A statement is made for the call that brings it.
STATEMENT_AGE = timedelta(minutes=5)
STATEMENT_AHEAD = timedelta(seconds=60)


@dataclass(frozen=True, slots=True)
class Signed:
    """A statement as it came, and the key that it must be by: the certificate's, or the one that a login names."""

    statement: str
    key: Jwk


class Voting:
    """Decisions by people. The rules live here and in the domain, whichever door is used."""

    def __init__(self, ledger: Ledger, approving: Approving, policies: Policies, clock: Clock) -> None:
        self._ledger = ledger
        self._approving = approving
        self._policies = policies
        self._clock = clock

    def __call__(self, caller: Caller, approval: str, decision: Decision, signed: Signed, request: RequestKey) -> Shown:
        """Record what a person decides about a request, with their signature over what they saw.

        Raises:
            NotFound: There is none, or the caller is not of its group.
            Forbidden: The caller asked for it, or it is for them, or they are no person.
            LoginTooOld, ApprovalOver, VotedAlready, Invalid: Refused; nothing was written.
            Whatever `Ledger.append` raises.
        """
        caller.must_be(*VOTERS)
        record = self._approving.visible(caller, approval, self._policies.current())
        login_at = _login_at(caller, signed.key)
        self._must_be_stated(caller, record, decision, signed)
        for _ in range(MAX_ATTEMPTS):
            in_force = self._policies.current()
            must_still_be_known(caller, in_force)
            now = self._clock.now()
            self._must_be_able(caller, record, decision, login_at, in_force, now)
            try:
                self._ledger.append(
                    self._voting(caller, record, decision, signed, login_at, request, in_force, now)
                ).result()
            except PolicyMoved:
                self._policies.refresh()
                continue
            return self._approving.shown(self._approving.known(approval))
        raise PolicyMoved("the policy kept moving while it was decided", hint="retry")

    def _must_be_stated(self, caller: Caller, record: ApprovalRecord, decision: Decision, signed: Signed) -> None:
        statement = _checked(signed)
        now = self._clock.now()
        if statement.request != request_hash(record.document):
            # Shown A and sent for B: whoever signed saw something else (B15).
            raise Invalid("statement", "signs another request than this one", hint="look at it: broker approval show")
        if statement.decision is not decision or statement.approver != caller.principal:
            raise Invalid("statement", "states another decision, or somebody else's", hint="sign what you send")
        if not -STATEMENT_AHEAD <= now - datetime.fromtimestamp(statement.iat, now.tzinfo) <= STATEMENT_AGE:
            raise Invalid("statement", "was not signed just now", hint="check your clock, and sign anew")

    def _must_be_able(
        self,
        caller: Caller,
        record: ApprovalRecord,
        decision: Decision,
        login_at: datetime,
        in_force: PolicyInForce,
        now: datetime,
    ) -> None:
        asked = record.approval.request
        why = refusal(asked, in_force.policy.principals[caller.principal], in_force.policy)
        if why:
            raise Forbidden(why, hint="another person of the group must decide")
        if not is_recent(asked, login_at, now):
            raise LoginTooOld(
                f"the login of {caller.principal} is from {spelled(login_at)}; "
                f"grant {asked.grant} wants one of the last {asked.login_s} s"
            )
        judged = judge(record.approval, in_force.policy, now)
        if judged.standing.is_over:
            state = judged.standing.value
            raise ApprovalOver(f"approval {asked.id} is {state}: {judged.why}", metadata={"state": state})
        if decision is Decision.APPROVE:
            _must_be_granted_still(asked, in_force)

    def _voting(
        self,
        caller: Caller,
        record: ApprovalRecord,
        decision: Decision,
        signed: Signed,
        login_at: datetime,
        request: RequestKey,
        in_force: PolicyInForce,
        now: datetime,
    ) -> Write:
        approval, person = record.approval.request.id, caller.person or ""
        approves = decision is Decision.APPROVE
        kind = Kind.APPROVAL_GIVEN if approves else Kind.APPROVAL_DENIED
        body = {
            **told_of(record.approval.request),
            "request": request.request_id,
            "sha256": request_hash(record.document),
            "person": person,
            "login_at": spelled(login_at),
            "proof": str(caller.proof),
            "statement": plain_statement(signed.statement, signed.key),
        }
        guards: tuple[Guard, ...] = (ApprovalIsOpen(approval),)
        cast = VoteCast(approval, Vote(person, caller.principal, decision, now, login_at))
        return Write(
            [lambda index: encode_entry(Entry(index, kind, now, caller.principal, body))],
            request=request,
            expecting=in_force.version,
            # A yes can be taken back by a no.
            guards=(*guards, HasNotVoted(approval, person)) if approves else guards,
            effects=(cast,) if approves else (cast, ApprovalEnded(approval, Ended(Standing.DENIED, now))),
        )


def _login_at(caller: Caller, key: Jwk) -> datetime:
    """Return when the person logged in; the key that signs must be the one that they logged in with."""
    match caller.proof:
        case CertificateProof(not_before=datetime() as since):
            return since
        case IdentityProof(authenticated_at=datetime() as since, key=str() as bound) if bound == thumbprint(key):
            return since
        case IdentityProof(authenticated_at=datetime()):
            raise Invalid("key", "is not the one that this login is bound to", hint="log in anew: broker login")
        case _:
            raise LoginTooOld(f"the proof of {caller.principal} does not say when they logged in")


def _checked(signed: Signed) -> ApprovalStatement:
    try:
        return check_statement(signed.statement, signed.key)
    except (Malformed, Untrusted) as bad:
        raise Invalid("statement", bad.message, hint="sign it with the key that you log in with") from bad


def _must_be_granted_still(asked: ApprovalRequest, in_force: PolicyInForce) -> None:
    ask = Ask(
        asked.realm,
        asked.partner,
        asked.user,
        asked.workload,
        asked.models,
        asked.environment,
        ttl_s=asked.lifetime_s if asked.purpose is Wanted.TOKEN else None,
    )
    if allowed_or_refused(ask, in_force, None).grant != asked.grant:
        raise ApprovalOver("another grant covers it by now", metadata={"state": Standing.VOID.value})
