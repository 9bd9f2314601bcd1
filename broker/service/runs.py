"""Open, keep and close evaluation runs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

from broker.domain.asking import UNRECOGNISED, Ask
from broker.domain.policy import Role
from broker.domain.run_plan import Plan, Problem, judge, worst_code
from broker.errors import Invalid, NotFound, PolicyMoved
from broker.ledger.entry import Entry, Kind, decode_entry, encode_entry
from broker.service.calling import Caller, RunProof, must_still_be_known
from broker.service.limits import limits_of_run, note_limits
from broker.service.metering import Meter
from broker.service.mint import REFUSALS
from broker.service.policies import Policies, PolicyInForce
from broker.service.ports import (
    Clock,
    Ledger,
    RequestKey,
    RunIsOpen,
    RunKept,
    RunOpened,
    RunRecord,
    Write,
)
from broker.service.revoke import Revocations
from broker.service.spending import NOTHING_HELD, HoldApprovals, spend_for_run
from broker.service.users import must_prove_users
from broker.token.keys import thumbprint
from broker.token.revocation import Selector

DEFAULT_LEASE_S = 300
MIN_LEASE_S = 10
MAX_LEASE_S = 86_400
MAX_ATTEMPTS = 20
# However well it is kept. Longer than any evaluation, shorter than for ever.
DEFAULT_MAX_LIFE = timedelta(days=30)
MAX_PROBLEM_CHARS = 200


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a run is to be opened for. Without `user` and `workload`: see `_subject`."""

    realm: str
    partner: str
    models: tuple[str, ...]
    lease_s: int | None = None
    user: str | None = None
    workload: str | None = None
    # Public JWK, of which the caller has proven to have the private part.
    key: Mapping[str, str] | None = None
    approval: str | None = None


