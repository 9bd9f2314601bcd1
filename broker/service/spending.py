"""Spending approvals: what a grant needs before it gives, and how an approval is used once, in the same transaction."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from broker.domain.approval import Ended, Standing, difference, is_within_run, judge, told_of
from broker.domain.asking import UNRECOGNISED, Ask
from broker.domain.policy import Grant, Policy
from broker.errors import ApprovalMismatch, ApprovalNeeded, ApprovalOver, NotFound
from broker.ledger.entry import Entry, Kind, encode_entry
from broker.service.approval_ports import ApprovalEnded, ApprovalIsOpen, ApprovalRecord, Approvals
from broker.service.enforcing import Demand, enforce
from broker.service.metering import Meter
from broker.service.ports import Draft, Effect, Guard, RequestKey, RunRecord
from broker.token.approval import Wanted, request_hash

MAX_KNOWN = 10_000


@dataclass(frozen=True, slots=True)
class Held:
    """The approvals that some asks name, and those that their runs were opened with, as the store had them."""

    by_id: Mapping[str, ApprovalRecord] = field(default_factory=dict)
    by_run: Mapping[str, ApprovalRecord | None] = field(default_factory=dict)


NOTHING_HELD = Held()


@dataclass(frozen=True, slots=True)
class Spending:
    """What a write needs besides, so that the approvals that it uses are spent with it, once.

    `used`: the approval of each token or run by its id; of a token of an approved run, the run's.
    """

    drafts: tuple[Draft, ...] = ()
    guards: tuple[Guard, ...] = ()
    effects: tuple[Effect, ...] = ()
    used: Mapping[str, str] = field(default_factory=dict)


NOTHING_SPENT = Spending()


@dataclass(frozen=True, slots=True)
class Use:
    """What an approval is to be spent on: `grant` allows `ask` for `lifetime_s`. `on`: id of the token or the run."""

    wanted: Wanted
    ask: Ask
    grant: str
    lifetime_s: int
    requester: str
    approval: str | None
    on: str


class HoldApprovals:
    """Reads the approvals that asks may use. Safe for use by several threads."""

    def __init__(self, approvals: Approvals) -> None:
        self._approvals = approvals
        # Of a run that was opened: what it was opened with never changes.
        self._spent: OrderedDict[str, ApprovalRecord] = OrderedDict()

    def __call__(self, named: Sequence[str], runs: Mapping[str, str | None]) -> Held:
        """Read those `named`, and those that `runs`, which exist, were opened with. Raises StoreUnavailable."""
        opened = {approval for approval in runs.values() if approval is not None}
        wanted = {*named, *(opened - self._spent.keys())}
        found = {record.approval.request.id: record for record in self._approvals.approvals_by_id(wanted)}
        known = {**self._spent, **found}
        self._spent.update((approval, found[approval]) for approval in opened & found.keys())
        while len(self._spent) > MAX_KNOWN:
            self._spent.popitem(last=False)
        return Held(
            {approval: found[approval] for approval in named if approval in found},
            {run: known.get(approval) for run, approval in runs.items() if approval is not None},
        )


def spend_for_run(
    run: RunRecord,
    named: str | None,
    requester: str,
    held: Held,
    policy: Policy,
    now: datetime,
    request: RequestKey,
    meter: Meter,
) -> Spending:
    """Return what spends the approval that opening `run` needs, for all of its models; `named`: the one to spend.

    A run that is for anybody of the partner needs none: each of its tokens does. Raises as `spend_approval`.
    """
    known = (policy.grant(name) for _, name in run.grants)
    demanding = [one for one in known if one is not None and one.approvals is not None]
    # One that is only audited refuses nothing: it is noted, unless another one refuses.
    enforced = {one.id for one in demanding if not one.is_audit_only}
    needing = sorted(enforced or {one.id for one in demanding})
    if run.user is None and run.workload is None:
        if named is not None:
            raise ApprovalMismatch("an approved run is for somebody", metadata={"field": "user"})
        return NOTHING_SPENT
    if not needing and named is None:
        return NOTHING_SPENT
    if len(enforced) > 1:
        raise ApprovalNeeded(
            f"the run's models need approvals under {', '.join(needing)}",
            hint="open a run for the models of each",
            metadata={"grant": needing[0], "purpose": Wanted.RUN.value},
        )
    ask = Ask(run.realm, run.partner, run.user, run.workload, run.models, run.environment or UNRECOGNISED)
    grant = needing[0] if needing else run.grants[0][1]
    use = Use(Wanted.RUN, ask, grant, run.lease_s, requester, named, run.id)
    return spend_approval([use], held, policy, now, request, meter)


def is_about_approval(ask: Ask, grant: str, policy: Policy) -> bool:
    """Tell whether approvals matter to what `grant` allows: most asks need none and name none."""
    known = policy.grant(grant)
    return ask.approval is not None or (known is not None and known.approvals is not None)


def spend_approval(
    uses: Sequence[Use], held: Held, policy: Policy, now: datetime, request: RequestKey, meter: Meter
) -> Spending:
    """Return what spends the approvals that `uses` need, by the policy in force.

    Where a grant is only audited, what is wrong is noted, and nothing spent.

    Raises:
        ApprovalNeeded: One is needed, and none is named, or it waits for more people.
        ApprovalOver: It cannot be used any more.
        ApprovalMismatch: It is for something else.
        NotFound: There is no such approval of this partner.
    """
    spent: dict[str, tuple[Draft, Effect]] = {}
    used: dict[str, str] = {}
    for use in uses:
        grant = policy.grant(use.grant)
        if grant is None or (grant.approvals is None and use.approval is None):
            continue
        try:
            part = _spending(use, grant, held, policy, now, request)
            if part is not None and use.approval in spent:
                raise ApprovalOver("one approval is named for two tokens", hint="each is for one: ask for another")
        except (ApprovalNeeded, ApprovalOver, ApprovalMismatch, NotFound) as problem:
            enforce(grant, Demand.APPROVALS, problem, meter)
            continue
        if part is not None and use.approval is not None:
            spent[use.approval] = part
        used[use.on] = use.approval or _of_run(use, held) or ""
    if not used:
        return NOTHING_SPENT
    return Spending(
        tuple(draft for draft, _ in spent.values()),
        tuple(ApprovalIsOpen(approval) for approval in spent),
        tuple(effect for _, effect in spent.values()),
        used,
    )


def _spending(
    use: Use, grant: Grant, held: Held, policy: Policy, now: datetime, request: RequestKey
) -> tuple[Draft, Effect] | None:
    """Return the entry and the effect of spending one approval, or None: a token of an approved run needs no other."""
    if use.approval is None:
        if _of_run(use, held) is None:
            raise _needed(use, grant)
        return None
    record = held.by_id.get(use.approval)
    # Another partner's is as unknown as one that never was (B20).
    if record is None or record.approval.request.partner != use.ask.partner:
        raise NotFound("there is no such approval of yours", hint="see: broker approval list")
    _must_be_usable(use, record, policy, now)
    _must_be_the_same(use, record)
    body = {
        **told_of(record.approval.request),
        "request": request.request_id,
        "sha256": request_hash(record.document),
        "purpose": use.wanted.value,
        "on": use.on,
        "approvers": sorted(vote.person for vote in judge(record.approval, policy, now).counted),
    }

    def draft(index: int) -> bytes:
        return encode_entry(Entry(index, Kind.APPROVAL_SPENT, now, request.principal, body))

    return draft, ApprovalEnded(use.approval, Ended(Standing.SPENT, now, use.on))


def _of_run(use: Use, held: Held) -> str | None:
    """Return the approval of the run that a token is within, or None."""
    if use.wanted is not Wanted.TOKEN or use.ask.run is None:
        return None
    record = held.by_run.get(use.ask.run)
    if record is None or not is_within_run(record.approval.request, use.ask, use.grant):
        return None
    return record.approval.request.id


def _needed(use: Use, grant: Grant) -> ApprovalNeeded:
    rule = grant.approvals
    people = "" if rule is None else f" of {rule.needed} of group {rule.group}"
    return ApprovalNeeded(
        f"grant {grant.id} needs the approval{people} for this {use.wanted.value}",
        hint=f"ask for it: broker approval request --for {use.wanted.value} ..., then name it with --approval",
        metadata={"grant": grant.id, "purpose": use.wanted.value},
    )


def _must_be_usable(use: Use, record: ApprovalRecord, policy: Policy, now: datetime) -> None:
    judged = judge(record.approval, policy, now)
    match judged.standing:
        case Standing.APPROVED | Standing.SPENT:
            # Of one that is spent, the guard says so, unless this is the very request that it was spent on.
            return
        case Standing.WAITING:
            raise ApprovalNeeded(
                f"approval {use.approval} waits for more people: {judged.why}",
                hint=f"wait for it: broker approval wait {use.approval}",
                metadata={"grant": use.grant, "purpose": use.wanted.value, "approval": use.approval or ""},
            )
        case _:
            state = judged.standing.value
            raise ApprovalOver(f"approval {use.approval} is {state}: {judged.why}", metadata={"state": state})


def _must_be_the_same(use: Use, record: ApprovalRecord) -> None:
    approved = record.approval.request
    field_name = difference(approved, use.ask, use.wanted, use.grant, use.lifetime_s, use.requester)
    if not field_name and use.wanted is Wanted.TOKEN and use.ask.run is not None:
        field_name = "run"
    if field_name:
        raise ApprovalMismatch(
            f"approval {use.approval} is for another {field_name} than what is asked for",
            metadata={"field": field_name},
        )
