"""End runs whose lease ran out: their tokens die as if they had been closed."""

from concurrent.futures import Future

from broker.errors import RunEnded
from broker.ledger.entry import Kind
from broker.service.ports import Appended, Clock, Ledger, RunHasLapsed, RunLapsed, RunRecord, Write
from broker.service.revoke import Revocations
from broker.token.revocation import Selector

AT_ONCE = 200
REASON = "the lease of the run ran out"


class Lapses:
    """Ends each lapsed run once, whatever the number of brokers: the append's own transaction looks again.

    Until that is done, the run mints nothing either: a mint looks at the lease itself.
    """

    def __init__(self, ledger: Ledger, revocations: Revocations, clock: Clock) -> None:
        self._ledger = ledger
        self._revocations = revocations
        self._clock = clock

    def end(self) -> int:
        """End what has lapsed by now; return how many this broker ended. Raises what `Ledger.append` raises."""
        ended = 0
        while runs := self._ledger.lapsed(self._clock.now(), AT_ONCE):
            ended += sum(self._is_ended(future) for future in [self._append(run) for run in runs])
            if len(runs) < AT_ONCE:
                break
        return ended

    def _append(self, run: RunRecord) -> "Future[Appended]":
        write = self._revocations.write(
            Selector.of(run=run.id),
            reason=REASON,
            by="broker",
            kind=Kind.RUN_LAPSED,
            request=None,
            guards=(RunHasLapsed(run.id, self._clock.now()),),
        )
        effects = (*write.effects, RunLapsed(run.id))
        return self._ledger.append(Write(write.drafts, guards=write.guards, effects=effects, urgent=True))

    def _is_ended(self, future: "Future[Appended]") -> bool:
        try:
            future.result()
        except RunEnded:
            # Another broker was faster, or the harness kept it in the last moment.
            return False
        return True
