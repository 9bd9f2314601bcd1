"""Publish a checkpoint about each second while entries come, and pass it on to where the admin wants it."""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial

from broker.errors import Failure, LedgerForked
from broker.service.checkpoints import PublishCheckpoints
from broker.service.tree_ports import CheckpointRecord
from broker.service.witnessing import CollectCosignatures

log = logging.getLogger("broker.checkpoints")

# With the time that it takes, still one in each second.
PUBLISH_EVERY_S = 0.8
CLOSE_S = 3.0

PassOn = Callable[[CheckpointRecord], str]
"""Passes a checkpoint on; returns what went wrong, or nothing. Blocks; never raises a Failure."""


class Checkpointing:
    """Runs the publishing. One event loop owns it. Whatever fails here, nothing else stops but for a forked ledger."""

    def __init__(
        self,
        publish: PublishCheckpoints,
        collect: CollectCosignatures | None,
        destinations: tuple[PassOn, ...],
        on_fatal: Callable[[Failure], None],
    ) -> None:
        self._publish = publish
        self._collect = collect
        self._destinations = destinations
        self._on_fatal = on_fatal
        self._passed_on: list[str | None] = [None] * len(destinations)
        self._problems = [""] * (2 + len(destinations))
        # Of its own, so that `close` can wait for what reads the store.
        self._threads = ThreadPoolExecutor(2 + len(destinations), thread_name_prefix="checkpoints")

    @property
    def problems(self) -> tuple[str, ...]:
        """Why there is no new checkpoint, or why it got not everywhere; nothing, when all is well."""
        return tuple(problem for problem in self._problems if problem)

    async def close(self) -> None:
        """Wait, not for long, for what is under way. Call when `run` has ended, before the store is closed."""
        if self._collect is not None:
            self._collect.close()
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                await asyncio.to_thread(self._threads.shutdown, wait=True, cancel_futures=True)

    async def run(self) -> None:
        """Publish for as long as the task lives."""
        await asyncio.gather(
            self._again_and_again(0, "no new checkpoint is published", self._publish.publish),
            *((self._again_and_again(1, "checkpoints are not cosigned", self._cosign),) if self._collect else ()),
            *(
                self._again_and_again(2 + at, "a checkpoint is not passed on", partial(self._pass_on, at))
                for at in range(len(self._destinations))
            ),
        )

    async def _again_and_again(self, at: int, what: str, work: Callable[[], object]) -> None:
        """Each at its own pace: a slow one keeps nobody waiting, and is given the newest next."""
        while True:
            try:
                told = await asyncio.get_running_loop().run_in_executor(self._threads, work)
                self._problems[at] = told if isinstance(told, str) else ""
            except LedgerForked as forked:
                log.critical("the ledger is not what was published", extra={"fields": {"detail": forked.message}})
                self._on_fatal(forked)
                return
            except Failure as failure:
                self._problems[at] = f"{what}: {failure.message}"
            except Exception as defect:
                self._problems[at] = f"{what}, by a defect ({type(defect).__name__})"
                log.exception("the log's publishing met a defect")
            await asyncio.sleep(PUBLISH_EVERY_S)

    def _cosign(self) -> str:
        assert self._collect is not None  # noqa: S101 - it runs only then
        return self._collect.collect()

    def _pass_on(self, at: int) -> str:
        record = self._publish.served()
        if record is None or record.note == self._passed_on[at]:
            return self._problems[2 + at]
        problem = self._destinations[at](record)
        self._passed_on[at] = None if problem else record.note
        return problem
