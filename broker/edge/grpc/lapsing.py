"""The background step that ends lapsed runs."""

import asyncio
import logging

from broker.errors import Failure
from broker.service.lapses import Lapses

log = logging.getLogger("broker")

EVERY_S = 1.0


class Lapsing:
    """Looks for lapsed runs, for as long as the broker runs."""

    def __init__(self, lapses: Lapses) -> None:
        self._lapses = lapses

    async def run(self) -> None:
        """End what lapses, soon after it did. A store that is away is asked again."""
        while True:
            try:
                ended = await asyncio.to_thread(self._lapses.end)
            except Failure as failure:
                log.debug("lapsed runs could not be ended", extra={"fields": {"reason": failure.reason}})
            else:
                if ended:
                    log.info("runs lapsed", extra={"fields": {"runs": ended}})
            await asyncio.sleep(EVERY_S)
