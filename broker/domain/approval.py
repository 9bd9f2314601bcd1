"""Approvals: how one stands at an instant, who may say yes to it, and what its grant must still demand."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from broker.domain.asking import Ask
from broker.domain.policy import Grant, Policy, Principal, Role
from broker.token.approval import ApprovalRequest, Decision, Wanted
from broker.token.identifiers import bare_name

# A person's clock, or their provider's, may be ahead of ours by so much.
CLOCK_MARGIN = timedelta(seconds=60)


class Standing(StrEnum):
    """How an approval stands."""

    WAITING = "waiting"
    APPROVED = "approved"
    DENIED = "denied"
    WITHDRAWN = "withdrawn"
    EXPIRED = "expired"
    SPENT = "spent"
    LAPSED = "lapsed"
    VOID = "void"

    @property
    def is_over(self) -> bool:
        """Tell whether nobody can vote on it or use it any more."""
        return self not in (Standing.WAITING, Standing.APPROVED)


@dataclass(frozen=True, slots=True)
class Vote:
    """What one person said of a request, `at`, having logged in at `login_at`."""

    person: str
    principal: str
    decision: Decision
    at: datetime
    login_at: datetime


@dataclass(frozen=True, slots=True)
class Ended:
    """It was denied, withdrawn or spent, or a restore voided it. `on`: the token or run it was spent on; else empty."""

    how: Standing
    at: datetime
    on: str = ""


@dataclass(frozen=True, slots=True)
class Approval:
    """A request with all that happened to it, the votes in their order."""

    request: ApprovalRequest
    votes: tuple[Vote, ...] = ()
    ended: Ended | None = None


@dataclass(frozen=True, slots=True)
class Judged:
    """How an approval stands, why, whose yes counts, and until when it stays so unless something happens."""

    standing: Standing
    why: str
    counted: tuple[Vote, ...] = ()
    until: datetime | None = None


def judge(approval: Approval, policy: Policy, now: datetime) -> Judged:
    """Tell how `approval` stands at `now`, by the policy as it is now.

    Whoever has left the group, or is known as somebody else by now, has not approved. What the grant demands
    must be what it demanded when the request was made.
    """
    request = approval.request
    if approval.ended is not None:
        return Judged(approval.ended.how, f"it was {approval.ended.how.value}")
    changed = changed_since(request, policy)
    if changed:
        return Judged(Standing.VOID, changed)
    counted = tuple(_counted(approval, policy))
    closes_at = request.created_at + timedelta(seconds=request.window_s)
    if len(counted) >= request.needed:
        ends_at = counted[request.needed - 1].at + timedelta(seconds=request.valid_s)
        if now >= ends_at:
            return Judged(Standing.LAPSED, "it was approved, and not used in time", counted)
        return Judged(Standing.APPROVED, f"{len(counted)} of {request.needed} approved", counted, ends_at)
    missing = f"{len(counted)} of {request.needed} approved"
    if now >= closes_at:
        return Judged(Standing.EXPIRED, f"only {missing} in time", counted)
    return Judged(Standing.WAITING, missing, counted, closes_at)


def changed_since(request: ApprovalRequest, policy: Policy) -> str:
    """Return what of a request's grant or requester is not as it was when it was asked for; empty when nothing is."""
    asked = policy.principals.get(request.requester)
    if asked is None or (asked.role, asked.partner) != (Role.HARNESS, request.partner):
        return f"{request.requester}, who asked, is no harness of {request.partner} any more"
    if asked.person != request.person:
        return f"{request.requester}, who asked, is known as somebody else by now"
    grant = policy.grant(request.grant)
    if grant is None or grant not in policy.grants_for(request.partner, request.realm):
        return f"grant {request.grant} is no longer this partner's"
    if grant.approvals is None:
        return f"grant {request.grant} needs no approvals any more"
    demanded = demands_of(grant)
    changed = [name for name in sorted(demanded) if demanded[name] != getattr(request, name)]
    return f"grant {request.grant} demands something else by now ({', '.join(changed)})" if changed else ""


def demands_of(grant: Grant) -> Mapping[str, str | int]:
    """Return what a grant with approvals demands, by the names of a request: it is part of what is approved."""
    rule = grant.approvals
    assert rule is not None  # noqa: S101 - the caller looked
    return {
        "needed": rule.needed,
        "group": rule.group,
        "window_s": rule.window_s,
        "valid_s": rule.valid_s,
        "login_s": rule.login_s,
        "binding": grant.binding.value,
        "delegation": grant.delegation,
    }


