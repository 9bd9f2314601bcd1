"""Show the canaries of other brokers' drills to the verifiers that listen to this one, and tell how they fare."""

import asyncio
import logging
from collections.abc import Mapping

from broker.domain.policy import CANARY_MODEL
from broker.edge.grpc.drilling import SHOW_AGAIN_S
from broker.edge.grpc.other_brokers import OtherBrokers
from broker.edge.grpc.shown import Shown, ShownCanaries
from broker.errors import Failure
from broker.service.ports import Clock
from broker.service.proof_ports import DrillCall
from broker.v1 import feed_pb2

log = logging.getLogger("broker.drills")

LOOK_EVERY_S = 0.5


class DrillAnswers:
    """Answers calls for as long as they stand. One event loop owns it."""

    def __init__(self, shown: ShownCanaries, others: OtherBrokers, clock: Clock) -> None:
        self._shown = shown
        self._others = others
        self._clock = clock
        self._standing: Mapping[str, DrillCall] = {}
        # Also those that are answered: each is answered once.
        self._answers: dict[str, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Answer for as long as the task lives."""
        while True:
            try:
                calls = await self._others.called()
            except Failure as failure:
                log.debug("cannot read which drills are under way", extra={"fields": {"reason": failure.reason}})
            else:
                self._look_at({call.canary: call for call in calls})
            await asyncio.sleep(LOOK_EVERY_S)

    def _look_at(self, standing: Mapping[str, DrillCall]) -> None:
        self._standing = standing
        self._answers = {
            canary: task for canary, task in self._answers.items() if canary in standing or not task.done()
        }
        for canary, call in standing.items():
            if canary not in self._answers:
                self._answers[canary] = asyncio.create_task(self._answer(call))

    async def _answer(self, call: DrillCall) -> None:
        deadline_ns = self._clock.boottime_ns() + call.hold_ms * 1_000_000
        probe = feed_pb2.Probe(id=call.canary, token=call.token, model=CANARY_MODEL, hold_ms=call.hold_ms)
        with self._shown.show(call.realm, probe) as shown:
            shown.ask()
            told = b"[]"
            while call.canary in self._standing and self._clock.boottime_ns() < deadline_ns:
                told = await self._tell(call.canary, shown, told)
                await shown.news(SHOW_AGAIN_S)
                shown.ask_again()

    async def _tell(self, canary: str, shown: Shown, told: bytes) -> bytes:
        """Tell what has changed, and return what the caller knows."""
        part = shown.showing.part()
        if part != told:
            try:
                await self._others.tell(canary, part)
            except Failure as failure:
                log.debug("cannot tell how a drill goes", extra={"fields": {"reason": failure.reason}})
                return told
        return part
