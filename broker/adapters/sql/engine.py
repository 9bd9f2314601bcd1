"""Engines: how SQLite and PostgreSQL are opened so that what is committed is durable."""

import fcntl
import os
import sqlite3
import time
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any, TypeVar

import psycopg
from psycopg.abc import PQGen
from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url

from broker.errors import ConfigInvalid, StoreUnavailable

# A waiting writer gives up before its caller's deadline does.
LOCK_TIMEOUT_S = 5
# A server that was stopped keeps its sockets open and answers never: the waiting is bounded on our side.
ANSWER_TIMEOUT_S = 7
# One for each thread that reads or writes at the same time.
SQLITE_CONNECTIONS = 12
CONNECT_TIMEOUT_S = 5

_Got = TypeVar("_Got")


def make_engine(url: str | URL, *, answer_timeout_s: int = ANSWER_TIMEOUT_S) -> Engine:
    """Return an engine for `sqlite:///FILE` or `postgresql://…`. Connects lazily.

    Raises:
        ConfigInvalid: Another kind of URL.
    """
    parsed = make_url(url)
    match parsed.get_backend_name():
        case "sqlite" if parsed.database:
            return _sqlite(parsed)
        case "postgresql":
            return _postgresql(parsed, answer_timeout_s)
    raise ConfigInvalid("store.url", (f"{parsed.get_backend_name()} is not supported; use sqlite or postgresql",))


def open_all(engine: Engine) -> None:
    """Open all connections that a SQLite store may need at the same time, while there are file handles."""
    if engine.dialect.name == "sqlite":
        with ExitStack() as held:
            for _ in range(SQLITE_CONNECTIONS):
                held.enter_context(engine.connect())


def for_writing(engine: Engine) -> Engine:
    """Return the same engine whose transactions will write."""
    return engine.execution_options(broker_writes=True)


def reading(engine: Engine) -> AbstractContextManager[Connection]:
    """Begin a transaction that sees one moment and writes nothing."""
    if engine.dialect.name == "postgresql":
        return engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True).begin()
    return engine.begin()


def _sqlite(url: URL) -> Engine:
    engine = create_engine(
        url, connect_args={"timeout": LOCK_TIMEOUT_S, "check_same_thread": False}, pool_size=SQLITE_CONNECTIONS
    )

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _record: Any) -> None:
        # The driver must not begin transactions by itself: it begins them late and without the lock.
        connection.isolation_level = None
        cursor = connection.cursor()
        _write_ahead(cursor)
        # NORMAL lost acknowledged rows in a power cut; FULL syncs the log at each commit (P11).
        cursor.execute("PRAGMA synchronous = FULL")
        # SQLite's own folding of the log keeps a failed sync to itself; ours does not.
        cursor.execute("PRAGMA wal_autocheckpoint = 0")
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.execute("PRAGMA cache_size = -32768")
        # A file for what is sorted would need a handle when there is none.
        cursor.execute("PRAGMA temp_store = MEMORY")
        cursor.close()

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # IMMEDIATE: the lock is taken before the head is read, so no other writer can move it.
        writes = connection.get_execution_options().get("broker_writes")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _write_ahead(cursor: sqlite3.Cursor) -> None:
    """Turn the write-ahead log on. SQLite itself does not wait here for another that opens or leaves the file."""
    deadline = time.monotonic() + LOCK_TIMEOUT_S
    while True:
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as problem:
            if problem.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return


