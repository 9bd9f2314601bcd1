"""A store as a stream of lines, whatever its engine, and such a stream as a store: what backups are made of."""

import base64
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, LargeBinary, Table, insert, inspect, select, text, update

from broker.adapters.sql.bodies import MOVED, sound
from broker.adapters.sql.engine import for_writing, make_engine, reading
from broker.adapters.sql.failing import engine_errors
from broker.adapters.sql.instants import ms
from broker.adapters.sql.migrating import migrate
from broker.adapters.sql.schema import approvals, checkpoints, counts, head, ledger, metadata, restorations, runs
from broker.domain.approval import Standing
from broker.errors import StoreCorrupt
from broker.service.backup_ports import BackupRefused

FORMAT = 1
# The ledger that a store says to be while a restore is not finished. No broker serves it.
RESTORING = "restoring"
ANSWER_TIMEOUT_S = 3600
_AT_ONCE = 1_000
# Denials are no part of the record, nor what brokers tell each other; checkpoints are of the ledger that was.
_LEFT_OUT = frozenset({"denials", "checkpoints", "drill_calls", "drill_parts", "cuts"})


def dump(url: str, at: datetime) -> Iterator[bytes]:
    """Yield the lines of a backup: one moment of the store, also while a broker writes to it.

    Raises:
        ConfigInvalid, StoreUnavailable: It cannot be read.
        StoreCorrupt: An entry is not what was written.
    """
    engine = make_engine(url, answer_timeout_s=ANSWER_TIMEOUT_S)
    digest = hashlib.sha256()
    try:
        with engine_errors(), reading(engine) as connection:
            for line in _lines(connection, at):
                data = json.dumps(line, separators=(",", ":")).encode("ascii") + b"\n"
                digest.update(data)
                yield data
        yield json.dumps({"end": digest.hexdigest()}).encode("ascii") + b"\n"
    finally:
        engine.dispose()


def said_of(line: bytes) -> tuple[str, int]:
    """Return which ledger a backup's first line names, and how many entries."""
    said = json.loads(line)
    return str(said["incarnation"]), int(said["size"])


def load(url: str, lines: Iterable[bytes]) -> None:
    """Make the store out of a backup's lines, in one transaction; it is nobody's ledger until `finish`.

    Raises:
        BackupRefused: It is no backup, or not whole; or the store is not empty. Nothing was changed.
        ConfigInvalid, StoreUnavailable: It cannot be written.
    """
    engine = make_engine(url, answer_timeout_s=ANSWER_TIMEOUT_S)
    try:
        with engine_errors(), for_writing(engine).begin() as connection:
            _must_be_empty(connection)
            _fill(connection, lines)
            connection.execute(update(head).values(incarnation=RESTORING))
    finally:
        engine.dispose()


def finish(url: str, incarnation: str, index: int, documents: Mapping[str, str], at: datetime) -> None:
    """Make what was loaded the ledger `incarnation`, restored `at`; `documents`: by realm, what its root says of it."""
    engine = make_engine(url, answer_timeout_s=ANSWER_TIMEOUT_S)
    try:
        with engine_errors(), for_writing(engine).begin() as connection:
            for realm, document in documents.items():
                connection.execute(insert(restorations).values(idx=index, realm=realm, document=document))
            _end_what_was_open(connection, ms(at))
            done = connection.execute(
                update(head).where(head.c.incarnation == RESTORING).values(incarnation=incarnation)
            ).rowcount
            if done != 1:
                raise StoreCorrupt("the store is not being restored")
    finally:
        engine.dispose()


def _end_what_was_open(connection: Connection, at_ms: int) -> None:
    """End approvals and runs: which of them were spent or revoked in what is lost nobody knows (B3, P4)."""
    connection.execute(
        update(approvals).where(approvals.c.ended.is_(None)).values(ended=Standing.VOID.value, ended_at_ms=at_ms)
    )
    connection.execute(update(runs).where(runs.c.is_closed.is_(False)).values(is_closed=True))
    # Their tokens are dead, as all are: they count no longer among the live ones.
    connection.execute(update(counts).where(counts.c.ends_at_ms > at_ms).values(ends_at_ms=at_ms))


def _tables() -> list[Table]:
    return [table for table in metadata.sorted_tables if table.name not in _LEFT_OUT]


