"""An event loop with virtual time, on which every callback belongs to a node that can be frozen or killed."""

import asyncio
import heapq
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from contextvars import Context, ContextVar, copy_context
from typing import Any

NS_PER_S = 1_000_000_000
MILLION = 1_000_000
# More callbacks than this without time going on is a busy loop.
MOST_AT_ONCE = 200_000


class Killed(BaseException):
    """The node of this job is no more; nothing that it still does has an effect."""


class Node:
    """One machine with one process on it: its clocks, and whether its callbacks run.

    Its boot-time clock began at `offset_ns` and runs `ppm` too fast; its wall clock shows `wall_ns` at true
    time 0. A frozen node is parked while time goes on; with `sleeping`, its monotonic clock stops as well.
    """

    def __init__(self, loop: "SimLoop", name: str, *, offset_ns: int = 0, ppm: int = 0, wall_ns: int = 0) -> None:
        self.name = name
        self.wall_ns = wall_ns
        self.is_dead = False
        self.is_frozen = False
        self.tasks: list[asyncio.Task[Any]] = []
        self.jobs: set[Job] = set()
        self.lanes: dict[int, Lane] = {}
        self.parked: list[asyncio.Handle] = []
        self._loop = loop
        self._offset_ns = offset_ns
        self._ppm = ppm
        self._slept_ns = 0
        self._asleep_since_ns: int | None = None
        self.context = copy_context()
        self.context.run(NODE.set, self)

    def boottime_ns(self) -> int:
        """CLOCK_BOOTTIME."""
        now_ns = self._loop.now_ns
        return self._offset_ns + now_ns + now_ns * self._ppm // MILLION

    def monotonic_s(self) -> float:
        """CLOCK_MONOTONIC, which does not count while the machine sleeps."""
        return (self.boottime_ns() - self._slept_ns) / NS_PER_S

    def wall_now_ns(self) -> int:
        """CLOCK_REALTIME, which is wrong and jumps."""
        now_ns = self._loop.now_ns
        return self.wall_ns + now_ns + now_ns * self._ppm // MILLION

    def true_ns(self, span_ns: int) -> int:
        """Return how much true time passes while this node's clocks count `span_ns`."""
        return span_ns * MILLION // (MILLION + self._ppm)

    def freeze(self, *, sleeping: bool = False) -> None:
        """Stop running callbacks."""
        self.is_frozen = True
        self._asleep_since_ns = self.boottime_ns() if sleeping else None

    def thaw(self) -> None:
        """Run what was parked, in its order, and go on."""
        self.is_frozen = False
        if self._asleep_since_ns is not None:
            self._slept_ns += self.boottime_ns() - self._asleep_since_ns
            self._asleep_since_ns = None
        parked, self.parked = self.parked, []
        self._loop.ready.extend((self, handle) for handle in parked)

    def kill(self) -> None:
        """End the process: nothing of it runs again."""
        self.is_dead = True
        self.is_frozen = False
        self.parked.clear()
        for job in tuple(self.jobs):
            job.kill()

    def call(self, callback: Callable[..., object], *arguments: object, after_ns: int = 0) -> asyncio.Handle:
        """Call back on this node, `after_ns` of true time from now."""
        return self._loop.schedule(self, self._loop.now_ns + after_ns, callback, arguments)

    def spawn(self, coroutine: Any) -> "asyncio.Task[Any]":
        """Begin a task of this node."""
        return self.context.run(self._loop.create_task, coroutine)


NODE: ContextVar[Node] = ContextVar("NODE")
_BLOCKED: list["Job"] = []


