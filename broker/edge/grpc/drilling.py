"""Run drills: show a canary to each verifier of a realm, revoke it, and hear how it dies; also on a schedule."""

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta

from broker.domain.policy import CANARY_MODEL
from broker.edge.grpc.hub import FeedHub
from broker.edge.grpc.questions import Report, probe_message
from broker.edge.grpc.subscribing import Subscriber
from broker.errors import Defect, Failure, NotFound, Overloaded, RequestReused
from broker.service.canary import Canaries, Canary
from broker.service.drill import NS_PER_MS, DrillBook, DrillResult, Showing
from broker.service.metering import Meter
from broker.service.policies import Policies
from broker.service.ports import Clock, RequestKey
from broker.v1 import feed_pb2

log = logging.getLogger("broker.drills")

BY_SCHEDULE = "broker"
# For so long verifiers may take to accept the canary; those that are behind are shown it again meanwhile.
SEEN_WITHIN_S = 5.0
SHOW_AGAIN_S = 0.25
COALESCE_S = 0.02
# A report takes some time to get here, and says nothing of when the canary died but that it was before.
REPORT_S = 2.0
# The canary is let go by whoever still holds it a little after the drill.
HOLD_MARGIN_MS = 5_000
TICK_S = 1.0
READ_SCHEDULE_EVERY_TICKS = 3
# After a start, brokers do not drill all at once, nor before their verifiers are back.
FIRST_AFTER_S = 15.0
JITTER = 0.1


@dataclass(frozen=True, slots=True)
class Begun:
    """A canary is on its way."""

    realm: str
    canary: str
    verifiers: int


@dataclass(slots=True)
class _Shown:
    """A canary that is before the verifiers."""

    showing: Showing
    streams: Mapping[int, Subscriber]
    probe: bytes
    has_news: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(slots=True)
class _Due:
    """When the next drill of a schedule is due."""

    every_s: int
    at_ns: int


Event = Begun | DrillResult | Failure


