"""Tells those who have threads that the process forks: before it, and after it on both sides."""

import os
import weakref
from typing import Protocol


class Forking(Protocol):
    """Something with threads, which a child does not inherit."""

    def before_fork(self) -> None:
        """End what cannot be forked. Called in the thread that forks."""

    def after_fork_in_parent(self) -> None:
        """Go on."""

    def after_fork_in_child(self) -> None:
        """Make anew what is of no use in a child, locks included. Other threads are no more."""


_ALL: "weakref.WeakSet[Forking]" = weakref.WeakSet()


def follow_forks(one: Forking) -> None:
    """Call `one` at each fork of this process, for as long as it lives."""
    _ALL.add(one)


def _before() -> None:
    for one in tuple(_ALL):
        one.before_fork()


def _after_in_parent() -> None:
    for one in tuple(_ALL):
        one.after_fork_in_parent()


def _after_in_child() -> None:
    for one in tuple(_ALL):
        one.after_fork_in_child()


os.register_at_fork(before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child)
