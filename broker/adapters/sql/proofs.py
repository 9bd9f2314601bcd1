"""The Proofs port on SQL."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Select, func, select

from broker.adapters.sql.proving import unpacked
from broker.adapters.sql.schema import IS_MINTED, completions, drill_schedules, drills, head, ledger
from broker.ledger.entry import decode_entry
from broker.service.proof_ports import CompletionRecord, DrillRecord

Reading = Callable[[], AbstractContextManager[Connection]]

# One transaction reads so many entries: it holds up nobody, and a reader can stop after any.
SLICE = 5_000
# Several brokers' clocks may part by a minute, and so entries' instants are not quite in order.
NEARLY = timedelta(minutes=2)


class SqlProofs:
    """Reads what `Completed`, `DrillRecorded` and mints wrote."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading

    def completion(self, revocation: int) -> CompletionRecord | None:
        """As the port says."""
        with self._reading() as connection:
            row = connection.execute(select(completions).where(completions.c.revocation == revocation)).first()
        return None if row is None else _completion(row)

    def awaited(self) -> Sequence[CompletionRecord]:
        """As the port says."""
        query = select(completions).where(completions.c.entry_idx.is_(None)).order_by(completions.c.revocation)
        with self._reading() as connection:
            return [_completion(row) for row in connection.execute(query)]

    def drills(self, realm: str | None, limit: int) -> Sequence[DrillRecord]:
        """As the port says."""
        query = select(drills).order_by(drills.c.idx.desc()).limit(limit)
        if realm is not None:
            query = query.where(drills.c.realm == realm)
        with self._reading() as connection:
            return [DrillRecord(row.idx, row.realm, unpacked(row.document)) for row in connection.execute(query)]

    def drill_schedules(self) -> Sequence[tuple[str, int]]:
        """As the port says."""
        with self._reading() as connection:
            return [
                (row.realm, row.every_s)
                for row in connection.execute(select(drill_schedules).order_by(drill_schedules.c.realm))
            ]

    def minted(self, containing: Sequence[bytes], *, since: datetime) -> Iterator[bytes]:
        """As the port says."""
        with self._reading() as connection:
            at = connection.execute(select(head.c.size, head.c.archived)).one()
            size: int = at.size
            # What is archived is older than any token can be.
            start = _first_since(connection, since - NEARLY, at.archived, size)
        while start < size:
            with self._reading() as connection:
                minted = _minted(ledger.c.idx, connection, start)
                last = connection.execute(select(func.max(minted.limit(SLICE).subquery().c.idx))).scalar_one()
                if last is None:
                    return
                # Judged where the entries are, so that those of others never come here.
                query = _minted(ledger.c.entry, connection, start).where(ledger.c.idx <= last)
                query = query.where(*(_contains(connection, text) for text in containing))
                found = [bytes(entry) for entry in connection.execute(query).scalars()]
            yield from found
            start = last + 1


def _minted(column: Any, connection: Connection, start: int) -> Select[Any]:
    dialect = connection.dialect.name
    query = select(column).where(ledger.c.idx >= start, IS_MINTED[dialect]).order_by(ledger.c.idx)
    # Left to itself, SQLite walks the whole table, whose order is the same.
    return query.with_hint(ledger, "INDEXED BY ledger_minted", "sqlite")


def _contains(connection: Connection, text: bytes) -> Any:
    if connection.dialect.name == "postgresql":
        # Not `position`: its argument order is SQL's own syntax.
        escaped = text.decode("ascii").replace("\\", "\\\\")
        return func.strpos(func.encode(ledger.c.entry, "escape"), escaped) > 0
    return func.instr(ledger.c.entry, text) > 0


def _first_since(connection: Connection, since: datetime, archived: int, size: int) -> int:
    """Return the first index from `archived` on whose entry was written at or after `since`."""
    low, high = archived, size
    while low < high:
        middle = (low + high) // 2
        entry = connection.execute(select(ledger.c.entry).where(ledger.c.idx == middle)).scalar_one()
        if decode_entry(bytes(entry)).at < since:
            low = middle + 1
        else:
            high = middle
    return low


def _completion(row: Any) -> CompletionRecord:
    return CompletionRecord(
        row.revocation,
        row.first_idx,
        tuple(json.loads(row.realms)),
        row.lease_ms,
        row.entry_idx,
        None if row.document is None else unpacked(bytes(row.document)),
    )
