"""What never changes of a run: whose it is, for what, and its key. Read once, because each mint asks."""

from collections import OrderedDict
from collections.abc import Sequence

from broker.domain.asking import Ask
from broker.errors import NotFound, NotGranted
from broker.service.calling import Caller, RunProof
from broker.service.ports import Ledger, RunRecord


class KnownRuns:
    """Runs as they were opened. Safe for use by several threads.

    Whether a run is still open is not known here: the append looks, in its own transaction.
    """

    def __init__(self, ledger: Ledger, capacity: int = 10_000) -> None:
        self._ledger = ledger
        self._capacity = capacity
        self._known: OrderedDict[str, RunRecord] = OrderedDict()

    def cached(self, run_id: str) -> RunRecord | None:
        """Return the run if it was read before. Does no I/O."""
        return self._known.get(run_id)

    def get(self, run_id: str) -> RunRecord | None:
        """Return the run as it was opened, or None: there is none. Raises StoreUnavailable."""
        known = self._known.get(run_id)
        if known is not None:
            return known
        run = self._ledger.run(run_id)
        if run is not None:
            self._known[run_id] = run
            while len(self._known) > self._capacity:
                self._known.popitem(last=False)
        return run

    def own(self, caller: Caller, run_id: str) -> RunRecord:
        """Return a run of the caller's. Another partner's is as unknown as one that never was (B20).

        Raises:
            NotFound: There is none, or it is not the run that the caller proved to have the key of.
        """
        run = self.get(run_id)
        # Also for a run that was read for its own partner's sake: what it is for is nobody else's business.
        is_own = run is not None and caller.partner is not None and run.partner == caller.partner
        if run is None or not is_own or (isinstance(caller.proof, RunProof) and caller.proof.run != run_id):
            raise NotFound("there is no such run of yours", hint="see: broker run list")
        return run

    def check(self, caller: Caller, asks: Sequence[Ask]) -> None:
        """Refuse tokens for what their run was not opened for.

        Raises:
            NotFound, NotGranted: Refused.
        """
        for ask in asks:
            if ask.run is None:
                if isinstance(caller.proof, RunProof):
                    raise NotGranted(
                        "who proves a run's key gets tokens of that run only", hint="name the run in each spec"
                    )
                continue
            run = self.own(caller, ask.run)
            beyond = [model for model in ask.models if not _is_within(model, run.models)]
            if beyond:
                raise NotGranted(
                    f"run {ask.run} was not opened for {', '.join(beyond)}", hint="open a run that names the model"
                )
            if (run.user, run.workload) not in ((None, None), (ask.user, ask.workload)):
                raise NotGranted(
                    f"run {ask.run} was opened for {_who(run.user, run.workload)}, "
                    f"not for {_who(ask.user, ask.workload)}",
                    hint="open a run for whom the token is",
                )


def _who(user: str | None, workload: str | None) -> str:
    return " by ".join(
        [*([f"user {user}"] if user is not None else []), *([f"workload {workload}"] if workload is not None else [])]
    )


def _is_within(model: str, models: tuple[str, ...]) -> bool:
    return model in models or model.partition("@")[0] in models