class Runs:
    """Runs of evaluation: families of tokens with a lease that the harness keeps alive."""

    def __init__(
        self,
        ledger: Ledger,
        policies: Policies,
        clock: Clock,
        revocations: Revocations,
        *,
        new_id: Callable[[], str],
        meter: Meter,
        hold: HoldApprovals,
        max_life: timedelta = DEFAULT_MAX_LIFE,
    ) -> None:
        self._hold = hold
        self._meter = meter
        self._max_life = max_life
        self._ledger = ledger
        self._policies = policies
        self._clock = clock
        self._revocations = revocations
        self._new_id = new_id

    def open(self, caller: Caller, wanted: Wanted, request: RequestKey) -> RunRecord:
        """Open a run, of which each model is granted to whom it is for, at the caller's place.

        Raises:
            Forbidden: Not for this caller.
            NotGranted, Blocked, Invalid: All that is wrong, in metadata `problem-1`, ...; nothing was written.
            LimitReached: Too many runs are live.
            ApprovalNeeded, ApprovalOver, ApprovalMismatch, NotFound: As `spend_approval`.
            Whatever `Ledger.append` raises.
        """
        caller.must_be(Role.HARNESS)
        caller.must_act_for(wanted.partner)
        user, workload = _subject(caller, wanted)
        if (user, workload) != (None, None) or caller.user is not None:
            caller.must_speak_for(user, workload)
        held = NOTHING_HELD if wanted.approval is None else self._hold([wanted.approval], {})
        for _ in range(MAX_ATTEMPTS):
            in_force = self._policies.current()
            must_still_be_known(caller, in_force)
            if user is not None:
                # Now, and not at each mint: the run's key stands for the user from here on.
                place = UNRECOGNISED if caller.environment is None else caller.environment
                ask = Ask(wanted.realm, wanted.partner, user, workload, wanted.models, place)
                must_prove_users(caller, [ask], in_force)
            grants = _granted(wanted, user, workload, caller.environment, in_force)
            now = self._clock.now()
            lease = DEFAULT_LEASE_S if wanted.lease_s is None else wanted.lease_s
            run = RunRecord(
                id=self._new_id(),
                realm=wanted.realm,
                partner=wanted.partner,
                models=wanted.models,
                opened_by=caller.principal,
                opened_at=now,
                lease_s=lease,
                lease_ends_at=now + timedelta(seconds=lease),
                is_closed=False,
                user=user,
                workload=workload,
                environment=caller.environment,
                grants=grants,
                key=wanted.key,
            )
            spending = spend_for_run(
                run, wanted.approval, caller.principal, held, in_force.policy, now, request, self._meter
            )
            run = replace(run, approval=wanted.approval if spending.guards else None)
            body = {**_opened_body(run), "request": request.request_id, "proof": caller.proven_by}
            ids = [grant for _, grant in grants]
            write = Write(
                [
                    lambda index, at=now, body=body: encode_entry(  # type: ignore[misc]
                        Entry(index, Kind.RUN_OPENED, at, caller.principal, body)
                    ),
                    *spending.drafts,
                ],
                request=request,
                expecting=in_force.version,
                guards=(
                    *limits_of_run(ids, run.partner, user, workload, in_force.policy, now),
                    *spending.guards,
                ),
                effects=(RunOpened(run), *spending.effects),
            )
            try:
                appended = self._ledger.append(write).result()
            except PolicyMoved:
                self._policies.refresh()
                continue
            note_limits(appended.noted, in_force.policy, self._meter)
            return self._recorded(appended.indices.start) if appended.is_repeat else run
        raise PolicyMoved("the policy kept moving while the run was opened", hint="retry")

    def keep(self, caller: Caller, run_id: str, request: RequestKey) -> RunRecord:
        """Extend the lease from now, up to a run's longest life.

        Raises Forbidden, NotFound, RunEnded, or what `Ledger.append` raises.
        """
        caller.must_be(Role.HARNESS)
        run = self.own(caller, run_id)
        now = self._clock.now()
        ends_at = min(now + timedelta(seconds=run.lease_s), run.opened_at + self._max_life)
        body = {"request": request.request_id, "run": run.id, "lease_s": run.lease_s}
        write = Write(
            [lambda index: encode_entry(Entry(index, Kind.RUN_KEPT, now, caller.principal, body))],
            request=request,
            guards=(RunIsOpen(run.id, run.partner, run.realm, now),),
            effects=(RunKept(run.id, ends_at),),
        )
        self._ledger.append(write).result()
        return self.own(caller, run_id)

    def close(self, caller: Caller, run_id: str, request: RequestKey) -> RunRecord:
        """End the run and revoke every token of it. Closing again does nothing.

        Raises:
            Forbidden, NotFound: Refused; nothing was written.
            Whatever `Ledger.append` raises.
        """
        caller.must_be(Role.HARNESS)
        run = self.own(caller, run_id)
        if run.is_closed:
            return run
        write = self._revocations.write(
            Selector.of(run=run.id),
            reason="run closed",
            by=caller.principal,
            kind=Kind.RUN_CLOSED,
            request=request,
        )
        self._ledger.append(write).result()
        return replace(run, is_closed=True)

    def own(self, caller: Caller, run_id: str) -> RunRecord:
        """Return a run of the caller's partner. Another partner's run is as unknown as one that never was."""
        run = self._ledger.run(run_id)
        is_own = run is not None and caller.partner is not None and run.partner == caller.partner
        if run is None or not is_own or (isinstance(caller.proof, RunProof) and caller.proof.run != run_id):
            raise NotFound("there is no such run of yours", hint="see: broker run list")
        return run

    def shown(self, caller: Caller, run_id: str) -> RunRecord:
        """Return a run; who has a partner sees its own partner's. Raises Forbidden, NotFound."""
        caller.must_be(Role.HARNESS, Role.PARTNER_ADMIN, Role.ADMIN, Role.AUDITOR)
        if caller.role not in (Role.ADMIN, Role.AUDITOR):
            return self.own(caller, run_id)
        run = self._ledger.run(run_id)
        if run is None:
            raise NotFound("there is no such run", hint="see: broker run list")
        return run

    def listed(self, caller: Caller, partner: str | None, limit: int) -> Sequence[RunRecord]:
        """Return runs, newest first; who has a partner sees its own partner's. Raises Forbidden, Invalid."""
        caller.must_be(Role.HARNESS, Role.PARTNER_ADMIN, Role.ADMIN, Role.AUDITOR)
        if caller.role not in (Role.ADMIN, Role.AUDITOR):
            partner = caller.partner if partner is None else partner
            caller.must_act_for(partner or "")
        return self._ledger.runs(partner, limit)

    def _recorded(self, index: int) -> RunRecord:
        [data] = self._ledger.entries(index, index + 1)
        run = self._ledger.run(str(decode_entry(data).body["run"]))
        if run is None:
            raise NotFound("the run that this request opened is gone", hint="open another one")
        return run


