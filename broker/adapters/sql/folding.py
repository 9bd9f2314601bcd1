"""Folding SQLite's write-ahead log into its file, where a sync that fails is noticed."""

from contextlib import closing

from sqlalchemy import Engine

from broker.adapters.sql.failing import engine_errors

# About as many pages as SQLite would let gather by itself. A group changes some pages whatever its size.
PAGES_AT_ONCE = 1000
PAGES_OF_A_GROUP = 8


class LogFolding:
    """Does what `wal_autocheckpoint` would, which swallows every error: also that of the sync. One thread owns it."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._pages = 0

    def after(self, drafts: int) -> None:
        """Count a committed group; fold once the log is long. Raises the store's failures, as `fold` does."""
        self._pages += PAGES_OF_A_GROUP + drafts
        if self._pages >= PAGES_AT_ONCE:
            self._pages = 0
            fold(self._engine)


def fold(engine: Engine) -> None:
    """Copy the log into the file, as far as no reader needs it, and sync it; it waits for nobody.

    Raises:
        StoreFull: There is no space; the log stays.
        StoreUnavailable: The disk failed, and nobody knows what is on it.
    """
    if engine.dialect.name != "sqlite":
        return
    with engine_errors(), closing(engine.raw_connection()) as connection, closing(connection.cursor()) as cursor:
        cursor.execute("PRAGMA wal_checkpoint(PASSIVE)")
        cursor.fetchall()