def told_of(request: ApprovalRequest) -> dict[str, object]:
    """Return what each ledger entry about a request says of it, by the names that a run's entries use."""
    told = {
        "approval": request.id,
        "realm": request.realm,
        "partner": request.partner,
        "models": list(request.models),
        "user": request.user,
        "workload": request.workload,
        "environment": request.environment,
        "grant": request.grant,
    }
    return {name: value for name, value in told.items() if value is not None}


def _counted(approval: Approval, policy: Policy) -> Iterator[Vote]:
    request = approval.request
    closes_at = request.created_at + timedelta(seconds=request.window_s)
    seen: set[str] = set()
    for vote in approval.votes:
        principal = policy.principals.get(vote.principal)
        if vote.decision is not Decision.APPROVE or vote.person in seen or principal is None:
            continue
        if principal.person != vote.person or refusal(request, principal, policy):
            continue
        if request.created_at <= vote.at < closes_at and is_recent(request, vote.login_at, vote.at):
            seen.add(vote.person)
            yield vote


def refusal(request: ApprovalRequest, principal: Principal, policy: Policy) -> str:
    """Return why `principal` may not vote on a request, by the policy as it is; empty: they may."""
    if principal.role is not Role.APPROVER:
        return f"{principal.id} is {principal.role.value}; this needs the role approver"
    if is_program(principal, policy):
        return f"{principal.id} is a program: only people approve"
    if principal.person not in policy.groups.get(request.group, frozenset()):
        return f"{principal.person} is not in the group {request.group}"
    if principal.person in interested(request, policy):
        return f"{principal.person} asked for it, or it is for them: nobody approves what is for themselves"
    return ""


def is_program(principal: Principal, policy: Policy) -> bool:
    """Tell whether a principal is none of the people: nobody says who, or a provider of workloads vouches for it."""
    if principal.person is None or principal.workload is not None:
        return True
    if principal.rule is None:
        return False
    provider = policy.providers.get(principal.rule.provider)
    return provider is None or not provider.for_humans


def interested(request: ApprovalRequest, policy: Policy) -> frozenset[str]:
    """Return the people who gain by a request, by every name under which the policy knows them."""
    asked = policy.principals.get(request.requester)
    # Also by the bare name: a partner's user of whom the policy says nothing else may be that person.
    people = {request.person, request.user}
    if asked is not None:
        people |= {asked.person, asked.user}
    if request.user is not None:
        people |= {
            principal.person
            for principal in policy.principals.values()
            if principal.partner == request.partner and principal.user == request.user
        }
    return frozenset(person for person in people if person is not None)


def is_recent(request: ApprovalRequest, login_at: datetime, at: datetime) -> bool:
    """Tell whether somebody who logged in at `login_at` has done so recently enough to vote `at`."""
    return -CLOCK_MARGIN <= at - login_at <= timedelta(seconds=request.login_s)


def difference(request: ApprovalRequest, ask: Ask, wanted: Wanted, grant: str, lifetime_s: int, requester: str) -> str:
    """Return the first name in which what is wanted is not what was approved; empty when they are the same."""
    pairs = (
        ("purpose", request.purpose, wanted),
        ("realm", request.realm, ask.realm),
        ("partner", request.partner, ask.partner),
        ("requester", request.requester, requester),
        ("user", request.user, ask.user),
        ("workload", request.workload, ask.workload),
        ("environment", request.environment, ask.environment),
        ("models", request.models, tuple(sorted(ask.models))),
        ("lifetime", request.lifetime_s, lifetime_s),
        ("grant", request.grant, grant),
    )
    return next((name for name, approved, asked in pairs if approved != asked), "")


def is_within_run(request: ApprovalRequest, ask: Ask, grant: str) -> bool:
    """Tell whether a token that `grant` allows is within the run that `request` was for."""
    return (
        request.purpose is Wanted.RUN
        and (request.realm, request.partner) == (ask.realm, ask.partner)
        and (request.user, request.workload) == (ask.user, ask.workload)
        and (request.environment, request.grant) == (ask.environment, grant)
        and all(model in request.models or bare_name(model) in request.models for model in ask.models)
    )


def problems(policy: Policy) -> Iterator[tuple[str, str]]:
    """Yield (grant, what is wrong) for each grant whose approvals nobody could ever give."""
    for grant in policy.grants:
        rule = grant.approvals
        if rule is None:
            continue
        able = {
            principal.person
            for principal in policy.principals.values()
            if principal.role is Role.APPROVER and not is_program(principal, policy)
        }
        able &= policy.groups.get(rule.group, frozenset())
        if rule.needed < 1:
            # OpenBao: a rule with zero approvals was open.
            yield grant.id, "needs zero approvals; demand at least 1, or leave approvals out"
        elif rule.needed > len(able):
            has = f"group {rule.group} has {len(able)} with the role approver"
            yield grant.id, f"needs {rule.needed} approvals, and {has}; lower it, or add principals"