def _lines(connection: Connection, at: datetime) -> Iterator[object]:
    revision = connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one()
    row = connection.execute(select(head).where(head.c.id == 0)).one()
    if row.incarnation == RESTORING:
        raise BackupRefused("the store is being restored itself", hint="finish that: broker restore")
    yield {
        "backup": FORMAT,
        "revision": revision,
        "incarnation": row.incarnation,
        "size": row.size,
        "at_ms": ms(at),
    }
    for table in _tables():
        columns = list(table.columns)
        yield {"table": table.name, "columns": [column.name for column in columns]}
        is_binary = [isinstance(column.type, LargeBinary) for column in columns]
        query = select(*columns).order_by(*table.primary_key.columns)
        with connection.execution_options(yield_per=_AT_ONCE).execute(query) as rows:
            for found in rows:
                if table is ledger and not (bytes(found.entry) == MOVED and 0 < found.idx < row.archived):
                    sound(found, found.idx)
                yield [
                    base64.b64encode(bytes(value)).decode("ascii") if binary and value is not None else value
                    for value, binary in zip(found, is_binary, strict=True)
                ]


def _must_be_empty(connection: Connection) -> None:
    there = set(inspect(connection).get_table_names())
    if not there:
        return
    if "head" in there:
        found = connection.execute(select(head.c.incarnation, head.c.size)).first()
        if found is not None and found.incarnation == RESTORING:
            # A restore that was killed: nobody was ever served from it.
            metadata.drop_all(connection)
            connection.execute(text("DROP TABLE IF EXISTS alembic_version"))
            return
        size = 0 if found is None else found.size
        raise BackupRefused(
            f"the store has a ledger of {size} entries already",
            hint="move it away first, and keep it",
        )
    raise BackupRefused("the store is not empty", hint="name an empty database")


def _fill(connection: Connection, lines: Iterable[bytes]) -> None:
    digest = hashlib.sha256()
    said: Any = None
    table: Table | None = None
    columns: list[str] = []
    waiting: list[dict[str, Any]] = []
    tables = {one.name: one for one in metadata.sorted_tables}

    def put() -> None:
        if table is not None and waiting:
            connection.execute(insert(table), waiting)
            waiting.clear()

    for number, data in enumerate(lines):
        line = _parsed(data, number)
        match line:
            case {"backup": _} if number == 0:
                _must_be_readable(line)
                said = line
                migrate(connection, line["revision"])
            case {"table": str(name), "columns": list(names)} if said is not None and name in tables:
                put()
                table, columns = tables[name], names
            case {"end": str(end)} if said is not None:
                if end != digest.hexdigest():
                    raise BackupRefused("the backup is damaged")
                put()
                _must_be_what_it_says(connection, said)
                migrate(connection, "head")
                return
            case list() if table is not None and len(line) == len(columns):
                waiting.append(_row(table, columns, line, number))
            case _:
                raise _no_line(number)
        digest.update(data)
        if len(waiting) >= _AT_ONCE:
            put()
    raise BackupRefused("the backup is not whole: its end is missing")


def _parsed(data: bytes, number: int) -> Any:
    try:
        return json.loads(data)
    except ValueError as bad:
        raise _no_line(number) from bad


def _no_line(number: int) -> BackupRefused:
    return BackupRefused(f"line {number + 1} is none of a backup")


def _must_be_readable(line: Mapping[str, Any]) -> None:
    if line["backup"] != FORMAT or not isinstance(line.get("revision"), str):
        raise BackupRefused("the backup is of another version", hint="restore it with the version that made it")


def _row(table: Table, columns: list[str], values: list[Any], number: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in zip(columns, values, strict=True):
        column = table.columns.get(name)
        if column is None:
            raise _no_line(number)
        is_binary = isinstance(column.type, LargeBinary) and value is not None
        found[name] = base64.b64decode(value, validate=True) if is_binary else value
    return found


def _must_be_what_it_says(connection: Connection, said: Mapping[str, Any]) -> None:
    row = connection.execute(select(head).where(head.c.id == 0)).first()
    if row is None or (row.incarnation, row.size) != (said["incarnation"], said["size"]):
        raise BackupRefused("the backup holds another ledger than it says")
    connection.execute(checkpoints.delete())
