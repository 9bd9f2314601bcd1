"""Engines: how SQLite and PostgreSQL are opened so that what is committed is durable."""

import fcntl
import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url

from broker.errors import ConfigInvalid, StoreUnavailable

# A waiting writer gives up before its caller's deadline does.
LOCK_TIMEOUT_S = 5


def make_engine(url: str | URL) -> Engine:
    """Return an engine for `sqlite:///FILE` or `postgresql://…`. Connects lazily.

    Raises:
        ConfigInvalid: Another kind of URL.
    """
    parsed = make_url(url)
    match parsed.get_backend_name():
        case "sqlite" if parsed.database:
            return _sqlite(parsed)
        case "postgresql":
            return _postgresql(parsed)
    raise ConfigInvalid("store.url", (f"{parsed.get_backend_name()} is not supported; use sqlite or postgresql",))


def writing(engine: Engine) -> AbstractContextManager[Connection]:
    """Begin a transaction that will write."""
    return engine.execution_options(broker_writes=True).begin()


def reading(engine: Engine) -> AbstractContextManager[Connection]:
    """Begin a transaction that sees one moment and writes nothing."""
    if engine.dialect.name == "postgresql":
        return engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True).begin()
    return engine.begin()


def _sqlite(url: URL) -> Engine:
    engine = create_engine(url, connect_args={"timeout": LOCK_TIMEOUT_S, "check_same_thread": False}, pool_size=8)

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _record: Any) -> None:
        # The driver must not begin transactions by itself: it begins them late and without the lock.
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode = WAL")
        # NORMAL lost acknowledged rows in a power cut; FULL syncs the log at each commit (P11).
        cursor.execute("PRAGMA synchronous = FULL")
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.execute("PRAGMA cache_size = -32768")
        cursor.close()

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # IMMEDIATE: the lock is taken before the head is read, so no other writer can move it.
        writes = connection.get_execution_options().get("broker_writes")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _postgresql(url: URL) -> Engine:
    return create_engine(
        url.set(drivername="postgresql+psycopg"),
        pool_size=8,
        pool_pre_ping=True,
        connect_args={
            "connect_timeout": 5,
            "options": (
                f"-c lock_timeout={LOCK_TIMEOUT_S * 1000} -c statement_timeout=30000 "
                "-c idle_in_transaction_session_timeout=30000 -c synchronous_commit=on"
            ),
            "keepalives_idle": 5,
            "keepalives_interval": 2,
            "keepalives_count": 3,
        },
    )


class DataFolder:
    """A data folder held by one process, for as long as this object lives.

    Raises:
        StoreUnavailable: It cannot be made or written, or another broker holds it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(path / "broker.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as problem:
            raise StoreUnavailable(
                f"the data folder {path} cannot be used: {problem.strerror}",
                hint="make it writable for the broker's user, or choose another with --data",
            ) from problem
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as held:
            os.close(self._lock)
            raise StoreUnavailable(
                f"another broker is using the data folder {path}",
                hint="stop it, choose another folder, or use PostgreSQL for several brokers",
            ) from held

    def release(self) -> None:
        """Let another process have it."""
        os.close(self._lock)
