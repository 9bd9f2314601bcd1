"""Publish a checkpoint about each second while entries come, and pass it on to where the admin wants it."""

import asyncio
import logging
from collections.abc import Callable

from broker.errors import Failure, LedgerForked
from broker.service.checkpoints import PublishCheckpoints
from broker.service.tree_ports import CheckpointRecord

log = logging.getLogger("broker.checkpoints")

# With the time that it takes, still one in each second.
PUBLISH_EVERY_S = 0.8

PassOn = Callable[[CheckpointRecord], str]
"""Passes a checkpoint on; returns what went wrong, or nothing. Blocks; never raises a Failure."""


class Checkpointing:
    """Runs the publishing. One event loop owns it. Whatever fails here, nothing else stops but for a forked ledger."""

    def __init__(
        self, publish: PublishCheckpoints, destinations: tuple[PassOn, ...], on_fatal: Callable[[Failure], None]
    ) -> None:
        self._publish = publish
        self._destinations = destinations
        self._on_fatal = on_fatal
        self._passed_on: list[str | None] = [None] * len(destinations)
        self._problems = [""] * (1 + len(destinations))

    @property
    def problems(self) -> tuple[str, ...]:
        """Why there is no new checkpoint, or why it got not everywhere; nothing, when all is well."""
        return tuple(problem for problem in self._problems if problem)

    async def run(self) -> None:
        """Publish for as long as the task lives."""
        await asyncio.gather(self._publishing(), *(self._passing_on(at) for at in range(len(self._destinations))))

    async def _publishing(self) -> None:
        while True:
            try:
                await asyncio.to_thread(self._publish.publish)
                self._problems[0] = ""
            except LedgerForked as forked:
                log.critical("the ledger is not what was published", extra={"fields": {"detail": forked.message}})
                self._on_fatal(forked)
                return
            except Failure as failure:
                self._problems[0] = f"no new checkpoint is published: {failure.message}"
            except Exception as defect:
                self._problems[0] = f"no new checkpoint is published, by a defect ({type(defect).__name__})"
                log.exception("publishing a checkpoint failed")
            await asyncio.sleep(PUBLISH_EVERY_S)

    async def _passing_on(self, at: int) -> None:
        """Each destination at its own pace: a slow one keeps nobody waiting, and is given the newest next."""
        while True:
            try:
                record = await asyncio.to_thread(self._publish.served)
                if record is not None and record.note != self._passed_on[at]:
                    problem = await asyncio.to_thread(self._destinations[at], record)
                    self._passed_on[at] = None if problem else record.note
                    self._problems[1 + at] = problem
            except Failure as failure:
                self._problems[1 + at] = f"a checkpoint is not passed on: {failure.message}"
            except Exception as defect:
                self._problems[1 + at] = f"a checkpoint is not passed on, by a defect ({type(defect).__name__})"
                log.exception("passing a checkpoint on failed")
            await asyncio.sleep(PUBLISH_EVERY_S)
