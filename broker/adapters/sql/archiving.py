"""Move bodies of old entries out of a store, into the archive; hashes, proofs and the state stay."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Engine, func, select, update

from broker.adapters.entry_archive import EntryArchive
from broker.adapters.sql.bodies import MOVED, sound
from broker.adapters.sql.engine import for_writing, make_engine, reading
from broker.adapters.sql.failing import engine_errors
from broker.adapters.sql.schema import checkpoints, head, ledger
from broker.errors import StoreUnavailable
from broker.ledger.entry import decode_entry
from broker.ledger.tiles import TILE_WIDTH

ANSWER_TIMEOUT_S = 600
# Of one transaction: a broker that appends meanwhile waits no longer than that takes.
AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class Moved:
    """Which entries' bodies were moved now: from `start` to before `stop`."""

    incarnation: str
    start: int
    stop: int


def move_bodies(url: str, archive: EntryArchive, *, before: datetime, keep_last: int) -> Moved:
    """Move the bodies of the oldest entries: those written before `before`, covered by a checkpoint, not the last ones.

    Whole bundles of 256 only. What was killed is gone on with; brokers may serve meanwhile. `keep_last`: how many
    entries at the end are never moved.

    Raises:
        ConfigInvalid, StoreUnavailable: The store cannot be read or written.
        StoreCorrupt: An entry is not what was written; up to there they are moved.
        ArchiveUnavailable: It cannot be written; up to there they are moved.
    """
    engine = make_engine(url, answer_timeout_s=ANSWER_TIMEOUT_S)
    try:
        with engine_errors():
            with reading(engine) as connection:
                at = connection.execute(select(head).where(head.c.id == 0)).one()
                covered = connection.execute(select(func.max(checkpoints.c.size))).scalar() or 0
            start, most = at.archived, min(covered, at.size - keep_last)
            stop = start
            waiting = 0
            for bundle in _bundles(engine, start, most, before):
                first = bundle[0][0]
                archive.put(at.incarnation, first // TILE_WIDTH, [data for _, data in bundle])
                waiting += 1
                if waiting == AT_ONCE:
                    stop = _forget(engine, at.incarnation, stop, waiting)
                    waiting = 0
            stop = _forget(engine, at.incarnation, stop, waiting)
        return Moved(at.incarnation, start, stop)
    finally:
        engine.dispose()


def _bundles(engine: Engine, start: int, most: int, before: datetime) -> Iterator[list[tuple[int, bytes]]]:
    for first in range(start, most - TILE_WIDTH + 1, TILE_WIDTH):
        query = select(ledger).where(ledger.c.idx >= first, ledger.c.idx < first + TILE_WIDTH).order_by(ledger.c.idx)
        with reading(engine) as connection:
            found = [(row.idx, sound(row, index)) for index, row in enumerate(connection.execute(query), first)]
        # A clock that was set back leaves older ones behind younger ones.
        if any(decode_entry(data).at >= before for _, data in found):
            return
        yield found


def _forget(engine: Engine, incarnation: str, start: int, bundles: int) -> int:
    """Let the store forget bodies that the archive has; return where what it still has begins."""
    if not bundles:
        return start
    stop = start + bundles * TILE_WIDTH
    with for_writing(engine).begin() as connection:
        _move_mark(connection, incarnation, start, stop)
        # The first entry says which ledger this is, also without an archive.
        _write(connection, update(ledger).where(ledger.c.idx >= max(start, 1), ledger.c.idx < stop).values(entry=MOVED))
    return stop


def _move_mark(connection: Connection, incarnation: str, start: int, stop: int) -> None:
    is_ours = (head.c.id == 0, head.c.incarnation == incarnation, head.c.archived == start)
    if _write(connection, update(head).where(*is_ours).values(archived=stop)) != 1:
        raise StoreUnavailable("somebody else archives this store now", hint="let that end first")


def _write(connection: Connection, statement: Any) -> int:
    return int(connection.execute(statement).rowcount)