class Job:
    """A call in a thread of its own, which runs only while the loop waits for it, so that all is in one order."""

    def __init__(self, loop: "SimLoop", node: Node, future: "SimFuture", call: Callable[[], Any], lane: "Lane") -> None:
        self.loop, self.node, self.future, self.lane = loop, node, future, lane
        self._call = call
        self._worker: Worker | None = None
        self._is_killed = False
        node.jobs.add(self)

    def begin(self) -> None:
        """Run until it ends or blocks."""
        if self.node.is_dead:
            self.end()
            return
        self._worker = _idle.pop() if _idle else Worker()
        self._worker.job = self
        self._step()

    def body(self) -> None:
        """In the worker's thread: the whole call."""
        try:
            if self._is_killed:
                return
            result = self._call()
        except Killed:
            return
        except BaseException as failure:
            if not self._is_killed:
                self.future.set_exception(failure)
        else:
            if not self._is_killed:
                self.future.set_result(result)

    def wait(self) -> None:
        """In the worker's thread: let the loop go on until `resume`. Raises Killed."""
        worker = self._worker
        assert worker is not None
        worker.yielded.release()
        worker.go.acquire()
        if self._is_killed:
            raise Killed

    def resume(self) -> None:
        """On the loop: go on where it blocked."""
        if not self._is_killed and self.future is not None:
            self._step()

    def kill(self) -> None:
        """Unwind what blocks, without effect."""
        self._is_killed = True
        self.node.jobs.discard(self)
        if self._worker is not None:
            self._step()

    def end(self) -> None:
        """Make room for the next one."""
        self.node.jobs.discard(self)
        self.lane.ended()

    def _step(self) -> None:
        worker = self._worker
        assert worker is not None
        before = self.loop.job
        self.loop.job = self
        worker.go.release()
        worker.yielded.acquire()
        self.loop.job = before
        if worker.is_done:
            worker.is_done = False
            self._worker = None
            worker.job = None
            _idle.append(worker)
            self.end()


class Worker:
    """A thread that takes turns with the loop."""

    def __init__(self) -> None:
        self.go, self.yielded = threading.Lock(), threading.Lock()
        self.go.acquire()
        self.yielded.acquire()
        self.job: Job | None = None
        self.is_done = False
        threading.Thread(target=self._run, name="simulated", daemon=True).start()

    def _run(self) -> None:
        while True:
            self.go.acquire()
            job = self.job
            assert job is not None
            job.node.context.copy().run(self._turn, job)
            self.is_done = True
            del job
            self.yielded.release()

    def _turn(self, job: Job) -> None:
        asyncio._set_running_loop(None)
        job.body()


_idle: list[Worker] = []


class SimFuture(Future[Any]):
    """A concurrent future whose `result` lets virtual time go on instead of the thread wait."""

    def __init__(self, loop: "SimLoop") -> None:
        super().__init__()
        self._loop = loop

    def result(self, timeout: float | None = None) -> Any:
        """As in the library; in a job only, unless it is done."""
        self._await(timeout)
        return super().result(0)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """As in the library; in a job only, unless it is done."""
        self._await(timeout)
        return super().exception(0)

    def _await(self, timeout: float | None) -> None:
        job = self._loop.job
        if self.done() or job is None:
            return
        waits = [True]

        def wake(_: object = None) -> None:
            if waits[0]:
                waits[0] = False
                job.node.call(job.resume)

        self.add_done_callback(wake)
        if timeout is not None:
            job.node.call(wake, after_ns=int(timeout * NS_PER_S))
        job.wait()


class Lane:
    """What one executor has to do, so many at a time."""

    def __init__(self, most: int | None) -> None:
        self._room = most
        self._waiting: deque[Job] = deque()

    def add(self, job: Job) -> None:
        """Begin it when there is room."""
        if self._room is None:
            job.node.call(job.begin)
        elif self._room:
            self._room -= 1
            job.node.call(job.begin)
        else:
            self._waiting.append(job)

    def ended(self) -> None:
        """Begin the next one."""
        if self._room is None:
            return
        if self._waiting:
            job = self._waiting.popleft()
            job.node.call(job.begin)
        else:
            self._room += 1


class SimExecutor(Executor):
    """An executor of the running node, for what does not ask the loop for one."""

    def __init__(self, loop: "SimLoop", most: int | None = None) -> None:
        self._loop = loop
        self._lane = Lane(most)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """As in the library."""
        return self._loop.submit(NODE.get(), self._lane, lambda: fn(*args, **kwargs))


