"""Open, keep and close evaluation runs."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta

from broker.domain.asking import Ask
from broker.domain.decision import Denied, decide
from broker.domain.policy import Role
from broker.errors import Blocked, Failure, Invalid, NotFound, NotGranted, PolicyMoved
from broker.ledger.entry import Entry, Kind, decode_entry, encode_entry
from broker.service.calling import Caller, must_still_be_known
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
from broker.token.revocation import Selector

DEFAULT_LEASE_S = 300
MIN_LEASE_S = 10
MAX_LEASE_S = 86_400
MAX_ATTEMPTS = 20


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
    ) -> None:
        self._ledger = ledger
        self._policies = policies
        self._clock = clock
        self._revocations = revocations
        self._new_id = new_id

    def open(
        self,
        caller: Caller,
        *,
        realm: str,
        partner: str,
        models: tuple[str, ...],
        lease_s: int | None,
        request: RequestKey,
    ) -> RunRecord:
        """Open a run whose every model is granted to somebody at the caller's place.

        Raises:
            Forbidden, NotGranted, Blocked, Invalid: Denied; nothing was written.
            Whatever `Ledger.append` raises.
        """
        caller.must_be(Role.HARNESS)
        caller.must_act_for(partner)
        lease = DEFAULT_LEASE_S if lease_s is None else lease_s
        if not MIN_LEASE_S <= lease <= MAX_LEASE_S:
            raise Invalid("lease", f"{lease} s", hint=f"ask for {MIN_LEASE_S} s to {MAX_LEASE_S} s")
        for _ in range(MAX_ATTEMPTS):
            in_force = self._policies.current()
            must_still_be_known(caller, in_force)
            _must_be_granted(caller, in_force, realm, partner, models)
            now = self._clock.now()
            run = RunRecord(
                id=self._new_id(),
                realm=realm,
                partner=partner,
                models=models,
                opened_by=caller.principal,
                opened_at=now,
                lease_s=lease,
                lease_ends_at=now + timedelta(seconds=lease),
                is_closed=False,
            )
            body = {
                "request": request.request_id,
                "run": run.id,
                "realm": realm,
                "partner": partner,
                "models": list(models),
                "lease_s": lease,
            }
            write = Write(
                [
                    lambda index, at=now, body=body: encode_entry(  # type: ignore[misc]
                        Entry(index, Kind.RUN_OPENED, at, caller.principal, body)
                    )
                ],
                request=request,
                expecting=in_force.version,
                effects=(RunOpened(run),),
            )
            try:
                appended = self._ledger.append(write).result()
            except PolicyMoved:
                self._policies.refresh()
                continue
            return self._recorded(appended.indices.start) if appended.is_repeat else run
        raise PolicyMoved("the policy kept moving while the run was opened", hint="retry")

    def keep(self, caller: Caller, run_id: str, request: RequestKey) -> RunRecord:
        """Extend the lease from now. Raises Forbidden, NotFound, RunEnded, or what `Ledger.append` raises."""
        caller.must_be(Role.HARNESS)
        run = self.own(caller, run_id)
        now = self._clock.now()
        ends_at = now + timedelta(seconds=run.lease_s)
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
        if run is None or caller.partner is None or run.partner != caller.partner:
            raise NotFound("there is no such run of yours", hint="see: broker run list")
        return run

    def listed(self, caller: Caller, partner: str | None, limit: int) -> Sequence[RunRecord]:
        """Return runs, newest first; a harness sees its own partner's. Raises Forbidden, Invalid."""
        caller.must_be(Role.HARNESS, Role.ADMIN, Role.AUDITOR)
        if caller.role is Role.HARNESS:
            partner = caller.partner if partner is None else partner
            caller.must_act_for(partner or "")
        return self._ledger.runs(partner, limit)

    def _recorded(self, index: int) -> RunRecord:
        [data] = self._ledger.entries(index, index + 1)
        run = self._ledger.run(str(decode_entry(data).body["run"]))
        if run is None:
            raise NotFound("the run that this request opened is gone", hint="open another one")
        return run


def _must_be_granted(
    caller: Caller, in_force: PolicyInForce, realm: str, partner: str, models: tuple[str, ...]
) -> None:
    """Every principal that the partner has is tried: a run belongs to a partner, a token to a principal."""
    known = in_force.policy.partners.get(partner)
    reason: Failure = NotGranted(f"{partner} may not use {', '.join(models)} in {realm} from here (no grant)")
    if known is None or caller.environment is None:
        raise reason
    asks = [
        Ask(
            realm=realm,
            partner=partner,
            user=user,
            workload=workload,
            models=models,
            environment=caller.environment,
            run=None,
            test=None,
            ttl_s=None,
        )
        for user, workload in [(user, None) for user in sorted(known.users)]
        + [(None, workload) for workload in sorted(known.workloads)]
    ]
    for ask in asks:
        verdict = decide(ask, in_force.policy, in_force.blocks)
        if not isinstance(verdict, Denied):
            return
        if verdict.why.code == "BLOCKED":
            reason = Blocked(verdict.why.detail)
    raise reason


class RunModels:
    """Refuses tokens for models that their run was not opened for. Safe for use by several threads."""

    def __init__(self, ledger: Ledger, capacity: int = 10_000) -> None:
        self._ledger = ledger
        self._capacity = capacity
        # A run's partner and models never change, so what was read once stays true.
        self._known: OrderedDict[str, tuple[str, tuple[str, ...]]] = OrderedDict()

    def check(self, caller: Caller, asks: Sequence[Ask]) -> None:
        """Raise NotFound or NotGranted unless each ask stays within its run."""
        for ask in asks:
            if ask.run is None:
                continue
            partner, models = self._known.get(ask.run) or self._read(ask.run)
            # Also for a run that was read for its own partner's sake: its models are nobody else's business.
            if partner is None or partner != caller.partner:
                raise NotFound("there is no such run of yours", hint="see: broker run list")
            beyond = [model for model in ask.models if not _is_within(model, models)]
            if beyond:
                raise NotGranted(
                    f"run {ask.run} was not opened for {', '.join(beyond)}", hint="open a run that names the model"
                )

    def _read(self, run_id: str) -> tuple[str | None, tuple[str, ...]]:
        run = self._ledger.run(run_id)
        if run is None:
            return None, ()
        found = self._known[run_id] = (run.partner, run.models)
        while len(self._known) > self._capacity:
            self._known.popitem(last=False)
        return found


def _is_within(model: str, models: tuple[str, ...]) -> bool:
    return model in models or model.partition("@")[0] in models
