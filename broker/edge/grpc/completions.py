"""Wait until revocations are in force everywhere, and have their completions made; also those of brokers that died."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from typing import ParamSpec, TypeVar

from broker.edge.grpc.cuts import CutsTold
from broker.edge.grpc.hub import FeedHub
from broker.errors import Failure, NotFound
from broker.service.complete import Complete, Completion, InForce, revocation_at
from broker.service.hits import FindHits
from broker.service.listening import Outcome, Progress, Stop, Watch
from broker.service.metering import Meter
from broker.service.policies import Policies
from broker.service.ports import Clock, Ledger
from broker.service.proof_ports import CompletionRecord, Proofs, Roster, Sighting
from broker.service.revoke import Revoked

log = logging.getLogger("broker.completions")

P = ParamSpec("P")
R = TypeVar("R")

# Beyond this, a revocation is committed all the same, and taken over from the store when there is room.
MAX_WATCHED = 512
# A thousand acknowledgements come in a burst; each alone is not worth a look at all who wait.
COALESCE_S = 0.003
# Looking takes at most a fifth of the loop's time.
REST_PER_LOOK = 4
# So much more when nothing says that it may be the last one.
REST_UNTIL_WOKEN = 16
LOOK_AGAIN_S, TELL_EVERY_S = 0.05, 0.25
# After a lease has run out, since timers may be a little early.
LATE_S = 0.001
ADOPT_EVERY_S = 5.0
ASK_STORE_EVERY_S = 0.25
RETRY_S = 1.0
# Counting what was hit holds up no completion for longer than this from the commit.
COUNT_S = 1.0
# The broker that committed has so many leases, and this margin, before another one takes over.
ABANDONED_LEASES = 3
ABANDONED_S = 5.0
# The roster is written about once a second, and in a round of some seconds when there are ten thousand.
ROSTER_MARGIN = timedelta(seconds=8)


@dataclass(slots=True)
class _Pending:
    """A revocation that this process brings to its completion."""

    revoked: Revoked
    watch: Watch
    progress: Progress
    tokens: "asyncio.Task[Mapping[str, int] | None]"
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    finishing: "asyncio.Task[None] | None" = None
    done: Completion | None = None
    problem: str = ""

    def tell(self) -> None:
        """Wake all who follow."""
        self.changed.set()
        self.changed = asyncio.Event()


@dataclass(frozen=True, slots=True)
class Waiting:
    """Not complete yet. `progress` None: another broker, or none at the moment, is at it."""

    progress: Progress | None
    waits_for: str


class Completions:
    """Watches each revocation that awaits its completion, and finishes it. One event loop owns it.

    A completion is made once, whoever makes it: the store refuses a second one. What a broker committed and
    did not live to complete is taken over by whoever serves next, and waited for anew from that moment (P6).
    """

    def __init__(
        self,
        hub: FeedHub,
        complete: Complete,
        find_hits: FindHits,
        ledger: Ledger,
        proofs: Proofs,
        roster: Roster,
        policies: Policies,
        clock: Clock,
        meter: Meter,
        cuts: CutsTold | None = None,
        *,
        is_sole: bool,
    ) -> None:
        self._hub = hub
        self._cuts = cuts
        self._complete = complete
        self._find_hits = find_hits
        self._ledger = ledger
        self._proofs = proofs
        self._roster = roster
        self._policies = policies
        self._clock = clock
        self._meter = meter
        self._is_sole = is_sole
        self._pending: dict[int, _Pending] = {}
        # When this process first saw, by its own clock, that a completion is awaited.
        self._noticed_ns: dict[int, int] = {}
        # Of its own, so that no revocation waits for a thread until another one's tokens are counted.
        self._counting = ThreadPoolExecutor(1, thread_name_prefix="hits")
        self._storing = ThreadPoolExecutor(2, thread_name_prefix="completions")
        self._loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        hub.on_published = self._wake.set
        hub.on_cuts = cuts.cut if cuts is not None else hub.listeners.cut

    def begin(self, revoked: Revoked, *, asked_ns: int, committed_ns: int) -> None:
        """Watch a revocation that was just committed, not before `asked_ns` and not after `committed_ns`.

        Leases are counted from the later instant, so that none is thought over too early (P6); what is told is
        counted from the earlier one, so that no verifier looks faster than it was.
        """
        if revoked.awaits_completion and not revoked.is_repeat and len(self._pending) < MAX_WATCHED:
            self._begin(revoked, committed_ns, committed_ns - asked_ns)

    async def follow(self, index: int) -> AsyncIterator[Waiting | Completion]:
        """Yield how far the revocation at `index` is when that changes, and its completion last.

        Raises:
            NotFound: No completion of it is awaited.
            StoreUnavailable: Nothing is known.
        """
        while True:
            pending = self._pending.get(index)
            if pending is None:
                record = await self._in_thread(self._proofs.completion, index)
                if record is None:
                    raise NotFound(
                        f"no completion is made of the revocation at index {index}",
                        hint="it does not block, and nobody waited for it; revoke again with --wait",
                    )
                done = await self._in_thread(self._complete.recorded, index)
                if done is not None:
                    yield done
                    return
                yield Waiting(None, "another broker is at it, or this one will be in a moment")
                await asyncio.sleep(ASK_STORE_EVERY_S)
                continue
            if pending.done is not None:
                yield pending.done
                return
            changed = pending.changed
            yield Waiting(pending.progress, pending.problem)
            await changed.wait()

    async def run(self) -> None:
        """Look after all that are awaited, for as long as the task lives."""
        adopted_ns: int | None = None
        while True:
            self._wake.clear()
            now_ns = self._clock.boottime_ns()
            if adopted_ns is None or now_ns - adopted_ns >= ADOPT_EVERY_S * 1e9:
                adopted_ns = now_ns
                await self._adopt()
            started_ns = self._clock.boottime_ns()
            for pending in list(self._pending.values()):
                self._look(pending)
            took_s = (self._clock.boottime_ns() - started_ns) / 1e9
            await asyncio.sleep(max(COALESCE_S, took_s * REST_PER_LOOK))
            # Not wait_for, which in 3.11 swallows a cancellation that comes together with a wake.
            with suppress(TimeoutError):
                async with asyncio.timeout(max(self._rest_s(), took_s * REST_UNTIL_WOKEN)):
                    await self._wake.wait()

    def _rest_s(self) -> float:
        """Return how long nothing has to be looked at, if no acknowledgement may be the last one."""
        looks_ns = [one.progress.next_look_ns for one in self._pending.values() if one.finishing is None]
        if not looks_ns:
            return ADOPT_EVERY_S
        # A lease that runs out makes no noise; and whoever waits is told how far it is.
        until_s = (min(looks_ns) - self._clock.boottime_ns()) / 1e9 + LATE_S
        return max(LOOK_AGAIN_S, min(until_s, TELL_EVERY_S))

    def _begin(self, revoked: Revoked, committed_ns: int, earlier_ns: int) -> None:
        now_ns = self._clock.boottime_ns()
        listening = {one.realm for one in self._hub.listeners.everyone()}
        realms = {*revoked.realms, *(realm for realm in listening if revoked.selector.concerns(realm))}
        watch = self._hub.listeners.watch(
            revoked.index,
            realms=frozenset(realms),
            committed_ns=committed_ns,
            lease_ms=revoked.bound_ms,
            now_ns=now_ns,
            entries=revoked.entries,
            earlier_ns=max(0, earlier_ns),
        )
        watch.on_change = self._wake.set
        pending = _Pending(revoked, watch, self._progress(watch), asyncio.create_task(self._count(revoked)))
        self._pending[revoked.index] = pending
        if watch.unknown_until_ns > committed_ns:
            pending.finishing = asyncio.create_task(self._name_absent(pending))
        self._wake.set()

    async def _name_absent(self, pending: _Pending) -> None:
        """Name those who listened to another process at the commit, as far as the roster tells."""
        try:
            known = await self._in_thread(self._roster.known, None)
        except Failure:
            known = ()
        since = pending.revoked.at - timedelta(milliseconds=pending.revoked.bound_ms) - ROSTER_MARGIN
        here = {(one.verifier, one.realm) for one in pending.watch.waiting.values()}
        here |= {(one.verifier, one.realm) for one in pending.watch.outcomes}
        pending.watch.absent |= {
            (one.verifier, one.realm) for one in known if one.realm in pending.watch.realms and one.seen_at >= since
        } - here
        pending.finishing = None
        self._wake.set()

    def _look(self, pending: _Pending) -> None:
        if pending.finishing is not None:
            return
        before = pending.progress
        pending.progress = self._progress(pending.watch)
        if pending.progress.is_complete:
            pending.finishing = asyncio.create_task(self._finish(pending))
        if pending.progress.is_complete or len(pending.progress.outcomes) != len(before.outcomes):
            pending.tell()

    def _progress(self, watch: Watch) -> Progress:
        head = self._hub.publisher.head
        return self._hub.listeners.progress(
            watch, self._clock.boottime_ns(), published_head=head.size if head is not None else 0
        )

    async def _finish(self, pending: _Pending) -> None:
        outcomes = await self._with_cuts(await self._better_known(pending), pending.revoked)
        tokens = await pending.tokens
        done = InForce(pending.revoked, outcomes, pending.progress.unknown_ns, tokens)
        while True:
            try:
                pending.done = await self._in_thread(self._complete, done)
                break
            except NotFound:
                log.exception("a completion is no longer awaited", extra={"fields": {"index": pending.revoked.index}})
                break
            except Failure as failure:
                # It is in force; only the statement waits for a key or for the store.
                pending.problem = failure.message
                pending.tell()
                await asyncio.sleep(RETRY_S)
        self._hub.listeners.unwatch(pending.watch)
        del self._pending[pending.revoked.index]
        pending.tell()
        for outcome in outcomes:
            if outcome.how is Stop.ACKNOWLEDGED:
                self._meter.acknowledged(outcome.realm, outcome.after_ns / 1e9)

    async def _better_known(self, pending: _Pending) -> tuple[Outcome, ...]:
        """Return the outcomes, with the acknowledgements that other brokers received in place of lapsed leases."""
        outcomes = pending.progress.outcomes
        if self._is_sole or all(outcome.how is not Stop.LAPSED for outcome in outcomes):
            return outcomes
        try:
            known = await self._in_thread(self._roster.known, None)
        except Failure:
            return outcomes
        sightings = {(one.verifier, one.realm): one for one in known}
        return tuple(
            _seen_elsewhere(outcome, sightings.get((outcome.verifier, outcome.realm)), pending.revoked)
            for outcome in outcomes
        )

    async def _with_cuts(self, outcomes: tuple[Outcome, ...], revoked: Revoked) -> tuple[Outcome, ...]:
        """Return the outcomes with the uses, too, that were cut at verifiers which listen to other brokers."""
        if self._cuts is None:
            return outcomes
        try:
            uses = await self._cuts.elsewhere(revoked.index - revoked.entries + 1, revoked.index)
        except Failure:
            return outcomes
        return tuple(
            # Two streams of one name report under it together.
            replace(outcome, uses_cut=outcome.uses_cut + uses.pop((outcome.verifier, outcome.realm), 0))
            for outcome in outcomes
        )

    async def _count(self, revoked: Revoked) -> Mapping[str, int] | None:
        if revoked.entries > 1:
            # Each of them names its token; how many of these still lived is not worth reading the ledger for.
            return None
        deadline_ns = self._clock.boottime_ns() + int(COUNT_S * 1e9)
        has_time: Callable[[], bool] = lambda: self._clock.boottime_ns() < deadline_ns  # noqa: E731 - a question
        try:
            hits = await self._loop.run_in_executor(
                self._counting,
                partial(self._find_hits, revoked.selector, at=revoked.at, below=revoked.index, has_time=has_time),
            )
        except Failure:
            return None
        return dict(hits.realms) if hits.is_all else None

    async def _in_thread(self, call: Callable[P, R], *args: P.args, **named: P.kwargs) -> R:
        return await self._loop.run_in_executor(self._storing, partial(call, *args, **named))

    async def _adopt(self) -> None:
        """Take over what nobody finishes."""
        try:
            awaited = await self._in_thread(self._proofs.awaited)
            now_ns = self._clock.boottime_ns()
            self._noticed_ns = {one.revocation: self._noticed_ns.get(one.revocation, now_ns) for one in awaited}
            for record in awaited:
                if record.revocation in self._pending or len(self._pending) >= MAX_WATCHED:
                    continue
                await self._take_over(record)
        except Failure as failure:
            log.warning("cannot look for completions to take over", extra={"fields": {"reason": failure.reason}})

    async def _take_over(self, record: CompletionRecord) -> None:
        revoked = await self._in_thread(revocation_at, self._ledger, record.revocation, record)
        if revoked is None or record.revocation in self._pending:
            return
        age = self._clock.now() - revoked.at
        abandoned_after = timedelta(milliseconds=ABANDONED_LEASES * record.lease_ms, seconds=ABANDONED_S)
        # By either: the wall clock of the broker that committed may be ahead of ours by any amount.
        noticed = timedelta(microseconds=(self._clock.boottime_ns() - self._noticed_ns[record.revocation]) // 1000)
        if not self._is_sole and max(age, noticed) < abandoned_after:
            return
        log.info("takes over a completion", extra={"fields": {"index": record.revocation}})
        # From now on, by this process's clock: when the commit was, only a dead process knew.
        self._begin(replace(revoked, is_repeat=False), self._clock.boottime_ns(), int(age.total_seconds() * 1e9))


def _seen_elsewhere(outcome: Outcome, sighting: Sighting | None, revoked: Revoked) -> Outcome:
    if outcome.how is not Stop.LAPSED or sighting is None or sighting.head <= revoked.index:
        return outcome
    after_ns = max(0, int((sighting.seen_at - revoked.at).total_seconds() * 1e9))
    # Two machines' clocks may have been compared here, so the lease bounds what is said.
    return replace(outcome, how=Stop.ACKNOWLEDGED, after_ns=min(after_ns, outcome.after_ns))
