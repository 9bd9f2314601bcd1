"""What a run will need, decided all at once: each model by itself, at one place, for whom the run is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from broker.domain.asking import Ask
from broker.domain.decision import BLOCKED, INVALID, NOT_GRANTED, Allowed, Reason, decide, told
from broker.domain.policy import Policy
from broker.token.revocation import Selector

Subject = tuple[str | None, str | None]
"""User and workload."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run is wanted for. `subject` None: anybody of the partner will do, for each model."""

    realm: str
    partner: str
    models: tuple[str, ...]
    environment: str
    subject: Subject | None


@dataclass(frozen=True, slots=True)
class Problem:
    """Why some of the models cannot be had."""

    models: tuple[str, ...]
    why: Reason

    def __str__(self) -> str:
        return f"{', '.join(self.models)}: {self.why.rule}: {self.why.detail}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """The grant of each model that can be had, and every problem there is, each told once."""

    grants: tuple[tuple[str, str], ...]
    problems: tuple[Problem, ...]


def judge(plan: Plan, policy: Policy, blocks: Mapping[Selector, int]) -> Outcome:
    """Decide each model of `plan` as a mint would be decided."""
    subjects = [plan.subject] if plan.subject is not None else _all_subjects(plan, policy)
    grants: list[tuple[str, str]] = []
    reasons: dict[Reason, list[str]] = {}
    for model in plan.models:
        verdict = _best(plan, model, subjects, policy, blocks)
        if isinstance(verdict, Allowed):
            grants.append((model, verdict.grant))
        else:
            reasons.setdefault(verdict, []).append(model)
    problems = tuple(Problem(tuple(models), why) for why, models in reasons.items())
    return Outcome(tuple(grants), problems)


def worst_code(problems: Sequence[Problem]) -> str:
    """Return what the caller should be told to do: ask for a grant, before waiting for a block to be lifted."""
    codes = {problem.why.code for problem in problems}
    return next(code for code in (NOT_GRANTED, BLOCKED, INVALID) if code in codes)


def _best(
    plan: Plan, model: str, subjects: Sequence[Subject], policy: Policy, blocks: Mapping[Selector, int]
) -> Allowed | Reason:
    """Return the first subject's grant, or why not: a block rather than a missing grant, because it can be lifted."""
    found: Reason | None = None
    for user, workload in subjects:
        ask = Ask(plan.realm, plan.partner, user, workload, (model,), plan.environment)
        verdict = decide(ask, policy, blocks)
        if isinstance(verdict, Allowed):
            return verdict
        # As a mint would be told: nothing of what the partner was never granted (P8).
        why = told(ask, policy, verdict.why)
        if found is None or (found.code != BLOCKED and why.code == BLOCKED):
            found = why
    if found is not None:
        return found
    detail = f"{plan.partner} may not use {model} in {plan.realm} from {plan.environment} (no grant)"
    return Reason(NOT_GRANTED, "default", detail)


def _all_subjects(plan: Plan, policy: Policy) -> list[Subject]:
    known, realm = policy.partners.get(plan.partner), policy.realms.get(plan.realm)
    if known is None:
        return []
    users, workloads = sorted(known.users), sorted(known.workloads)
    if realm is not None and realm.needs_both:
        return [(user, workload) for user in users for workload in workloads]
    return [*((user, None) for user in users), *((None, workload) for workload in workloads)]
