"""Hosts of the test's own: network namespaces with cables between them, that nftables cuts without a word. Needs root.

A namespace is held by a file descriptor of this process alone, so nothing is left of it, however the test ends.
"""

import ctypes
import os
import socket
import subprocess
import threading
from collections.abc import Callable
from types import TracebackType
from typing import TypeVar

import pytest

from tests.e2e.force.nftables import Loss, cut_with, heal

CLONE_NEWNET = 0x4000_0000

_T = TypeVar("_T")


class Host:
    """A network namespace with a loopback of its own. Use as a context manager."""

    def __init__(self) -> None:
        if os.geteuid() != 0:
            pytest.skip("network namespaces need root")
        self._namespace = _in_a_thread(_new_namespace)
        self.run("ip", "link", "set", "lo", "up")

    def __enter__(self) -> "Host":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._namespace)

    @property
    def path(self) -> str:
        return f"/proc/{os.getpid()}/fd/{self._namespace}"

    @property
    def prefix(self) -> tuple[str, ...]:
        """What to put before a command that shall run on this host. It is replaced by the command."""
        return ("nsenter", f"--net={self.path}", "--")

    def run(self, *command: str) -> None:
        subprocess.run([*self.prefix, *command], check=True, capture_output=True)

    def join(self, other: "Host", ours: str, theirs: str, *, name: str) -> None:
        """Lay a cable to another host; addresses with their prefix length."""
        self.run("ip", "link", "add", f"{name}0", "type", "veth", "peer", "name", f"{name}1", "netns", other.path)
        for host, end, address in ((self, f"{name}0", ours), (other, f"{name}1", theirs)):
            host.run("ip", "address", "add", address, "dev", end)
            host.run("ip", "link", "set", end, "up")

    def connect(self, address: str, port: int) -> socket.socket:
        """Return a connection that begins on this host, for use anywhere."""
        return self.within(lambda: socket.create_connection((address, port), timeout=5))

    def cut(self, *, incoming: Loss | None, outgoing: Loss | None) -> None:
        """Drop what comes and what goes. Nobody is told."""
        self.within(lambda: cut_with(incoming, outgoing))

    def heal(self) -> None:
        self.within(heal)

    def within(self, work: Callable[[], _T]) -> _T:
        """Do `work` in a thread that lives on this host."""

        def there() -> _T:
            _check(ctypes.CDLL(None, use_errno=True).setns(self._namespace, CLONE_NEWNET))
            return work()

        return _in_a_thread(there)


def _new_namespace() -> int:
    _check(ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET))
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def _check(outcome: int) -> None:
    if outcome != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _in_a_thread(work: Callable[[], _T]) -> _T:
    """Do `work` in a thread that is used for nothing else, since it changes what the thread is in."""
    done: list[_T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            done.append(work())
        except BaseException as failure:
            failed.append(failure)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return done[0]
