"""The seam at which the engines' errors become ours, with the cause kept and no data in the text."""

import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psycopg
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from broker.errors import Defect, Failure, StoreCorrupt, StoreFull, StoreUnavailable

ENGINE_ERRORS = (SQLAlchemyError, sqlite3.Error, psycopg.Error)
"""What an engine raises, through SQLAlchemy or from its driver."""

# https://www.sqlite.org/rescode.html: the low byte is the primary code.
_PRIMARY = 0xFF
_SQLITE_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_SQLITE_CORRUPT = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_SQLITE_SHUT = (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM)
# The write itself is impossible; the store is well.
_SQLITE_REFUSED = (sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_MISMATCH, sqlite3.SQLITE_TOOBIG, sqlite3.SQLITE_ERROR)
# https://www.postgresql.org/docs/current/errcodes-appendix.html. After a failed fsync the server itself starts
# again from its log (data_sync_retry = off), so none of its errors asks that of us.
_PG_FULL = "53100"
_PG_CORRUPT = ("XX001", "XX002")
_PG_READ_ONLY = "25006"
_PG_REFUSED = ("22", "23", "42")


# On a failing disk SQLite takes for damage what it could not read; only a new start tells.
LOOK_HINT = "the broker stops; look at the disk, then start it again: a start tells whether a backup is needed"


class StoreBroken(StoreUnavailable):
    """The disk failed under the store; the process must start again from what is on it."""

    default_hint = LOOK_HINT


def translated(problem: Exception) -> Failure:
    """Return our failure for an engine's error; a Defect means that the write and not the store is at fault."""
    original = problem.orig if isinstance(problem, DBAPIError) else problem
    failure: Failure
    match original:
        case sqlite3.Error():
            failure = _of_sqlite(original)
        case psycopg.Error():
            failure = _of_postgresql(original)
        case _:
            failure = StoreUnavailable(f"the store did not answer ({type(original).__name__})")
    failure.__cause__ = problem
    return failure


def _of_sqlite(original: sqlite3.Error) -> Failure:
    # Absent when the driver itself refuses, before SQLite is asked.
    code = getattr(original, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
    primary = code & _PRIMARY
    if primary == sqlite3.SQLITE_FULL or code == sqlite3.SQLITE_IOERR_SHMSIZE:
        return StoreFull("the store's disk is full")
    if primary in _SQLITE_CORRUPT:
        return StoreCorrupt("the store is damaged", hint=LOOK_HINT)
    if primary == sqlite3.SQLITE_IOERR:
        # After a failed fsync nobody knows what is on the disk; only a new start does.
        return StoreBroken("the store's disk failed")
    if primary in _SQLITE_SHUT:
        return StoreUnavailable(
            "the store cannot be opened for writing", hint="check the data folder's owner, mode and mount"
        )
    if primary in _SQLITE_BUSY:
        return StoreUnavailable("another process kept the store locked")
    if primary in _SQLITE_REFUSED:
        return Defect(f"the store refused a write ({type(original).__name__})")
    return StoreUnavailable(f"the store did not answer ({type(original).__name__})")


def _of_postgresql(original: psycopg.Error) -> Failure:
    state = original.sqlstate or ""
    if state == _PG_FULL:
        return StoreFull("the store's disk is full")
    if state in _PG_CORRUPT:
        return StoreCorrupt("the store is damaged", hint=LOOK_HINT)
    if state == _PG_READ_ONLY:
        return StoreUnavailable("PostgreSQL answers as a read-only standby", hint="point store.url at the primary")
    if state.startswith(_PG_REFUSED) or (isinstance(original, psycopg.DataError) and not state):
        return Defect(f"the store refused a write ({type(original).__name__})")
    return StoreUnavailable(f"the store did not answer ({type(original).__name__})")


@contextmanager
def engine_errors() -> Iterator[None]:
    """Turn an engine's error inside into ours."""
    try:
        yield
    except ENGINE_ERRORS as problem:
        raise translated(problem) from problem


class LastFailure:
    """The failure after which the store does nothing any more. Told to `on_fatal` once."""

    def __init__(self, on_fatal: Callable[[Failure], None]) -> None:
        self._on_fatal = on_fatal
        self._lock = threading.Lock()
        self.failure: Failure | None = None

    def look_at(self, failure: Failure) -> None:
        """Remember `failure` if it is one of those."""
        if not isinstance(failure, StoreBroken | StoreCorrupt):
            return
        with self._lock:
            if self.failure is not None:
                return
            self.failure = failure
        self._on_fatal(failure)