def _subject(caller: Caller, wanted: Wanted) -> tuple[str | None, str | None]:
    """Return for whom the run is.

    A run without a key may be for anybody of the partner, as its certificate speaks for all of them; one with a
    key goes on without one, so it is for whom its opener is, unless another is named; and so is one that was
    approved, because people approve it for somebody.
    """
    if caller.beside is not None:
        return wanted.user or caller.beside.name, wanted.workload or caller.workload
    if wanted.user is not None or wanted.workload is not None:
        return wanted.user, wanted.workload
    if wanted.key is not None or wanted.approval is not None or caller.user is not None:
        return caller.user, caller.workload
    return None, None


def _granted(
    wanted: Wanted, user: str | None, workload: str | None, environment: str | None, in_force: PolicyInForce
) -> tuple[tuple[str, str], ...]:
    """Return the grant of each model, or raise all that is wrong with the run, together."""
    lease_s = wanted.lease_s
    problems: list[str] = []
    if lease_s is not None and not MIN_LEASE_S <= lease_s <= MAX_LEASE_S:
        problems.append(f"lease: {lease_s} s; ask for {MIN_LEASE_S} s to {MAX_LEASE_S} s")
    plan = Plan(
        wanted.realm,
        wanted.partner,
        wanted.models,
        UNRECOGNISED if environment is None else environment,
        None if user is None and workload is None else (user, workload),
    )
    outcome = judge(plan, in_force.policy, in_force.blocks)
    if not problems and not outcome.problems:
        return outcome.grants
    metadata = {f"problem-{number}": text for number, text in enumerate(_told(problems, outcome.problems), 1)}
    if not outcome.problems:
        raise Invalid("lease", f"{lease_s} s", hint=f"ask for {MIN_LEASE_S} s to {MAX_LEASE_S} s")
    details = [*problems, *(problem.why.detail for problem in outcome.problems)]
    metadata["rule"] = outcome.problems[0].why.rule
    message = f"the run has {len(details)} problems: {'; '.join(details)}" if len(details) > 1 else details[0]
    raise REFUSALS[worst_code(outcome.problems)](message, metadata=metadata)


def _told(problems: Sequence[str], decided: Sequence[Problem]) -> Sequence[str]:
    # Peers refuse long trailers; what is left out of one is in the message, as far as that goes.
    return [text[:MAX_PROBLEM_CHARS] for text in (*problems, *map(str, decided))]


def _opened_body(run: RunRecord) -> dict[str, object]:
    body: dict[str, object] = {
        "run": run.id,
        "realm": run.realm,
        "partner": run.partner,
        "models": list(run.models),
        "lease_s": run.lease_s,
        "grants": dict(run.grants),
        "user": run.user,
        "workload": run.workload,
        "environment": run.environment,
        "key": None if run.key is None else thumbprint(run.key),
        "approval": run.approval,
    }
    return {name: value for name, value in body.items() if value is not None}
