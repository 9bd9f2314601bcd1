"""The seam at which the engines' errors become ours, with the cause kept and no data in the text."""

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from broker.errors import Failure, StoreCorrupt, StoreFull, StoreUnavailable

_FULL = ("database or disk is full", "could not extend file", "no space left")
_CORRUPT = ("database disk image is malformed", "file is not a database", "invalid page in block")
# After a failed fsync nobody knows what is on the disk; only a new start does.
_FATAL = ("disk i/o error", "could not fsync")
_READ_ONLY = ("readonly database", "unable to open database file", "read-only")


class StoreBroken(StoreUnavailable):
    """The disk failed under the store; the process must start again from what is on it."""

    default_hint = "the broker stops; look at the disk, then start it again"


def translated(problem: SQLAlchemyError) -> Failure:
    """Return our failure for an engine's error."""
    original = problem.orig if isinstance(problem, DBAPIError) else problem
    text = str(original).lower()
    if any(mark in text for mark in _FULL):
        return StoreFull("the store's disk is full")
    if any(mark in text for mark in _CORRUPT):
        return StoreCorrupt("the store is damaged")
    if any(mark in text for mark in _FATAL):
        return StoreBroken("the store's disk failed")
    if any(mark in text for mark in _READ_ONLY):
        return StoreUnavailable(
            "the store cannot be opened for writing", hint="check the data folder's owner, mode and mount"
        )
    return StoreUnavailable(f"the store did not answer ({type(original).__name__})")


@contextmanager
def engine_errors() -> Iterator[None]:
    """Turn an engine's error inside into ours."""
    try:
        yield
    except SQLAlchemyError as problem:
        raise translated(problem) from problem
