"""Say what a policy would change before it is applied: in words, with the runs and tokens that it would touch."""

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import timedelta

from broker.domain.access_changes import steps
from broker.domain.asking import Ask
from broker.domain.changes import Change
from broker.domain.decision import Allowed, decide
from broker.domain.difference import difference
from broker.domain.policy import Policy, Role, reviewed
from broker.domain.reach import Way, ways
from broker.errors import Invalid
from broker.service.apply_policy import ApplyPolicy, plan_id
from broker.service.calling import Caller
from broker.service.policies import Policies, PolicyInForce
from broker.service.ports import Clock, Ledger, RunRecord
from broker.service.proof_ports import Proofs

# Of a partner's runs, the newest so many are looked at; of those touched, so many are told.
MOST_RUNS = 10_000
MOST_RUNS_TOLD = 100
# Counting tokens reads the ledger; a plan does not wait longer for it.
COUNT_S = 3.0

Place = tuple[str, str]
"""A partner and a realm."""


@dataclass(frozen=True, slots=True)
class TouchedRun:
    """A run that is open, with the models for which somebody of it could mint no more, or on other terms."""

    run: RunRecord
    lost: tuple[str, ...]
    changed: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """What applying a document would change, were it done at policy `version`.

    `tokens`: how many live tokens could not be minted again; they live on until they end. None: too many to count.
    """

    id: str
    version: int
    changes: tuple[Change, ...]
    runs: tuple[TouchedRun, ...]
    has_more_runs: bool
    tokens: int | None


class PlanPolicy:
    """Compares a document with the policy in force, and writes nothing."""

    def __init__(
        self,
        ledger: Ledger,
        proofs: Proofs,
        policies: Policies,
        apply: ApplyPolicy,
        clock: Clock,
        *,
        digest: Callable[[bytes], str],
    ) -> None:
        self._ledger = ledger
        self._proofs = proofs
        self._policies = policies
        self._apply = apply
        self._clock = clock
        self._digest = digest

    def __call__(self, caller: Caller, document: str) -> Plan:
        """Plan `document`.

        Raises:
            Forbidden: The role may not see the policy.
            Invalid, ConfigInvalid: It could not be applied; what is wrong is named as it would be then.
            StoreUnavailable: Runs or tokens cannot be read.
        """
        caller.must_be(Role.ADMIN, Role.AUDITOR)
        unjudged, data = self._apply.checked(document)
        after = reviewed(unjudged, self._clock.now().date())
        in_force = self._policies.refresh()
        version = max(in_force.version, 0)
        moved = {(step.way.partner, step.way.realm) for step in steps(in_force.policy, after)}
        runs = self._touched_runs(in_force.policy, after, moved)
        return Plan(
            plan_id(version, data, self._digest),
            version,
            difference(in_force.policy, after),
            runs[:MOST_RUNS_TOLD],
            len(runs) > MOST_RUNS_TOLD,
            self._lost_tokens(in_force, after, moved),
        )

    def _touched_runs(self, before: Policy, after: Policy, moved: Collection[Place]) -> tuple[TouchedRun, ...]:
        now = self._clock.now()
        judged: dict[object, tuple[tuple[str, ...], tuple[str, ...]]] = {}
        touched = []
        for partner in sorted({partner for partner, _ in moved}):
            for run in self._ledger.runs(partner, MOST_RUNS):
                if run.is_closed or run.lease_ends_at <= now or (partner, run.realm) not in moved:
                    continue
                key = (partner, run.realm, run.models, run.user, run.workload, run.environment)
                if key not in judged:
                    judged[key] = _models_touched(before, after, run)
                lost, changed = judged[key]
                if lost or changed:
                    touched.append(TouchedRun(run, lost, changed))
        return tuple(touched)

    def _lost_tokens(self, in_force: PolicyInForce, after: Policy, moved: Collection[Place]) -> int | None:
        if not moved:
            return 0
        now = self._clock.now()
        deadline_ns = self._clock.boottime_ns() + int(COUNT_S * 1e9)
        partners = {partner for partner, _ in moved}
        containing = [f'"partner":{json.dumps(min(partners))}'.encode()] if len(partners) == 1 else []
        longest_s = max((realm.max_ttl_s for realm in in_force.policy.realms.values()), default=0)
        judged: dict[object, bool] = {}
        lost = 0
        for entry in self._proofs.minted(containing, since=now - timedelta(seconds=longest_s)):
            if self._clock.boottime_ns() > deadline_ns:
                return None
            claims = json.loads(entry)["body"]["claims"]
            if claims["exp"] > now.timestamp() and (claims["partner"], claims["realm"]) in moved:
                lost += _is_lost(claims, in_force.policy, after, judged)
        return lost


def _models_touched(before: Policy, after: Policy, run: RunRecord) -> tuple[tuple[str, ...], tuple[str, ...]]:
    lost: set[str] = set()
    changed: set[str] = set()
    for way, (was, becomes) in ways([before, after], run.partner, run.realm, run.models):
        if not _is_on(run, way):
            continue
        if was is not None and becomes is None:
            lost |= way.models
        elif was is not None and was != becomes:
            changed |= way.models
    return tuple(sorted(lost)), tuple(sorted(changed - lost))


def _is_on(run: RunRecord, way: Way) -> bool:
    """Tell whether a token of the run may be asked for on this way."""
    if run.environment is not None and run.environment not in way.environments:
        return False
    if run.user is None and run.workload is None:
        return True
    return any(user in (None, run.user) and workload in (None, run.workload) for user, workload in way.subjects)


def _is_lost(claims: Mapping[str, object], before: Policy, after: Policy, judged: dict[object, bool]) -> bool:
    """Tell whether a token was minted by what `before` allows and `after` does not; what is alike is judged once."""
    key = (*(claims.get(name) for name in ("realm", "partner", "user", "workload", "env")), str(claims["models"]))
    if key not in judged:
        try:
            ask = ask_of(claims)
        except Invalid:
            return False
        sides = [isinstance(decide(ask, side, {}), Allowed) for side in (before, after)]
        judged[key] = sides == [True, False]
    return judged[key]


def ask_of(claims: Mapping[str, object]) -> Ask:
    """Return what would be asked for to have a token again. Raises Invalid."""

    def named(name: str) -> str | None:
        value = claims.get(name)
        return str(value) if value is not None else None

    models = claims["models"]
    return Ask(
        realm=str(claims["realm"]),
        partner=str(claims["partner"]),
        user=named("user"),
        workload=named("workload"),
        models=tuple(models) if isinstance(models, list | tuple) else (),
        environment=str(claims["env"]),
    )
