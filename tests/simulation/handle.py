"""A callback that waits for its turn: what asyncio needs of a handle, and no more."""

from collections.abc import Callable
from contextvars import Context, copy_context
from typing import Any


class SimHandle:
    """Made by the loop; whoever has it can cancel it."""

    __slots__ = ("_arguments", "_callback", "_context", "is_cancelled")

    def __init__(self, callback: Callable[..., object], arguments: tuple[Any, ...], context: Context | None) -> None:
        self._callback = callback
        self._arguments = arguments
        self._context = copy_context() if context is None else context
        self.is_cancelled = False

    def __repr__(self) -> str:
        return f"<{self._callback!r}>"

    def cancel(self) -> None:
        """It is passed over when its turn comes."""
        self.is_cancelled = True
        # What it would have been called with may be large, and its time far.
        self._callback, self._arguments = _nothing, ()

    def cancelled(self) -> bool:
        """Whether it was cancelled."""
        return self.is_cancelled

    def run(self) -> None:
        """Call it; raises what the callback raises."""
        self._context.run(self._callback, *self._arguments)


def _nothing() -> None:
    """Of a cancelled one."""
