"""An event loop with virtual time, on which every callback belongs to a node."""

import asyncio
import heapq
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from contextvars import Context
from functools import partial
from random import Random
from typing import Any

from tests.simulation.handle import SimHandle
from tests.simulation.jobs import Job, Lane, SimFuture
from tests.simulation.nodes import NODE, NS_PER_S, Machine, Node

# Threads (by their name) whose calls are done at once: nothing depends on how long they take, and turns cost time.
AT_ONCE = frozenset({"roster", "hits"})
# Calls that wait for nothing but the store. Mostly it answers at once; now and then they take their time in a thread.
MOSTLY_AT_ONCE = frozenset({"poll", "snapshot", "completion", "awaited", "known", "recorded", "prepare", "finish"})
MOSTLY = 0.6
# More callbacks than this without time going on is a busy loop.
MOST_AT_ONCE = 200_000


class SimLoop(asyncio.AbstractEventLoop):
    """Runs callbacks in one order that depends on nothing but what was scheduled. Not a thread's, but a run's."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.now_ns = 0
        self.ready: deque[tuple[Node, SimHandle]] = deque()
        self.job: Job | None = None
        self.problems: list[str] = []
        self._timers: list[tuple[int, int, Node, SimHandle]] = []
        self._count = 0
        self.nodes: list[Node] = []
        self.world = Node(self, "world", Machine(self))

    # What asyncio asks of a loop.

    def time(self) -> float:
        return NODE.get(self.world).machine.monotonic_s()

    def call_soon(self, callback: Any, *args: Any, context: Context | None = None) -> SimHandle:
        handle = SimHandle(callback, args, context)
        node = NODE.get(self.world) if context is None else context.get(NODE, self.world)
        self.ready.append((node, handle))
        return handle

    def call_soon_threadsafe(self, callback: Any, *args: Any, context: Context | None = None) -> SimHandle:
        return self.call_soon(callback, *args, context=context)

    def call_later(self, delay: float, callback: Any, *args: Any, context: Context | None = None) -> SimHandle:
        node = NODE.get(self.world) if context is None else context.get(NODE, self.world)
        # Never early by the node's own clock, and time goes on a little with each timer, as it does outside.
        when_ns = self.now_ns + max(0, node.machine.true_ns(int(delay * NS_PER_S))) + 1000
        handle = SimHandle(callback, args, context)
        self._count += 1
        heapq.heappush(self._timers, (when_ns, self._count, node, handle))
        return handle

    def call_at(self, when: float, callback: Any, *args: Any, context: Context | None = None) -> SimHandle:
        return self.call_later(when - self.time(), callback, *args, context=context)

    def create_future(self) -> "asyncio.Future[Any]":
        return asyncio.Future(loop=self)

    def create_task(self, coro: Any, *, name: str | None = None, context: Context | None = None) -> Any:
        task: asyncio.Task[Any] = asyncio.Task(coro, loop=self, name=name, context=context)
        node = NODE.get(self.world) if context is None else context.get(NODE, self.world)
        if len(node.tasks) > 64:
            node.tasks = [one for one in node.tasks if not one.done()]
        node.tasks.append(task)
        return task

    def run_in_executor(self, executor: Executor | None, func: Any, *args: Any) -> Any:
        node = NODE.get(self.world)
        if getattr(executor, "_thread_name_prefix", "") in AT_ONCE:
            return self._at_once(node, func, args)
        lane = node.lanes.get(id(executor))
        if lane is None:
            lane = node.lanes[id(executor)] = Lane(getattr(executor, "_max_workers", None))
        if lane.is_idle and _name_of(func, args) in MOSTLY_AT_ONCE and self.random.random() < MOSTLY:
            return self._at_once(node, func, args)
        return asyncio.wrap_future(self.submit(node, lane, lambda: func(*args)), loop=self)

    def _at_once(self, node: Node, func: Any, args: tuple[Any, ...]) -> "asyncio.Future[Any]":
        """Call now; the answer comes a moment later."""
        future = self.create_future()
        try:
            result = func(*args)
        except Exception as failure:
            node.call(_settle, future, None, failure, after_ns=self.random.randrange(1_000_000))
        else:
            node.call(_settle, future, result, None, after_ns=self.random.randrange(1_000_000))
        return future

    def submit(self, node: Node, lane: Lane, call: Callable[[], Any]) -> SimFuture:
        """Run `call` as a job of `node`."""
        future = SimFuture(self)
        lane.add(Job(self, node, future, call, lane))
        return future

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """A task or generator that a killed node left behind is no problem; what a callback raises, see `_call`."""

    # What the simulation asks of it.

    def schedule(self, node: Node, at_ns: int, callback: Any, arguments: tuple[object, ...] = ()) -> SimHandle:
        """Call back on `node` at a true time."""
        handle = SimHandle(callback, arguments, node.context)
        if at_ns <= self.now_ns:
            self.ready.append((node, handle))
        else:
            self._count += 1
            heapq.heappush(self._timers, (at_ns, self._count, node, handle))
        return handle

    def block(self, span_ns: int) -> None:
        """In a job: let so much true time pass. Elsewhere: nothing."""
        job = self.job
        if job is not None:
            job.node.call(job.resume, after_ns=max(1, span_ns))
            job.wait()

    def run_until(self, until_ns: int) -> None:
        """Run all that is due before `until_ns`."""
        ready, timers = self.ready, self._timers
        with self._running():
            at_once = 0
            while True:
                while ready:
                    node, handle = ready.popleft()
                    if handle.is_cancelled or node.is_dead:
                        continue
                    if node.is_frozen:
                        node.parked.append(handle)
                        continue
                    at_once += 1
                    self._call(handle)
                    if at_once > MOST_AT_ONCE:
                        raise RuntimeError(f"a busy loop on {node.name}: {handle}")
                while timers and timers[0][3].is_cancelled:
                    heapq.heappop(timers)
                if not timers or timers[0][0] >= until_ns:
                    self.now_ns = max(self.now_ns, until_ns)
                    return
                when_ns, _, node, handle = heapq.heappop(timers)
                if when_ns > self.now_ns:
                    self.now_ns = when_ns
                    at_once = 0
                ready.append((node, handle))

    def _call(self, handle: SimHandle) -> None:
        try:
            handle.run()
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as failure:
            self.problems.append(f"a callback failed: {handle}: {failure!r}")

    def end(self) -> None:
        """Unwind what every node left, without effect, so that nothing of it shows later."""
        nodes = self.nodes
        for node in nodes:
            # What the process awaits nowhere must not have failed.
            for task in node.roots:
                if task.done() and not task.cancelled() and task.exception() is not None:
                    self.problems.append(f"a task of {node.name} failed: {task.exception()!r}")
        for node in nodes:
            if not node.is_dead:
                node.kill()
        self._timers.clear()
        self.ready.clear()
        with self._running():
            for node in nodes:
                for task in node.tasks:
                    task._log_destroy_pending = False  # type: ignore[attr-defined]
                    if not task.done():
                        task.cancel()
            for _ in range(2000):
                if not self.ready:
                    break
                _node, handle = self.ready.popleft()
                if not handle.is_cancelled:
                    self._call(handle)
            for node in nodes:
                for task in node.tasks:
                    if task.done() and not task.cancelled():
                        task.exception()

    @contextmanager
    def _running(self) -> Iterator[None]:
        asyncio._set_running_loop(self)
        try:
            yield
        finally:
            asyncio._set_running_loop(None)


def _settle(future: "asyncio.Future[Any]", result: object, failure: Exception | None) -> None:
    if future.done():
        return
    if failure is not None:
        future.set_exception(failure)
    else:
        future.set_result(result)


def _name_of(func: Any, args: tuple[Any, ...]) -> str:
    """What is called in the end: behind `to_thread`, and behind a partial."""
    while isinstance(func, partial):
        func, args = func.func, (*func.args, *args)
        if getattr(func, "__name__", "") == "run" and args:
            func, args = args[0], args[1:]
    return getattr(func, "__name__", "")
