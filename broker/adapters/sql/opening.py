"""Open a store: make or migrate it, and refuse a damaged one."""

import secrets
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, func, insert, or_, select, text

from broker.adapters.sql.bodies import RESTORE_HINT, archived_of, head_of, sound
from broker.adapters.sql.engine import SqliteFile, for_writing, make_engine, open_all
from broker.adapters.sql.failing import engine_errors
from broker.adapters.sql.growing import grow, must_have_grown_from
from broker.adapters.sql.headroom import Headroom
from broker.adapters.sql.migrating import migrate
from broker.adapters.sql.schema import head, ledger
from broker.adapters.sql.store import DEFAULT_HEADROOM_BYTES, SqlLedger
from broker.errors import Failure, StoreCorrupt
from broker.ledger.entry import Entry, Kind, encode_entry, leaf_hash
from broker.service.ports import Clock

# Counting every entry at each start would take long on a large ledger; the end is always looked at.
COUNT_UP_TO = 1_000_000
# Looking at them all would take longer still: at these at a start, at the others when they are read.
LOOK_AT_LAST = 5_000
# Migrating and looking at a large store may take as long.
OPENING_TIMEOUT_S = 600


def open_store(
    url: str,
    clock: Clock,
    *,
    headroom_bytes: int = DEFAULT_HEADROOM_BYTES,
    is_sole: bool = True,
    **options: Any,
) -> SqlLedger:
    """Open the store at `url`, making or migrating it; refuse a damaged one.

    `is_sole`: no other broker may use the same SQLite file meanwhile. `options` are those of SqlLedger.

    Raises:
        ConfigInvalid: Not a URL of a supported store.
        StoreUnavailable: It cannot be reached or written, or another broker holds it.
        StoreCorrupt: It is damaged; nothing was changed.
    """
    engine = make_engine(url)
    file, headroom = None, None
    if engine.dialect.name == "sqlite":
        path = Path(str(engine.url.database))
        file = SqliteFile(path, is_sole=is_sole)
        headroom = Headroom(path, headroom_bytes=headroom_bytes)
    opening = make_engine(url, answer_timeout_s=OPENING_TIMEOUT_S)
    try:
        with engine_errors(), for_writing(opening).begin() as connection:
            if connection.dialect.name == "postgresql":
                # Two brokers that start at once must not both migrate.
                connection.execute(text("SELECT pg_advisory_xact_lock(7443)"))
            migrate(connection)
            _create(connection, clock)
            _must_be_sound(connection)
            grow(connection)
            must_have_grown_from(connection, LOOK_AT_LAST)
        with engine_errors():
            open_all(engine)
    except Failure as failure:
        if file is not None:
            file.release()
        if isinstance(failure, StoreCorrupt):
            failure.hint = RESTORE_HINT
        raise
    finally:
        opening.dispose()
    return SqlLedger(engine, clock, file=file, is_sole=is_sole, headroom=headroom, **options)


def _create(connection: Connection, clock: Clock) -> None:
    if connection.execute(select(head.c.id)).first() is not None:
        return
    if connection.execute(select(ledger.c.idx).limit(1)).first() is not None:
        raise StoreCorrupt("the store has entries but no head", hint=RESTORE_HINT)
    incarnation = secrets.token_hex(16)
    entry = encode_entry(Entry(0, Kind.LEDGER_CREATED, clock.now(), "broker", {"incarnation": incarnation}))
    connection.execute(insert(ledger).values(idx=0, entry=entry, leaf_hash=leaf_hash(entry)))
    connection.execute(insert(head).values(id=0, incarnation=incarnation, size=1, policy_version=0))


def _must_be_sound(connection: Connection) -> None:
    if connection.dialect.name == "sqlite":
        verdict = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar_one()
        if verdict != "ok":
            raise StoreCorrupt("SQLite finds the store damaged", hint=RESTORE_HINT)
    # Refused by a standby, with which nothing could be done but reading.
    connection.execute(select(head.c.id).with_for_update())
    at = head_of(connection)
    last = connection.execute(select(func.max(ledger.c.idx))).scalar_one()
    if last is None or last + 1 != at.size:
        raise StoreCorrupt(f"the head says {at.size} entries, the last index is {last}", hint=RESTORE_HINT)
    if at.size <= COUNT_UP_TO and connection.execute(select(func.count()).select_from(ledger)).scalar_one() != at.size:
        raise StoreCorrupt("indices are missing in the ledger", hint=RESTORE_HINT)
    first = max(last - LOOK_AT_LAST + 1, archived_of(connection))
    for row in connection.execute(select(ledger).where(or_(ledger.c.idx == 0, ledger.c.idx >= first))):
        sound(row, row.idx)