class Drilling:
    """Drills the verifiers that listen to this broker. One event loop owns it."""

    def __init__(
        self,
        hub: FeedHub,
        canaries: Canaries,
        book: DrillBook,
        policies: Policies,
        clock: Clock,
        meter: Meter,
        *,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._hub = hub
        self._canaries = canaries
        self.book = book
        self._policies = policies
        self._clock = clock
        self._meter = meter
        self._draw = draw
        self._under_way: set[str] = set()
        self._shown: dict[str, _Shown] = {}
        self._problems: dict[str, str] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._due: dict[str, _Due] = {}
        hub.questions.on_report = self._take

    @property
    def problems(self) -> tuple[str, ...]:
        """What the last drills found wrong, for people; each until a drill of that realm passes."""
        # In a realm that has left the policy none can pass any more.
        realms = self._policies.current().policy.realms
        return tuple(self._problems[realm] for realm in sorted(self._problems) if realm in realms)

    def realms(self, wanted: str | None) -> tuple[str, ...]:
        """Return the realms to drill: the one that is wanted, or each that has verifiers.

        Raises:
            NotFound: There is no such realm, or nobody listens.
        """
        known = self._policies.current().policy.realms
        if wanted is not None and wanted not in known:
            raise NotFound(
                f"there is no realm {wanted}", hint=f"the realms are {', '.join(sorted(known)) or 'none yet'}"
            )
        found = tuple(realm for realm in sorted(known) if wanted in (None, realm) and any(self._hub.live(realm)))
        if not found:
            where = f"in realm {wanted}" if wanted is not None else "in any realm"
            raise NotFound(
                f"no verifier listens to this broker {where}, so there is nothing to drill",
                hint="connect a verifier, and see: broker verifiers",
            )
        return found

    async def drill(self, realm: str, by: str, request: RequestKey | None) -> AsyncIterator[Begun | DrillResult]:
        """Drill one realm; yield that it began, and what it found. It goes on when nobody listens to it any more.

        Raises:
            Overloaded: A drill of this realm is under way.
            RequestReused: The request came before, and its drill did not end.
            Failure: The canary could not be minted, revoked or recorded.
        """
        events: asyncio.Queue[Event] = asyncio.Queue()
        # Of its own: a caller that hangs up must not leave a canary alive, nor a drill without its record.
        task = asyncio.create_task(self._run(realm, by, request, events.put_nowait))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        while True:
            match await events.get():
                case Begun() as begun:
                    yield begun
                case DrillResult() as result:
                    yield result
                    return
                case Failure() as failure:
                    raise failure

    async def _run(self, realm: str, by: str, request: RequestKey | None, tell: Callable[[Event], None]) -> None:
        """Tell of the beginning, perhaps, and of one end."""
        if realm in self._under_way:
            tell(
                Overloaded(f"a drill in realm {realm} is under way", hint="wait for its end; see: broker drill history")
            )
            return
        self._under_way.add(realm)
        try:
            tell(await self._drill(realm, by, request, tell))
        except (RequestReused, NotFound) as refused:
            tell(refused)
        except Failure as failure:
            # That nobody can tell whether revoking works is no smaller alarm than that it does not.
            self._alarm(realm, f"the drill in realm {realm} could not be made: {failure.message}")
            tell(failure)
        except BaseException:
            tell(Defect("the drill was broken off"))
            raise
        finally:
            self._under_way.discard(realm)

    async def _drill(
        self, realm: str, by: str, request: RequestKey | None, tell: Callable[[Event], None]
    ) -> DrillResult:
        canary = await asyncio.to_thread(self._canaries.mint, realm, by, request)
        if canary.is_repeat:
            first = await asyncio.to_thread(self.book.of_canary, realm, canary.id)
            if first is None:
                raise RequestReused(
                    "this drill began before and did not end", hint="drill again, with a new request_id"
                )
            return first
        result = await self._show(canary, by, tell)
        result = await asyncio.to_thread(self.book.record, result)
        self._judge(result)
        return result

    async def _show(self, canary: Canary, by: str, tell: Callable[[Event], None]) -> DrillResult:
        streams = {one.listener.stream: one for one in self._hub.live(canary.realm)}
        bound_ms = max([self._lease_ms(canary.realm), *(one.listener.lease_ms for one in streams.values())])
        probe = feed_pb2.Probe(
            id=canary.id,
            token=canary.token,
            model=CANARY_MODEL,
            hold_ms=bound_ms + int((SEEN_WITHIN_S + REPORT_S) * 1000) + HOLD_MARGIN_MS,
        )
        showing = Showing({stream: one.listener.verifier for stream, one in streams.items()})
        shown = self._shown[canary.id] = _Shown(showing, streams, probe_message(probe))
        try:
            tell(Begun(canary.realm, canary.id, len(streams)))
            await self._until_seen(shown)
            showing.revoking()
            index, asked_ns, committed_ns = await asyncio.to_thread(self._canaries.end, canary, by)
            await self._until_dead(shown, committed_ns + bound_ms * NS_PER_MS + int(REPORT_S * 1e9))
        finally:
            del self._shown[canary.id]
        # From before the commit: a report can be here before the append's thread has returned.
        verifiers = showing.drilled(asked_ns)
        return DrillResult(0, canary.realm, canary.id, canary.minted_at, by, bound_ms, index, verifiers)

    async def _until_seen(self, shown: _Shown) -> None:
        deadline_ns = self._clock.boottime_ns() + int(SEEN_WITHIN_S * 1e9)
        for stream, one in shown.streams.items():
            if not self._hub.questions.probe(one, shown.probe):
                shown.showing.cannot(stream)
        shown_ns = self._clock.boottime_ns()
        while not shown.showing.is_seen and (now_ns := self._clock.boottime_ns()) < deadline_ns:
            if now_ns - shown_ns >= SHOW_AGAIN_S * 1e9:
                shown_ns = now_ns
                # Who refused it may have been behind: without the newest key, or without a lease yet.
                for stream in shown.showing.ask_again():
                    self._hub.questions.probe(shown.streams[stream], shown.probe)
            await self._news(shown, SHOW_AGAIN_S)

    async def _until_dead(self, shown: _Shown, deadline_ns: int) -> None:
        while not shown.showing.is_over and (left_ns := deadline_ns - self._clock.boottime_ns()) > 0:
            await self._news(shown, min(left_ns / 1e9, SHOW_AGAIN_S))

    async def _news(self, shown: _Shown, timeout_s: float) -> None:
        shown.has_news.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await shown.has_news.wait()
                # Reports come in a burst, each with its time; a look at all of them after each would hold up the feed.
                await asyncio.sleep(COALESCE_S)
        for stream, one in shown.streams.items():
            if one.listener.gave_up_ns is not None:
                shown.showing.leave(stream)

    def _take(self, report: Report) -> None:
        shown = self._shown.get(report.probe)
        if shown is not None:
            now_ns = self._clock.boottime_ns()
            shown.showing.report(report.stream, report.verifier, report.verdict, is_end=report.is_end, now_ns=now_ns)
            shown.has_news.set()

    def _judge(self, result: DrillResult) -> None:
        for one in result.verifiers:
            if one.time_to_deny_us is not None:
                self._meter.denied_after(result.realm, one.time_to_deny_us / 1e6)
        self._meter.drilled(result.realm, len(result.failed))
        if result.passed:
            self._problems.pop(result.realm, None)
        else:
            self._alarm(result.realm, result.problem())

    def _alarm(self, realm: str, problem: str) -> None:
        self._problems[realm] = problem
        log.warning("a drill failed", extra={"fields": {"realm": realm, "detail": problem}})

    def _lease_ms(self, realm: str) -> int:
        known = self._policies.current().policy.realms.get(realm)
        return known.lease_ms if known is not None else 0

    async def run(self) -> None:
        """Drill by the schedules, for as long as the task lives."""
        is_reminded = False
        while True:
            try:
                is_reminded = is_reminded or await self._remember()
                await self._read_schedules()
            except Failure as failure:
                log.debug("cannot read the schedule of drills", extra={"fields": {"reason": failure.reason}})
            for _ in range(READ_SCHEDULE_EVERY_TICKS):
                self._begin_due()
                await asyncio.sleep(TICK_S)

    async def _remember(self) -> bool:
        """Raise again the alarms that stood when a broker ended."""
        for realm in self._policies.current().policy.realms:
            for last in await asyncio.to_thread(self.book.past, realm, 1):
                if not last.passed:
                    self._problems.setdefault(realm, last.problem())
        return True

    async def _read_schedules(self) -> None:
        schedules = dict(await asyncio.to_thread(self.book.schedules))
        for realm in self._due.keys() - schedules.keys():
            del self._due[realm]
        for realm, every_s in schedules.items():
            due = self._due.get(realm)
            if due is None or due.every_s != every_s:
                self._due[realm] = _Due(every_s, await self._first_due_ns(realm, every_s))

    async def _first_due_ns(self, realm: str, every_s: int) -> int:
        """Return when the next one is due: an interval after the last one, but not at once after a start."""
        rest_s = 0.0
        for last in await asyncio.to_thread(self.book.past, realm, 1):
            rest_s = every_s - (self._clock.now() - last.at) / timedelta(seconds=1)
        soonest_s = min(every_s, FIRST_AFTER_S) * (1 + self._draw()) / 2
        return self._clock.boottime_ns() + int(min(every_s, max(rest_s, soonest_s)) * 1e9)

    def _begin_due(self) -> None:
        now_ns = self._clock.boottime_ns()
        for realm, due in self._due.items():
            if now_ns < due.at_ns or realm in self._under_way or not any(self._hub.live(realm)):
                continue
            due.at_ns = now_ns + int(due.every_s * (1 + JITTER * (2 * self._draw() - 1)) * 1e9)
            task = asyncio.create_task(self._run(realm, BY_SCHEDULE, None, _unheard))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)


def _unheard(event: Event) -> None:
    del event
