"""Calls that block as if in threads of their own, run one at a time while the loop waits, so that all is in one order."""

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import TYPE_CHECKING, Any

from greenlet import getcurrent, greenlet

from tests.simulation.nodes import NODE, NS_PER_S, Node

if TYPE_CHECKING:
    from tests.simulation.loop import SimLoop


class Killed(BaseException):
    """The node of this job is no more; nothing that it still does has an effect."""


class Job:
    """A call on a stack of its own, which runs only while the loop waits for it, so that all is in one order."""

    def __init__(self, loop: "SimLoop", node: Node, future: "SimFuture", call: Callable[[], Any], lane: "Lane") -> None:
        self.loop, self.node, self.future, self.lane = loop, node, future, lane
        self._call = call
        self._stack: greenlet | None = None
        self._is_killed = False
        node.jobs[self] = None

    def begin(self) -> None:
        """Run until it ends or blocks."""
        if self.node.is_dead or not self.future.set_running_or_notify_cancel():
            self.end()
            return
        self._stack = greenlet(self._run)
        self._step()

    def wait(self) -> None:
        """In the job: let the loop go on until `resume`. Raises Killed."""
        stack = self._stack
        assert stack is getcurrent()
        stack.parent.switch()
        if self._is_killed:
            raise Killed

    def resume(self) -> None:
        """On the loop: go on where it blocked."""
        if not self._is_killed and self.future is not None:
            self._step()

    def kill(self) -> None:
        """Unwind what blocks, without effect."""
        self._is_killed = True
        self.node.jobs.pop(self, None)
        if self._stack is not None:
            self._step()

    def end(self) -> None:
        """Make room for the next one."""
        self.node.jobs.pop(self, None)
        self.lane.ended()

    def _run(self) -> None:
        """On the job's own stack: the whole call."""
        self.node.context.copy().run(self._body)

    def _body(self) -> None:
        try:
            result = self._call()
        except Killed:
            return
        except BaseException as failure:
            if not self._is_killed:
                self.future.set_exception(failure)
        else:
            if not self._is_killed:
                self.future.set_result(result)

    def _step(self) -> None:
        stack = self._stack
        assert stack is not None
        stack.parent = getcurrent()
        before, self.loop.job = self.loop.job, self
        # To the code in it a job is a thread, where no loop runs.
        running = asyncio._get_running_loop()
        asyncio._set_running_loop(None)
        try:
            stack.switch()
        finally:
            asyncio._set_running_loop(running)
            self.loop.job = before
        if stack.dead:
            self._stack = None
            self.end()


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
        self._room = self._most = most
        self._waiting: deque[Job] = deque()

    @property
    def is_idle(self) -> bool:
        """Whether nothing runs in it, as far as that is counted."""
        return self._room == self._most

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
        while self._waiting:
            job = self._waiting.popleft()
            if not job.node.is_dead:
                job.node.call(job.resume)
                return
