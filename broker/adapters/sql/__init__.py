"""The store: the ledger and the state that it implies, on SQLite or PostgreSQL."""

from broker.adapters.sql.store import SqlLedger, open_store

__all__ = ["SqlLedger", "open_store"]