def _postgresql(url: URL, answer_timeout_s: int) -> Engine:
    engine = create_engine(
        url.set(drivername="postgresql+psycopg"),
        pool_size=8,
        pool_timeout=LOCK_TIMEOUT_S,
        pool_pre_ping=True,
        connect_args={
            "connect_timeout": CONNECT_TIMEOUT_S,
            # The server gives up first, so that the connection outlives a slow statement. A broker that stops
            # in the middle of a transaction must not keep the head from the others for long.
            "options": (
                f"-c lock_timeout={LOCK_TIMEOUT_S}s -c statement_timeout={answer_timeout_s - 1}s "
                "-c idle_in_transaction_session_timeout=10s -c synchronous_commit=on"
            ),
            "keepalives_idle": 5,
            "keepalives_interval": 2,
            "keepalives_count": 3,
        },
    )

    class Bounded(_Bounded):
        patience_s = answer_timeout_s

    @event.listens_for(engine, "do_connect")
    def connect(_dialect: Any, _record: Any, args: Any, options: Any) -> psycopg.Connection[Any]:
        return Bounded.connect(*args, **options)

    return engine


class _Bounded(psycopg.Connection[Any]):
    """A connection that closes itself when an answer takes longer than `patience_s`."""

    patience_s = ANSWER_TIMEOUT_S

    def wait(self, gen: PQGen[_Got], *args: Any, **options: Any) -> _Got:
        """As psycopg's, with an end."""
        return super().wait(self._until_deadline(gen), *args, **options)

    def commit(self) -> None:
        """As psycopg's; a warning is no success.

        A primary that was told not to wait for its standby any longer answers that it has committed, and warns that
        nobody else may have it.
        """
        severities: list[str | None] = []

        def note(notice: psycopg.errors.Diagnostic) -> None:
            # It can be read in here alone.
            severities.append(notice.severity_nonlocalized)

        self.add_notice_handler(note)
        try:
            super().commit()
        finally:
            self.remove_notice_handler(note)
        if "WARNING" in severities:
            raise psycopg.OperationalError("committed with a warning")

    def _until_deadline(self, gen: PQGen[_Got]) -> PQGen[_Got]:
        deadline = time.monotonic() + self.patience_s
        try:
            wanted = next(gen)
            while True:
                # psycopg comes back at each tenth of a second with nothing ready.
                ready = yield wanted
                if not ready and time.monotonic() > deadline:
                    self.pgconn.finish()
                    raise psycopg.OperationalError("no answer in time")
                wanted = gen.send(ready)
        except StopIteration as done:
            got: _Got = done.value
            return got


class DataFolder:
    """A data folder held by one process, for as long as this object lives.

    Raises:
        StoreUnavailable: It cannot be made or written, or another broker holds it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = _held(path / "broker.lock", fcntl.LOCK_EX)
        except BlockingIOError as held:
            raise StoreUnavailable(
                f"another broker is using the data folder {path}",
                hint="stop it, choose another folder, or use PostgreSQL for several brokers",
            ) from held
        except OSError as problem:
            raise StoreUnavailable(
                f"the data folder {path} cannot be used: {problem.strerror}",
                hint="make it writable for the broker's user, or choose another with --data",
            ) from problem

    def release(self) -> None:
        """Let another process have it."""
        os.close(self._lock)


class SqliteFile:
    """A SQLite store's file, held alone (`is_sole`) or together with others that are not the only broker either.

    Raises:
        StoreUnavailable: The folder cannot be written, or another broker holds the file in a way that excludes ours.
    """

    def __init__(self, path: Path, *, is_sole: bool) -> None:
        try:
            self._lock: int | None = _held(
                path.with_name(f"{path.name}.lock"), fcntl.LOCK_EX if is_sole else fcntl.LOCK_SH
            )
        except BlockingIOError as held:
            raise StoreUnavailable(
                f"another broker is using the store {path}",
                hint="stop it; several brokers on one file need store.sole_broker = false in the settings of each",
            ) from held
        except OSError as problem:
            raise StoreUnavailable(
                f"the store {path} cannot be used: {problem.strerror}",
                hint="check the data folder's owner, mode and mount",
            ) from problem

    def release(self) -> None:
        """Let another broker have it."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _held(path: Path, how: int) -> int:
    """Return a descriptor that holds the lock `how` on `path` until it is closed. Raises BlockingIOError, OSError."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, how | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise
    return handle
