"""Ask for approvals, give them, deny them, take them back, and tell how they stand."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from broker.domain.approval import (
    Ended,
    Judged,
    Standing,
    demands_of,
    judge,
    told_of,
)
from broker.domain.asking import UNRECOGNISED, Ask
from broker.domain.decision import Allowed
from broker.domain.policy import Role
from broker.errors import (
    Forbidden,
    Invalid,
    NotFound,
    PolicyMoved,
)
from broker.ledger.entry import Entry, Kind, decode_entry, encode_entry
from broker.service.approval_ports import (
    ApprovalAsked,
    ApprovalEnded,
    ApprovalIsOpen,
    ApprovalRecord,
    Approvals,
    RoomToAsk,
)
from broker.service.calling import Caller, must_still_be_known
from broker.service.mint import allowed_or_refused
from broker.service.policies import Policies, PolicyInForce
from broker.service.ports import Clock, Ledger, RequestKey, Write
from broker.service.runs import DEFAULT_LEASE_S, MAX_LEASE_S, MIN_LEASE_S
from broker.token.approval import (
    ApprovalRequest,
    Wanted,
    encode_request,
    request_hash,
)

MAX_WAITING = 200
MAX_ATTEMPTS = 20
# A statement is made for the call that brings it.
STATEMENT_AGE = timedelta(minutes=5)
STATEMENT_AHEAD = timedelta(seconds=60)


@dataclass(frozen=True, slots=True)
class Shown:
    """An approval and how it stands now."""

    record: ApprovalRecord
    judged: Judged


@dataclass(frozen=True, slots=True)
class Wish:
    """What approval is asked for. `lifetime_s` None: the grant's default, or a run's."""

    purpose: Wanted
    realm: str
    partner: str
    user: str | None
    workload: str | None
    models: tuple[str, ...]
    lifetime_s: int | None


class Approving:
    """Approvals by people. Rules live here and in the domain, whichever door is used."""

    def __init__(
        self, ledger: Ledger, approvals: Approvals, policies: Policies, clock: Clock, *, new_id: Callable[[], str]
    ) -> None:
        self._ledger = ledger
        self._approvals = approvals
        self._policies = policies
        self._clock = clock
        self._new_id = new_id

    def request(self, caller: Caller, wish: Wish, request: RequestKey) -> Shown:
        """Record what is asked for, exactly, for people to look at.

        Raises:
            Forbidden, NotGranted, Blocked, Invalid, LimitReached: Denied; nothing was written.
            Whatever `Ledger.append` raises.
        """
        caller.must_be(*ASKERS)
        caller.must_act_for(wish.partner)
        caller.must_speak_for(wish.user, wish.workload)
        for _ in range(MAX_ATTEMPTS):
            in_force = self._policies.current()
            must_still_be_known(caller, in_force)
            now = self._clock.now()
            asked = self._asked(caller, wish, in_force, now)
            document = encode_request(asked)
            body = {**told_of(asked), "request": request.request_id, "sha256": request_hash(document)}
            # The request is recorded letter by letter as it will be signed.
            whole = {"asked": document.decode("ascii")}
            write = Write(
                [
                    lambda index, at=now, body=body, whole=whole: encode_entry(  # type: ignore[misc]
                        Entry(index, Kind.APPROVAL_REQUESTED, at, caller.principal, body), spelled=whole
                    )
                ],
                request=request,
                expecting=in_force.version,
                guards=(RoomToAsk(wish.partner, MAX_WAITING, now),),
                effects=(ApprovalAsked(document),),
            )
            try:
                appended = self._ledger.append(write).result()
            except PolicyMoved:
                self._policies.refresh()
                continue
            [data] = self._ledger.entries(appended.indices.start, appended.indices.start + 1)
            return self.shown(self.known(str(decode_entry(data).body["approval"])))
        raise PolicyMoved("the policy kept moving while the approval was asked for", hint="retry")

    def withdraw(self, caller: Caller, approval: str, request: RequestKey) -> Shown:
        """Take a request back. Again does nothing.

        Raises:
            NotFound: There is none of the caller's own.
            ApprovalOver: It has ended otherwise.
            Whatever `Ledger.append` raises.
        """
        caller.must_be(*ASKERS)
        record = self.visible(caller, approval, self._policies.current())
        if record.approval.request.requester != caller.principal:
            raise Forbidden(
                "somebody else asked for it", hint="whoever asked may take it back; an approver may deny it"
            )
        ended = record.approval.ended
        if ended is None or ended.how is not Standing.WITHDRAWN:
            now = self._clock.now()
            told = told_of(record.approval.request)
            body = {**told, "request": request.request_id, "sha256": request_hash(record.document)}
            write = Write(
                [lambda index: encode_entry(Entry(index, Kind.APPROVAL_WITHDRAWN, now, caller.principal, body))],
                request=request,
                guards=(ApprovalIsOpen(approval),),
                effects=(ApprovalEnded(approval, Ended(Standing.WITHDRAWN, now)),),
            )
            self._ledger.append(write).result()
        return self.shown(self.known(approval))

    def get(self, caller: Caller, approval: str) -> Shown:
        """Tell how one stands. Raises Forbidden, NotFound."""
        caller.must_be(*READERS)
        return self.shown(self.visible(caller, approval, self._policies.current()))

    def listed(self, caller: Caller, partner: str | None, limit: int) -> list[Shown]:
        """Return the newest that the caller may see. Raises Forbidden."""
        caller.must_be(*READERS)
        groups = None
        if caller.role in (Role.HARNESS, Role.PARTNER_ADMIN):
            partner = caller.partner if partner is None else partner
            caller.must_act_for(partner or "")
        elif caller.role is Role.APPROVER:
            groups = _groups_of(caller, self._policies.current())
        found = self._approvals.approvals_asked(partner=partner, groups=groups, limit=limit)
        return [self.shown(record) for record in found]

    def stand(self, approvals: Collection[str]) -> Mapping[str, Judged]:
        """Tell how several stand, whoever asks: for those who have been told before, and wait for a change."""
        policy, now = self._policies.current().policy, self._clock.now()
        found = self._approvals.approvals_by_id(approvals)
        return {one.approval.request.id: judge(one.approval, policy, now) for one in found}

    def _asked(self, caller: Caller, wish: Wish, in_force: PolicyInForce, now: datetime) -> ApprovalRequest:
        is_run = wish.purpose is Wanted.RUN
        ask = Ask(
            wish.realm,
            wish.partner,
            wish.user,
            wish.workload,
            wish.models,
            caller.environment or UNRECOGNISED,
            ttl_s=None if is_run else wish.lifetime_s,
        )
        allowed: Allowed = allowed_or_refused(ask, in_force, None)
        grant = in_force.policy.grant(allowed.grant)
        if grant is None or grant.approvals is None:
            raise Invalid(
                "purpose",
                f"grant {allowed.grant} needs no approval for this",
                hint="mint the token, or open the run, without one",
            )
        lifetime_s = allowed.ttl_s
        if is_run:
            lifetime_s = DEFAULT_LEASE_S if wish.lifetime_s is None else wish.lifetime_s
            if not MIN_LEASE_S <= lifetime_s <= MAX_LEASE_S:
                raise Invalid("lifetime", f"{lifetime_s} s", hint=f"ask for {MIN_LEASE_S} s to {MAX_LEASE_S} s")
        return ApprovalRequest(
            id=self._new_id(),
            nonce=self._new_id(),
            created_at=now.replace(microsecond=now.microsecond // 1000 * 1000),
            purpose=wish.purpose,
            realm=wish.realm,
            partner=wish.partner,
            user=wish.user,
            workload=wish.workload,
            environment=ask.environment,
            models=tuple(sorted(wish.models)),
            lifetime_s=lifetime_s,
            grant=grant.id,
            requester=caller.principal,
            person=caller.person,
            **demands_of(grant),  # type: ignore[arg-type]
        )

    def known(self, approval: str) -> ApprovalRecord:
        """Return one, whoever asks. Raises NotFound."""
        found = self._approvals.approvals_by_id([approval])
        if not found:
            raise _unknown()
        return found[0]

    def visible(self, caller: Caller, approval: str, in_force: PolicyInForce) -> ApprovalRecord:
        """Return one that the caller may see. Raises NotFound."""
        record = self.known(approval)
        if not _may_see(caller, record, in_force):
            raise _unknown()
        return record

    def shown(self, record: ApprovalRecord) -> Shown:
        """Return it with how it stands now."""
        return Shown(record, judge(record.approval, self._policies.current().policy, self._clock.now()))


ASKERS = (Role.HARNESS,)
VOTERS = (Role.APPROVER,)
READERS = (Role.HARNESS, Role.PARTNER_ADMIN, Role.APPROVER, Role.ADMIN, Role.AUDITOR)


def _unknown() -> NotFound:
    # Another partner's is as unknown as one that never was (B20).
    return NotFound("there is no such approval of yours", hint="see: broker approval list")


def _may_see(caller: Caller, record: ApprovalRecord, in_force: PolicyInForce) -> bool:
    match caller.role:
        case Role.ADMIN | Role.AUDITOR:
            return True
        case Role.APPROVER:
            return record.approval.request.group in _groups_of(caller, in_force)
        case _:
            return caller.partner is not None and record.approval.request.partner == caller.partner


def _groups_of(caller: Caller, in_force: PolicyInForce) -> frozenset[str]:
    return frozenset(name for name, members in in_force.policy.groups.items() if caller.person in members)
