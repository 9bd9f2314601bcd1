"""The statements of every append, given to the drivers directly: the engine's own layer costs more than the fsync.

Nothing here decides; the writer calls these in order, inside its transaction, on one cursor.
"""

import json
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from broker.adapters.sql.growing import NodeRow

KnownRequest = tuple[str, str, bytes, int, int]
"""Principal, request id, digest, first index, number of entries."""

EntryRow = tuple[int, bytes, bytes]
"""Index, entry, leaf hash."""

HeadRow = tuple[int, int, bytes | None]
"""Size, policy version, packed frontier."""

RequestRow = tuple[str, str, bytes, int, int, int]
"""Principal, request id, digest, first index, number of entries, milliseconds."""


class Statements(Protocol):
    """What an append says to one kind of engine."""

    def lock_head(self, cursor: Any) -> HeadRow | None:
        """Return what the head row says, and keep every other writer out until the transaction ends."""

    def leaf_hashes(self, cursor: Any, start: int, stop: int) -> list[bytes]:
        """Return the leaf hashes of these entries, in their order."""

    def known(self, cursor: Any, keys: Sequence[tuple[str, str]]) -> Iterable[KnownRequest]:
        """Return those of the request ids that came before, in one query."""

    def add_entries(self, cursor: Any, rows: Sequence[EntryRow]) -> None:
        """Insert into the ledger."""

    def add_requests(self, cursor: Any, rows: Sequence[RequestRow]) -> None:
        """Remember request ids."""

    def add_nodes(self, cursor: Any, rows: Sequence[NodeRow]) -> None:
        """Insert into the tree."""

    def move_head(self, cursor: Any, size: int, policy_version: int, frontier: bytes) -> None:
        """Set what `lock_head` returns next."""

    def notify(self, cursor: Any) -> None:
        """Tell the other brokers, after the commit, that verifiers must learn of it."""


class SqliteStatements:
    """For SQLite, whose BEGIN IMMEDIATE has locked the head already."""

    def lock_head(self, cursor: Any) -> HeadRow | None:
        """As the protocol says."""
        row: HeadRow | None = cursor.execute("SELECT size, policy_version, frontier FROM head WHERE id = 0").fetchone()
        return row

    def leaf_hashes(self, cursor: Any, start: int, stop: int) -> list[bytes]:
        """As the protocol says."""
        query = "SELECT leaf_hash FROM ledger WHERE idx >= ? AND idx < ? ORDER BY idx"
        return [bytes(found) for (found,) in cursor.execute(query, (start, stop)).fetchall()]

    def known(self, cursor: Any, keys: Sequence[tuple[str, str]]) -> Iterable[KnownRequest]:
        """As the protocol says."""
        # CROSS JOIN keeps SQLite's planner from walking the whole table: few keys outside, one seek each inside.
        found: list[KnownRequest] = cursor.execute(
            "SELECT r.principal, r.request_id, r.digest, r.first_idx, r.entries FROM json_each(?) AS k "
            "CROSS JOIN requests AS r ON r.principal = json_extract(k.value, '$[0]') "
            "AND r.request_id = json_extract(k.value, '$[1]')",
            (json.dumps(keys),),
        ).fetchall()
        return found

    def add_entries(self, cursor: Any, rows: Sequence[EntryRow]) -> None:
        """As the protocol says."""
        cursor.executemany("INSERT INTO ledger (idx, entry, leaf_hash) VALUES (?, ?, ?)", rows)

    def add_requests(self, cursor: Any, rows: Sequence[RequestRow]) -> None:
        """As the protocol says."""
        cursor.executemany(
            "INSERT INTO requests (principal, request_id, digest, first_idx, entries, at_ms) VALUES (?, ?, ?, ?, ?, ?)",
            rows,
        )

    def add_nodes(self, cursor: Any, rows: Sequence[NodeRow]) -> None:
        """As the protocol says."""
        cursor.executemany("INSERT INTO tree (level, idx, hash) VALUES (?, ?, ?)", rows)

    def move_head(self, cursor: Any, size: int, policy_version: int, frontier: bytes) -> None:
        """As the protocol says."""
        cursor.execute(
            "UPDATE head SET size = ?, policy_version = ?, frontier = ? WHERE id = 0", (size, policy_version, frontier)
        )

    def notify(self, cursor: Any) -> None:
        """As the protocol says: nobody listens. Several brokers on one file poll."""


class PostgresStatements:
    """For PostgreSQL through psycopg. Rows go by COPY: a fifth of what an INSERT for each costs."""

    def lock_head(self, cursor: Any) -> HeadRow | None:
        """As the protocol says."""
        cursor.execute("SELECT size, policy_version, frontier FROM head WHERE id = 0 FOR UPDATE")
        row: HeadRow | None = cursor.fetchone()
        return row

    def leaf_hashes(self, cursor: Any, start: int, stop: int) -> list[bytes]:
        """As the protocol says."""
        cursor.execute("SELECT leaf_hash FROM ledger WHERE idx >= %s AND idx < %s ORDER BY idx", (start, stop))
        return [bytes(found) for (found,) in cursor.fetchall()]

    def known(self, cursor: Any, keys: Sequence[tuple[str, str]]) -> Iterable[KnownRequest]:
        """As the protocol says."""
        cursor.execute(
            "SELECT r.principal, r.request_id, r.digest, r.first_idx, r.entries FROM requests AS r "
            "JOIN unnest(%s::text[], %s::text[]) AS k (principal, request_id) USING (principal, request_id)",
            ([principal for principal, _ in keys], [request_id for _, request_id in keys]),
        )
        found: list[KnownRequest] = cursor.fetchall()
        return found

    def add_entries(self, cursor: Any, rows: Sequence[EntryRow]) -> None:
        """As the protocol says."""
        with cursor.copy("COPY ledger (idx, entry, leaf_hash) FROM STDIN (FORMAT BINARY)") as copy:
            copy.set_types(("int8", "bytea", "bytea"))
            for row in rows:
                copy.write_row(row)

    def add_requests(self, cursor: Any, rows: Sequence[RequestRow]) -> None:
        """As the protocol says."""
        with cursor.copy(
            "COPY requests (principal, request_id, digest, first_idx, entries, at_ms) FROM STDIN (FORMAT BINARY)"
        ) as copy:
            copy.set_types(("text", "text", "bytea", "int8", "int4", "int8"))
            for row in rows:
                copy.write_row(row)

    def add_nodes(self, cursor: Any, rows: Sequence[NodeRow]) -> None:
        """As the protocol says."""
        cursor.executemany("INSERT INTO tree (level, idx, hash) VALUES (%s, %s, %s)", rows)

    def move_head(self, cursor: Any, size: int, policy_version: int, frontier: bytes) -> None:
        """As the protocol says."""
        cursor.execute(
            "UPDATE head SET size = %s, policy_version = %s, frontier = %s WHERE id = 0",
            (size, policy_version, frontier),
        )

    def notify(self, cursor: Any) -> None:
        """As the protocol says."""
        cursor.execute("NOTIFY broker_changed")


def statements_for(dialect: str) -> Statements:
    """Return the statements for SQLAlchemy's name of an engine."""
    return PostgresStatements() if dialect == "postgresql" else SqliteStatements()
