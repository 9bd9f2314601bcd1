"""An insert that gives way to a row that is there, as both engines spell it."""

from typing import Any

from sqlalchemy import Connection, Table
from sqlalchemy.dialects import postgresql, sqlite


def insert_into(connection: Connection, table: Table) -> Any:
    """Return an insert with `on_conflict_do_update` and `on_conflict_do_nothing`, which the common one lacks."""
    return (postgresql if connection.dialect.name == "postgresql" else sqlite).insert(table)
