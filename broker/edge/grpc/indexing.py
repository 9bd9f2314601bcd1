"""The background step that keeps the index of the ledger near its end."""

import asyncio
import logging
import time

from broker.errors import Failure
from broker.service.indexing import Indexer

log = logging.getLogger("broker")

EVERY_S = 1.0
# Of a core: mints and revocations come first. Who asks a question waits for no pause.
SHARE = 0.1


class Indexing:
    """Indexes what comes, for as long as the broker runs."""

    def __init__(self, indexer: Indexer) -> None:
        self._indexer = indexer

    async def run(self) -> None:
        """Index in small steps, with long pauses. A store that is away is asked again."""
        while True:
            began, done = time.monotonic(), 0
            try:
                done = await asyncio.to_thread(self._indexer.step)
            except Failure as failure:
                log.debug("the ledger could not be indexed", extra={"fields": {"reason": failure.reason}})
            took = time.monotonic() - began
            await asyncio.sleep(took / SHARE if done else EVERY_S)
