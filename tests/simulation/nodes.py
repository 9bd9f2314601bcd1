"""Machines with clocks that drift and lie, and the processes on them, which can be frozen and killed."""

import asyncio
from collections.abc import Callable
from contextvars import ContextVar, copy_context
from typing import TYPE_CHECKING, Any

from tests.simulation.handle import SimHandle

if TYPE_CHECKING:
    from tests.simulation.jobs import Job, Lane
    from tests.simulation.loop import SimLoop

NS_PER_S = 1_000_000_000
MILLION = 1_000_000


class Machine:
    """Clocks. Boot time runs `ppm` too fast; the wall clock shows `wall_ns` at true time 0, and may jump."""

    def __init__(self, loop: "SimLoop", *, uptime_ns: int = 0, ppm: int = 0, wall_ns: int = 0) -> None:
        self.ppm = ppm
        self.wall_ns = wall_ns
        self._loop = loop
        self._booted_ns = -uptime_ns
        self._slept_ns = 0
        self._asleep_since_ns: int | None = None

    def boottime_ns(self) -> int:
        """CLOCK_BOOTTIME."""
        up_ns = self._loop.now_ns - self._booted_ns
        return up_ns + up_ns * self.ppm // MILLION

    def monotonic_s(self) -> float:
        """CLOCK_MONOTONIC, which does not count while the machine sleeps."""
        return (self.boottime_ns() - self._slept_ns) / NS_PER_S

    def wall_now_ns(self) -> int:
        """CLOCK_REALTIME."""
        now_ns = self._loop.now_ns
        return self.wall_ns + now_ns + now_ns * self.ppm // MILLION

    def true_ns(self, span_ns: int) -> int:
        """Return how much true time passes while these clocks count `span_ns`."""
        return span_ns * MILLION // (MILLION + self.ppm)

    def sleep(self) -> None:
        """Suspend to memory: from now on only boot time counts."""
        self._asleep_since_ns = self.boottime_ns()

    def wake(self) -> None:
        """Go on, if it slept."""
        if self._asleep_since_ns is not None:
            self._slept_ns += self.boottime_ns() - self._asleep_since_ns
            self._asleep_since_ns = None

    def reboot(self) -> None:
        """Begin boot time anew."""
        self._booted_ns = self._loop.now_ns
        self._slept_ns = 0
        self._asleep_since_ns = None


class Node:
    """One process: whether its callbacks run. Frozen, they are parked while time goes on."""

    def __init__(self, loop: "SimLoop", name: str, machine: Machine) -> None:
        self.name = name
        self.machine = machine
        self.is_dead = False
        self.is_frozen = False
        self.tasks: list[asyncio.Task[Any]] = []
        self.roots: list[asyncio.Task[Any]] = []
        self.jobs: dict[Job, None] = {}
        self.lanes: dict[int, Lane] = {}
        self.parked: list[SimHandle] = []
        self.context = copy_context()
        self.context.run(NODE.set, self)
        self._loop = loop
        loop.nodes.append(self)

    def freeze(self, *, asleep: bool = False) -> None:
        """Stop running callbacks; the machine may sleep as well."""
        self.is_frozen = True
        if asleep:
            self.machine.sleep()

    def thaw(self) -> None:
        """Run what was parked, in its order, and go on."""
        self.is_frozen = False
        self.machine.wake()
        parked, self.parked = self.parked, []
        self._loop.ready.extend((self, handle) for handle in parked)

    def kill(self) -> None:
        """End the process: nothing of it runs again."""
        self.is_dead = True
        self.is_frozen = False
        self.machine.wake()
        self.parked.clear()
        for job in tuple(self.jobs):
            job.kill()

    def call(self, callback: Callable[..., object], *arguments: object, after_ns: int = 0) -> SimHandle:
        """Call back here, `after_ns` of true time from now."""
        return self._loop.schedule(self, self._loop.now_ns + after_ns, callback, arguments)

    def spawn(self, coroutine: Any) -> "asyncio.Task[Any]":
        """Begin a task here, which must not fail."""
        task: asyncio.Task[Any] = self._loop.create_task(coroutine, context=self.context.copy())
        self.roots.append(task)
        return task


NODE: ContextVar[Node] = ContextVar("NODE")
