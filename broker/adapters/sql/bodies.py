"""The exact bytes of entries: out of the ledger's rows, or out of the archive where they were moved there."""

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Connection, select

from broker.adapters.entry_archive import EntryArchive, gone
from broker.adapters.sql.schema import head, ledger
from broker.errors import StoreCorrupt
from broker.ledger.entry import decode_entry, leaf_hash
from broker.ledger.tiles import TILE_WIDTH
from broker.service.ports import Head

RESTORE_HINT = "stop the broker, keep the damaged files, and make it anew from a backup: broker restore --help"
# What stands in the place of a body that was moved. No entry is empty.
MOVED = b""


class Bodies:
    """Reads entries within somebody's transaction."""

    def __init__(self, archive: EntryArchive | None) -> None:
        self._archive = archive

    def between(self, connection: Connection, start: int, stop: int) -> Sequence[bytes]:
        """Return the entries that there are from `start` to before `stop`.

        Raises:
            StoreCorrupt: One is missing, or is not what was written.
            ArchiveUnavailable: One was moved, and cannot be had from there.
        """
        query = select(ledger).where(ledger.c.idx >= start, ledger.c.idx < stop).order_by(ledger.c.idx)
        rows = connection.execute(query).all()
        moved = self._moved(connection, (row for row in rows if bytes(row.entry) == MOVED))
        return [
            moved[index] if index in moved and row.idx == index else sound(row, index)
            for index, row in enumerate(rows, max(start, 0))
        ]

    def at(self, connection: Connection, rows: Sequence[Any]) -> dict[int, bytes]:
        """Return by index the entries of some rows of the ledger. Raises as `between`, but does not look at hashes."""
        moved = self._moved(connection, (row for row in rows if bytes(row.entry) == MOVED))
        return {row.idx: moved.get(row.idx) or bytes(row.entry) for row in rows}

    def _moved(self, connection: Connection, rows: Iterable[Any]) -> dict[int, bytes]:
        wanted = {row.idx for row in rows}
        if not wanted:
            return {}
        archived = archived_of(connection)
        for index in wanted:
            if index >= archived:
                raise not_what_was_written(index)
        found: dict[int, bytes] = {}
        for bundle in sorted({index // TILE_WIDTH for index in wanted}):
            start = bundle * TILE_WIDTH
            if self._archive is None:
                raise gone(start, "ledger.archive in the broker's configuration names none")
            hashes = connection.execute(
                select(ledger.c.leaf_hash)
                .where(ledger.c.idx >= start, ledger.c.idx < start + TILE_WIDTH)
                .order_by(ledger.c.idx)
            ).scalars()
            entries = self._archive.read(bundle, [bytes(hashed) for hashed in hashes])
            found.update((index, entry) for index, entry in enumerate(entries, start) if index in wanted)
        return found


def head_of(connection: Connection) -> Head:
    """Return the ledger's head. Raises StoreCorrupt: there is none."""
    row = connection.execute(select(head).where(head.c.id == 0)).first()
    if row is None:
        raise StoreCorrupt("the store has no head", hint=RESTORE_HINT)
    return Head(row.incarnation, row.size, row.policy_version)


def archived_of(connection: Connection) -> int:
    """Return below which index bodies are in the archive; that of entry 0 always stays."""
    archived: int = connection.execute(select(head.c.archived)).scalar_one()
    return archived


def sound(row: Any, index: int) -> bytes:
    """Return the bytes of the entry at `index`. Raises StoreCorrupt unless they are the ones that were written."""
    data = bytes(row.entry)
    if leaf_hash(data) != bytes(row.leaf_hash) or decode_entry(data).index != index:
        raise not_what_was_written(index)
    return data


def not_what_was_written(index: int) -> StoreCorrupt:
    """Return the failure of a body that is missing or another one."""
    return StoreCorrupt(f"ledger entry {index} is not what was written", hint=RESTORE_HINT)
