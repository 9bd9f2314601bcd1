"""Run drills: show a canary to each verifier of a realm, whatever its broker, revoke it, and hear how it dies."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass

from broker.domain.policy import CANARY_MODEL
from broker.edge.grpc.hub import FeedHub
from broker.edge.grpc.other_brokers import Alone, OtherBrokers
from broker.edge.grpc.shown import Shown, ShownCanaries
from broker.errors import Defect, Failure, NotFound, Overloaded, RequestReused
from broker.service.canary import Canaries, Canary
from broker.service.drill import NS_PER_MS, DrillBook, DrillResult
from broker.service.metering import Meter
from broker.service.policies import Policies
from broker.service.ports import Clock, RequestKey
from broker.service.proof_ports import DrillCall
from broker.v1 import feed_pb2

log = logging.getLogger("broker.drills")

BY_SCHEDULE = "broker"
# For so long verifiers may take to accept the canary; those that are behind are shown it again meanwhile.
SEEN_WITHIN_S = 5.0
SHOW_AGAIN_S = 0.25
# A report takes some time to get here, and says nothing of when the canary died but that it was before.
REPORT_S = 2.0
# The canary is let go by whoever still holds it a little after the drill.
HOLD_MARGIN_MS = 5_000
# How often to ask what verifiers of other brokers said; until then nobody knows of their denials.
ASK_OTHERS_S = 0.1


@dataclass(frozen=True, slots=True)
class Begun:
    """A canary is on its way."""

    realm: str
    canary: str
    verifiers: int


Event = Begun | DrillResult | Failure


class Drilling:
    """Drills the verifiers that listen to this broker, and with the others' help those of theirs. One loop owns it."""

    def __init__(
        self,
        hub: FeedHub,
        canaries: Canaries,
        book: DrillBook,
        policies: Policies,
        clock: Clock,
        meter: Meter,
        others: OtherBrokers | None = None,
    ) -> None:
        self._hub = hub
        self._canaries = canaries
        self.book = book
        self._policies = policies
        self._clock = clock
        self._meter = meter
        self._others = others or Alone()
        self._under_way: set[str] = set()
        self.shown = ShownCanaries(hub, clock)
        """Those that are before the verifiers of this broker, whosever drill it is."""
        self._problems: dict[str, str] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def problems(self) -> tuple[str, ...]:
        """What the last drills found wrong, for people; each until a drill of that realm passes."""
        # In a realm that has left the policy none can pass any more.
        realms = self._policies.current().policy.realms
        return tuple(self._problems[realm] for realm in sorted(self._problems) if realm in realms)

    async def realms(self, wanted: str | None) -> tuple[str, ...]:
        """Return the realms to drill: the one that is wanted, or each that has verifiers.

        Raises:
            NotFound: There is no such realm, or nobody listens.
            StoreUnavailable: Nobody knows who listens to other brokers.
        """
        known = self._policies.current().policy.realms
        if wanted is not None and wanted not in known:
            raise NotFound(
                f"there is no realm {wanted}", hint=f"the realms are {', '.join(sorted(known)) or 'none yet'}"
            )
        wanted_realms = sorted(known) if wanted is None else [wanted]
        found = tuple([realm for realm in wanted_realms if await self.has_verifiers(realm)])
        if not found:
            where = f"in realm {wanted}" if wanted is not None else "in any realm"
            raise NotFound(
                f"no verifier listens {where}, so there is nothing to drill",
                hint="connect a verifier, and see: broker verifiers",
            )
        return found

    async def has_verifiers(self, realm: str) -> bool:
        """Tell whether anybody listens, to whatever broker. Raises StoreUnavailable."""
        return any(self._hub.live(realm)) or bool(await self._others.listening(realm))

    def is_under_way(self, realm: str) -> bool:
        """Tell whether this broker is drilling the realm."""
        return realm in self._under_way

    def begin(self, realm: str) -> None:
        """Begin a drill by the schedule, which nobody waits for."""
        task = asyncio.create_task(self._run(realm, BY_SCHEDULE, None, _unheard))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def recall(self, last: DrillResult) -> None:
        """Take up how the newest drill of a realm ended, which another process made."""
        if last.passed:
            self._problems.pop(last.realm, None)
        else:
            self._problems[last.realm] = last.problem()

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
        live = list(self._hub.live(canary.realm))
        here = {one.listener.verifier for one in live}
        elsewhere = await self._others.listening(canary.realm) - here
        bound_ms = max([self._lease_ms(canary.realm), *(one.listener.lease_ms for one in live)])
        probe = feed_pb2.Probe(
            id=canary.id,
            token=canary.token,
            model=CANARY_MODEL,
            hold_ms=bound_ms + int((SEEN_WITHIN_S + REPORT_S) * 1000) + HOLD_MARGIN_MS,
        )
        try:
            with self.shown.show(canary.realm, probe, elsewhere) as shown:
                await self._others.call(
                    DrillCall(canary.id, canary.realm, canary.token, probe.hold_ms, self._clock.now())
                )
                tell(Begun(canary.realm, canary.id, len(live) + len(elsewhere)))
                await self._until_seen(shown, canary.id)
                shown.showing.revoking()
                index, asked_ns, committed_ns = await asyncio.to_thread(self._canaries.end, canary, by)
                await self._until_dead(shown, canary.id, committed_ns + bound_ms * NS_PER_MS + int(REPORT_S * 1e9))
                if elsewhere:
                    # Where that cannot be read, they stay silent.
                    with suppress(Failure):
                        shown.showing.only_elsewhere(await self._others.listening(canary.realm) - here)
        finally:
            # Else it is forgotten after an hour.
            with suppress(Failure):
                await self._others.end(canary.id)
        # From before the commit: a report can be here before the append's thread has returned.
        verifiers = shown.showing.drilled(asked_ns)
        return DrillResult(0, canary.realm, canary.id, canary.minted_at, by, bound_ms, index, verifiers)

    async def _until_seen(self, shown: Shown, canary: str) -> None:
        deadline_ns = self._clock.boottime_ns() + int(SEEN_WITHIN_S * 1e9)
        shown.ask()
        shown_ns = self._clock.boottime_ns()
        while not shown.showing.is_seen and (now_ns := self._clock.boottime_ns()) < deadline_ns:
            if now_ns - shown_ns >= SHOW_AGAIN_S * 1e9:
                shown_ns = now_ns
                shown.ask_again()
            await self._news(shown, canary, SHOW_AGAIN_S)

    async def _until_dead(self, shown: Shown, canary: str, deadline_ns: int) -> None:
        while not shown.showing.is_over and (left_ns := deadline_ns - self._clock.boottime_ns()) > 0:
            await self._news(shown, canary, min(left_ns / 1e9, SHOW_AGAIN_S))

    async def _news(self, shown: Shown, canary: str, timeout_s: float) -> None:
        await shown.news(min(timeout_s, ASK_OTHERS_S))
        # Whatever cannot be read now is asked for again.
        with suppress(Failure):
            for broker, part in (await self._others.told(canary)).items():
                shown.showing.take(broker, part, self._clock.boottime_ns())

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


def _unheard(event: Event) -> None:
    del event
