"""The store: the ledger and the state that it implies, on SQLite or PostgreSQL."""

from broker.adapters.sql.opening import open_store
from broker.adapters.sql.store import SqlLedger

__all__ = ["SqlLedger", "open_store"]
