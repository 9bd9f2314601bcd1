"""Waiting for approvals: one look at the store for all who wait, whatever their number."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import suppress

from broker.domain.approval import Judged
from broker.errors import Failure, Overloaded
from broker.service.approving import Approving, Shown
from broker.service.calling import Caller

LOOK_EVERY_S = 0.5
# Whoever waits is judged anew so often: they may have lost the right to know.
JUDGE_EVERY_S = 1.0
LOOK_AGAIN = 10
MAX_WATCHING = 1000
# One harness that opens streams without end must leave room for the others.
MAX_OF_ONE = 100
LONGEST_S = 3600.0


class Watching:
    """Tells those who watch how approvals stand. One event loop owns it.

    `again` judges a caller by the policy as it is: who they were when they began to watch is not who they are.
    """

    def __init__(self, approving: Approving, again: Callable[[Caller], Caller]) -> None:
        self._approving = approving
        self._again = again
        self._watched: Counter[str] = Counter()
        self._watchers: Counter[str] = Counter()
        self._changed = asyncio.Condition()
        self._changes: dict[str, int] = {}
        self._hurry = asyncio.Event()
        self._looking: asyncio.Task[None] | None = None

    async def watch(self, caller: Caller, approval: str) -> AsyncIterator[Shown]:
        """Yield how `approval` stands, now and at each change, until nothing can change, or for an hour.

        Raises:
            Forbidden, NotFound, Unauthenticated: The caller may not know, or not any more.
            Overloaded: Too many watch.
        """
        if self._watched.total() >= MAX_WATCHING or self._watchers[caller.principal] >= MAX_OF_ONE:
            raise Overloaded("too many wait for approvals", hint="ask now and then instead: broker approval show")
        loop = asyncio.get_running_loop()
        ends_s = loop.time() + LONGEST_S
        self._watched[approval] += 1
        self._watchers[caller.principal] += 1
        try:
            last: Shown | None = None
            while loop.time() < ends_s:
                seen = self._changes.get(approval, 0)
                shown = await asyncio.to_thread(self._approving.get, self._again(caller), approval)
                if shown != last:
                    last = shown
                    yield shown
                if shown.judged.standing.is_over:
                    return
                self._look()
                await self._change(caller, approval, seen)
        finally:
            self._watchers[caller.principal] -= 1
            if not self._watchers[caller.principal]:
                del self._watchers[caller.principal]
            self._watched[approval] -= 1
            if not self._watched[approval]:
                del self._watched[approval]
                self._changes.pop(approval, None)

    def wake(self) -> None:
        """Look at once: something was decided here."""
        self._hurry.set()

    async def _change(self, caller: Caller, approval: str, seen: int) -> None:
        """Wait until it has changed, or it is time to look all the same. Raises Unauthenticated."""
        for _ in range(LOOK_AGAIN):
            async with self._changed:
                with suppress(TimeoutError):
                    changed = self._changed.wait_for(lambda: self._changes.get(approval, 0) != seen)
                    await asyncio.wait_for(changed, JUDGE_EVERY_S)
                    return
            if self._again(caller) != caller:
                return

    def _look(self) -> None:
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._keep_looking())

    async def _keep_looking(self) -> None:
        before: dict[str, Judged] = {}
        while self._watched:
            with suppress(Failure):
                now = await asyncio.to_thread(self._approving.stand, list(self._watched))
                moved = [one for one in now if one in before and now[one] != before[one]]
                # What came to be watched a moment ago was looked at by whoever watches.
                moved += [one for one in now if one not in before]
                before = dict(now)
                if moved:
                    async with self._changed:
                        for one in moved:
                            self._changes[one] = self._changes.get(one, 0) + 1
                        self._changed.notify_all()
            self._hurry.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._hurry.wait(), LOOK_EVERY_S)
