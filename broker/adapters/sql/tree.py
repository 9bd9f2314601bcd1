"""The ports Tree and Checkpoints on SQL."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from sqlalchemy import Connection, delete, select, update

from broker.adapters.sql.growing import caught_up, leaf_hashes_of, tile_of
from broker.adapters.sql.instants import instant, ms
from broker.adapters.sql.schema import checkpoints, head
from broker.adapters.sql.upserting import insert_into
from broker.errors import NotProven, StoreCorrupt
from broker.ledger.note import NoteSignature, merged, parse_note
from broker.service.tree_ports import CheckpointRecord, TreeHead

Transaction = Callable[[], AbstractContextManager[Connection]]

KEEP_CHECKPOINTS = 1_000


class SqlTree:
    """The Tree port: leaf hashes out of the ledger, the levels above out of their own table."""

    def __init__(self, reading: Transaction) -> None:
        self._reading = reading

    def head(self) -> TreeHead:
        """As the port says."""
        with self._reading() as connection:
            row = connection.execute(select(head).where(head.c.id == 0)).one()
            # A broker from before the tree may append, too; the next append of ours keeps what is caught up here.
            grown = caught_up(row.frontier, row.size, lambda start, stop: leaf_hashes_of(connection, start, stop))
        return TreeHead(row.incarnation, row.size, grown.frontier.root())

    def tile(self, level: int, index: int) -> Sequence[bytes]:
        """As the port says."""
        with self._reading() as connection:
            return tile_of(connection, level, index)


class SqlCheckpoints:
    """The Checkpoints port."""

    def __init__(self, reading: Transaction, writing: Transaction) -> None:
        self._reading = reading
        self._writing = writing

    def newest(self, *, settled: bool = False) -> CheckpointRecord | None:
        """As the port says."""
        query = select(checkpoints).order_by(checkpoints.c.size.desc()).limit(1)
        if settled:
            query = query.where(checkpoints.c.is_settled)
        with self._reading() as connection:
            row = connection.execute(query).first()
        return None if row is None else _record(row)

    def keep(self, record: CheckpointRecord) -> CheckpointRecord:
        """As the port says."""
        of_that_size = select(checkpoints).where(checkpoints.c.size == record.size)
        with self._writing() as connection:
            # Without a lock on the head: no append of another broker waits for this.
            statement = insert_into(connection, checkpoints).values(
                size=record.size, note=record.note, at_ms=ms(record.at), is_settled=record.is_settled
            )
            connection.execute(statement.on_conflict_do_nothing(index_elements=["size"]))
            kept = _record(connection.execute(of_that_size).one())
            oldest = (
                select(checkpoints.c.size).order_by(checkpoints.c.size.desc()).offset(KEEP_CHECKPOINTS).limit(1)
            ).scalar_subquery()
            connection.execute(delete(checkpoints).where(checkpoints.c.size <= oldest))
        return kept

    def settle(self, size: int, cosignatures: Sequence[NoteSignature]) -> None:
        """As the port says."""
        one = checkpoints.c.size == size
        with self._writing() as connection:
            kept = connection.execute(select(checkpoints.c.note).where(one).with_for_update()).scalar()
            if kept is None:
                return
            try:
                note = merged(parse_note(kept.encode()), cosignatures)
            except NotProven as bad:
                raise StoreCorrupt("a kept checkpoint cannot be read") from bad
            connection.execute(update(checkpoints).where(one).values(note=str(note), is_settled=True))


def _record(row: Any) -> CheckpointRecord:
    return CheckpointRecord(row.size, row.note, instant(row.at_ms), row.is_settled)