class SimLock:
    """A lock between jobs: who waits lets virtual time go on."""

    def __init__(self, loop: "SimLoop") -> None:
        self._loop = loop
        self._is_held = False
        self._waiting: deque[Job] = deque()

    def __enter__(self) -> None:
        job = self._loop.job
        while self._is_held:
            assert job is not None, "only a job can wait for a lock"
            self._waiting.append(job)
            job.wait()
        self._is_held = True

    def __exit__(self, *_: object) -> None:
        self._is_held = False
        if self._waiting:
            job = self._waiting.popleft()
            job.node.call(job.resume)


class SimLoop(asyncio.AbstractEventLoop):
    """Runs callbacks in one order that depends on nothing but what was scheduled. Not a thread's, but a run's."""

    def __init__(self) -> None:
        self.now_ns = 0
        self.ready: deque[tuple[Node, asyncio.Handle]] = deque()
        self.job: Job | None = None
        self.problems: list[str] = []
        self._timers: list[tuple[int, int, Node, asyncio.Handle]] = []
        self._count = 0
        self.world = Node(self, "world")
        self.steps = 0

    # What asyncio asks of a loop.

    def time(self) -> float:
        return NODE.get(self.world).monotonic_s()

    def call_soon(self, callback: Any, *args: Any, context: Context | None = None) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        node = NODE.get(self.world) if context is None else context.get(NODE, self.world)
        self.ready.append((node, handle))
        return handle

    def call_soon_threadsafe(self, callback: Any, *args: Any, context: Context | None = None) -> asyncio.Handle:
        return self.call_soon(callback, *args, context=context)

    def call_later(
        self, delay: float, callback: Any, *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        node = NODE.get(self.world) if context is None else context.get(NODE, self.world)
        when_ns = self.now_ns + max(0, node.true_ns(int(delay * NS_PER_S)))
        handle = asyncio.TimerHandle(when_ns / NS_PER_S, callback, args, self, context)
        self._count += 1
        heapq.heappush(self._timers, (when_ns, self._count, node, handle))
        handle._scheduled = True
        return handle

    def call_at(self, when: float, callback: Any, *args: Any, context: Context | None = None) -> asyncio.TimerHandle:
        return self.call_later(when - self.time(), callback, *args, context=context)

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """It is passed over when its time comes."""

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
        lane = node.lanes.get(id(executor))
        if lane is None:
            lane = node.lanes[id(executor)] = Lane(getattr(executor, "_max_workers", None))
        return asyncio.wrap_future(self.submit(node, lane, lambda: func(*args)), loop=self)

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
        # A task or generator that a killed node left behind is no problem.
        if "handle" in context:
            self.problems.append(f"{context.get('message')}: {context.get('exception')!r}")

    # What the simulation asks of it.

    def schedule(self, node: Node, at_ns: int, callback: Any, arguments: tuple[object, ...] = ()) -> asyncio.Handle:
        """Call back on `node` at a true time."""
        handle = asyncio.Handle(callback, arguments, self, node.context)
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

    def run_until(self, until_ns: int, is_over: Callable[[], bool] | None = None) -> None:
        """Run all that is due before `until_ns`, or until `is_over`, which is asked each time that time goes on."""
        ready, timers = self.ready, self._timers
        with self._running():
            while True:
                at_once = 0
                while ready:
                    node, handle = ready.popleft()
                    if handle._cancelled or node.is_dead:
                        continue
                    if node.is_frozen:
                        node.parked.append(handle)
                        continue
                    at_once += 1
                    handle._run()
                    if at_once > MOST_AT_ONCE:
                        raise RuntimeError(f"a busy loop on {node.name}: {handle}")
                self.steps += at_once
                while timers and timers[0][3]._cancelled:
                    heapq.heappop(timers)
                if is_over is not None and is_over():
                    return
                if not timers or timers[0][0] >= until_ns:
                    self.now_ns = max(self.now_ns, until_ns)
                    return
                when_ns, _, node, handle = heapq.heappop(timers)
                self.now_ns = max(self.now_ns, when_ns)
                ready.append((node, handle))

    def end(self, nodes: list[Node]) -> None:
        """Unwind what every node left, without effect, so that nothing of it shows later."""
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
                if not handle._cancelled:
                    handle._run()
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
