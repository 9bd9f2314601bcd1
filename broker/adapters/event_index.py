"""The port EventIndex in a SQLite file of its own, beside the store, which can be deleted at any time."""

import hashlib
import sqlite3
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import astuple, replace
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

from broker.audit.events import ACCEPTED, AccessPath, Event, facet, models_of
from broker.errors import StoreUnavailable
from broker.service.ports import Head
from broker.service.question_ports import Reached, Ref, Refs, Times, Wanted

# An answer comes within a second: looking takes half of it at most.
BUDGET_S = 0.5
_BLOCK = 4_000
_PROBE = 20_000
_NEWEST = 1_000
# Clocks are set back, by less than that.
_CLOCK_SET_BACK_MS = 86_400_000
# The clock of a verifier is ahead of ours, by less than that.
_AHEAD_MS = 3_600_000
_FORM = 2
_PRIMARY = 0xFF
_AGAIN = "ask again in a while: it is made anew out of the ledger"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS about (form INTEGER, incarnation TEXT, size INTEGER);
CREATE TABLE IF NOT EXISTS events (idx INTEGER, line INTEGER, at_ms INTEGER, latest_ms INTEGER, head INTEGER,
  PRIMARY KEY (idx, line)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS facets (word INTEGER, idx INTEGER, line INTEGER,
  PRIMARY KEY (word, idx, line)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS reached (realm TEXT, partner TEXT, model TEXT, user TEXT, workload TEXT, grant_id TEXT,
  environment TEXT, minted INTEGER, minted_ms INTEGER, minted_idx INTEGER, used INTEGER, used_ms INTEGER,
  used_idx INTEGER,
  PRIMARY KEY (realm, partner, model, user, workload, grant_id, environment)) WITHOUT ROWID;
"""
# The newest of two, by its time: what a verifier signed can arrive late.
_REACHED = """
INSERT INTO reached VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT DO UPDATE SET
  minted = minted + excluded.minted, used = used + excluded.used,
  minted_idx = iif(excluded.minted_ms >= minted_ms, excluded.minted_idx, minted_idx),
  minted_ms = max(minted_ms, excluded.minted_ms),
  used_idx = iif(excluded.used_ms >= used_ms, excluded.used_idx, used_idx),
  used_ms = max(used_ms, excluded.used_ms)
"""


class SqliteEventIndex:
    """The EventIndex port. What is in the file of another ledger, or cannot be read, is thrown away.

    Opened when it is first needed: a disk that does not let it be made keeps no broker from serving.
    """

    def __init__(self, path: Path | None, head: Head) -> None:
        """Keep it at `path`, or where it goes away with this process, for the ledger with this head."""
        self._place = path
        self._head = head
        # One of them is held for as long as its connection is used.
        self._write_lock, self._read_lock = threading.Lock(), threading.Lock()
        self._opening = threading.Lock()
        self._opened: tuple[sqlite3.Connection, sqlite3.Connection] | None = None
        self._latest_ms = 0

    def _connections(self) -> tuple[sqlite3.Connection, sqlite3.Connection]:
        """Return the one that writes and the one that reads."""
        with self._opening:
            if self._opened is None and self._place is not None:
                self._opened = self._open(self._place)
            elif self._opened is None:
                # What is open needs no name, and a process that is killed leaves nothing.
                with TemporaryDirectory(prefix="broker-events-") as folder:
                    self._opened = self._open(Path(folder) / "events.db")
            return self._opened

    def _open(self, path: Path) -> tuple[sqlite3.Connection, sqlite3.Connection]:
        if not self._is_usable(path):
            _unlink(path)
        writing = _connected(path)
        writing.executescript(_SCHEMA)
        writing.execute(
            "INSERT INTO about SELECT ?, ?, 0 WHERE NOT EXISTS (SELECT 1 FROM about)", (_FORM, self._head.incarnation)
        )
        [(latest,)] = writing.execute(
            "SELECT coalesce((SELECT latest_ms FROM events ORDER BY idx DESC, line DESC LIMIT 1), 0)"
        )
        self._latest_ms = int(latest)
        reading = _connected(path)
        # All its files are open from here on.
        reading.execute("SELECT size FROM about").fetchone()
        return writing, reading

    def _is_usable(self, path: Path) -> bool:
        """Tell whether there is nothing yet, or the index of this ledger in this form."""
        try:
            connection = _connected(path)
            try:
                connection.executescript(_SCHEMA)
                row = connection.execute("SELECT form, incarnation, size FROM about").fetchone()
            finally:
                connection.close()
        except sqlite3.DatabaseError:
            return False
        return row is None or (row[:2] == (_FORM, self._head.incarnation) and row[2] <= self._head.size)

    def close(self) -> None:
        """Close the file."""
        with self._write_lock, self._read_lock, self._opening:
            for connection in self._opened or ():
                connection.close()
            self._opened = None

    def size(self) -> int:
        """As the port says."""
        with self._read() as connection:
            return int(connection.execute("SELECT size FROM about").fetchone()[0])

    def add(self, events: Sequence[Event], size: int) -> None:
        """As the port says."""
        rows, words, latest = [], [], self._latest_ms
        for event in events:
            latest = max(latest, event.at_ms) if event.line == 0 else latest
            rows.append((event.index, event.line, event.at_ms, latest, event.head))
            words += [(_word(one), event.index, event.line) for one in event.facets]
        # In the order of the table, so that each of its pages is touched once.
        words.sort()
        with self._write_lock, self._errors():
            writing, _ = self._connections()
            writing.execute("BEGIN IMMEDIATE")
            try:
                [(covered,)] = writing.execute("SELECT size FROM about")
                writing.executemany("INSERT OR REPLACE INTO events VALUES (?, ?, ?, ?, ?)", rows)
                writing.executemany("INSERT OR REPLACE INTO facets VALUES (?, ?, ?)", words)
                # What is written again is the same; what is counted again is not.
                writing.executemany(_REACHED, _reached(one for one in events if one.index >= covered))
                writing.execute("UPDATE about SET size = ?", (size,))
                writing.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):
                    writing.execute("ROLLBACK")
                raise
            self._latest_ms = latest

    def find(self, wanted: Wanted, after: Ref | None, limit: int) -> Refs:
        """As the port says."""
        until = time.monotonic() + BUDGET_S
        found: list[Ref] = []
        at: Ref = (-1, -1) if after is None else after
        with self._read() as connection:
            if wanted.from_ms is not None:
                at = max(at, (_first_at(connection, wanted.from_ms - _AHEAD_MS) - 1, 1 << 31))
            words = _rarest_first(connection, wanted.facets, at)
            while True:
                end = _end_of_block(connection, words, at)
                rows = connection.execute(*_matching(words, wanted, at, end, limit - len(found))).fetchall()
                found += [(row[0], row[1]) for row in rows]
                if len(found) >= limit:
                    return Refs(found, found[-1])
                if end is None or (wanted.until_ms is not None and _is_past(connection, end, wanted.until_ms)):
                    return Refs(found, None)
                at = end
                if time.monotonic() > until:
                    return Refs(found, at)

    def last(self, facets: Collection[str], before: int) -> int | None:
        """As the port says."""
        [first, *others] = [_word(one) for one in facets]
        also = "".join(f" AND {_HAS}" for _ in others)
        with self._read() as connection:
            row = connection.execute(
                f"SELECT idx FROM facets f WHERE word = ? AND idx < ?{also} ORDER BY idx DESC LIMIT 1",  # noqa: S608 - our own words
                (first, before, *others),
            ).fetchone()
        return None if row is None else int(row[0])

    def highest_head(self, facets: Collection[str]) -> int | None:
        """As the port says."""
        [first, *others] = [_word(one) for one in facets]
        also = "".join(f" AND {_HAS}" for _ in others)
        query = (
            "SELECT max(head) FROM (SELECT e.head FROM facets f JOIN events e ON e.idx = f.idx AND e.line = f.line "  # noqa: S608 - our own words
            f"WHERE f.word = ?{also} ORDER BY f.idx DESC LIMIT {_NEWEST})"
        )
        with self._read() as connection:
            [(head,)] = connection.execute(query, (first, *others))
        return None if head is None or head < 0 else int(head)

    def reached(self, realm: str | None, partner: str | None, model: str | None, limit: int) -> Sequence[Reached]:
        """As the port says."""
        named = [(name, one) for name, one in (("realm", realm), ("partner", partner), ("model", model)) if one]
        where = " AND ".join(f"{name} = ?" for name, _ in named) or "1"
        with self._read() as connection:
            rows = connection.execute(
                f"SELECT * FROM reached WHERE {where} ORDER BY realm, partner, model LIMIT ?",  # noqa: S608 - our own words
                (*(one for _, one in named), limit),
            ).fetchall()
        return [
            Reached(AccessPath(row[0], row[1], *row[3:7]), row[2], _times(*row[7:10]), _times(*row[10:13]))
            for row in rows
        ]

    @contextmanager
    def _read(self) -> Iterator[sqlite3.Connection]:
        with self._read_lock, self._errors():
            yield self._connections()[1]

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as bad:
            # A file that is no database has no such code.
            code = getattr(bad, "sqlite_errorcode", None)
            if code is not None and code & _PRIMARY in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                self._throw_away()
            raise StoreUnavailable(f"the index of the ledger cannot be used: {bad}", hint=_AGAIN) from bad

    def _throw_away(self) -> None:
        """Leave the damaged file to whoever reads it still, and begin another at the next question."""
        with self._opening:
            self._opened, self._latest_ms = None, 0
            if self._place is not None:
                _unlink(self._place)


def _connected(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(str(path), check_same_thread=False, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    # What a power cut takes from it is indexed again.
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("PRAGMA cache_size = -65536")
    return connection


def _unlink(path: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        with suppress(OSError):
            path.with_name(path.name + suffix).unlink()


def _reached(events: Iterable[Event]) -> Iterator[tuple[object, ...]]:
    """Yield a row for each path to a model that events tell of."""
    found: dict[tuple[AccessPath, str, bool], Times] = {}
    for event in events:
        is_use = event.line > 0
        if event.path is None or (is_use and facet("decision", ACCEPTED) not in event.facets):
            continue
        for model in models_of(event):
            key = (event.path, model, is_use)
            newest = found.get(key, Times(0, -1, -1))
            count = newest.count + event.count
            if event.at_ms >= newest.at_ms:
                newest = Times(count, event.at_ms, event.index)
            found[key] = replace(newest, count=count)
    never = (0, -1, -1)
    for (path, model, is_use), times in found.items():
        realm, partner, *others = astuple(path)
        told = astuple(times)
        yield realm, partner, model, *others, *(never if is_use else told), *(told if is_use else never)


def _times(count: int, at_ms: int, index: int) -> Times | None:
    return Times(count, at_ms, index) if count else None


_HAS = "EXISTS (SELECT 1 FROM facets g WHERE g.word = ? AND g.idx = f.idx AND g.line = f.line)"


@lru_cache(maxsize=65_536)
def _word(one: str) -> int:
    """Return a facet as a number: of ten million, two share one by chance once in 400,000 ledgers."""
    return int.from_bytes(hashlib.sha256(one.encode("utf-8", "surrogatepass")).digest()[:8], "big", signed=True)


def _rarest_first(connection: sqlite3.Connection, facets: Collection[str], at: Ref) -> list[int]:
    """Return the words of facets, that one first which the fewest events have from here on."""
    counted = []
    for word in map(_word, sorted(facets)):
        [(count,)] = connection.execute(
            f"SELECT count(*) FROM (SELECT 1 FROM facets WHERE word = ? AND idx >= ? LIMIT {_PROBE})",  # noqa: S608
            (word, at[0]),
        )
        counted.append((count, word))
    return [word for _, word in sorted(counted)]


def _end_of_block(connection: sqlite3.Connection, words: Sequence[int], at: Ref) -> Ref | None:
    """Return where the next block of what must be looked at ends, or None: all that is left is one."""
    where, values = ("word = ? AND ", (words[0],)) if words else ("", ())
    table = "facets" if words else "events"
    row = connection.execute(
        f"SELECT idx, line FROM {table} WHERE {where}(idx, line) > (?, ?) ORDER BY idx, line LIMIT 1 OFFSET {_BLOCK}",  # noqa: S608
        (*values, *at),
    ).fetchone()
    return None if row is None else (int(row[0]), int(row[1]))


def _matching(
    words: Sequence[int], wanted: Wanted, at: Ref, end: Ref | None, limit: int
) -> tuple[str, tuple[object, ...]]:
    conditions, values = ["(f.idx, f.line) > (?, ?)"], list[object](at)
    if words:
        conditions.insert(0, "f.word = ?")
        values.insert(0, words[0])
    if end is not None:
        conditions.append("(f.idx, f.line) <= (?, ?)")
        values += end
    for word in words[1:]:
        conditions.append(_HAS)
        values.append(word)
    table = "facets f" if words else "events f"
    times = [
        (condition, bound)
        for condition, bound in (("e.at_ms >= ?", wanted.from_ms), ("e.at_ms < ?", wanted.until_ms))
        if bound is not None
    ]
    if times:
        table += " JOIN events e ON e.idx = f.idx AND e.line = f.line"
        conditions += [condition for condition, _ in times]
        values += [bound for _, bound in times]
    query = f"SELECT f.idx, f.line FROM {table} WHERE {' AND '.join(conditions)} ORDER BY f.idx, f.line LIMIT ?"  # noqa: S608
    return query, (*values, limit)


def _first_at(connection: sqlite3.Connection, from_ms: int) -> int:
    """Return an entry before which nothing happened at `from_ms` or later, by halving: the latest time only grows."""
    row = connection.execute("SELECT max(idx) FROM events").fetchone()
    low, high = 0, 0 if row[0] is None else int(row[0]) + 1
    while low < high:
        middle = (low + high) // 2
        found = connection.execute(
            "SELECT latest_ms FROM events WHERE idx >= ? ORDER BY idx, line LIMIT 1", (middle,)
        ).fetchone()
        # A line of receipts tells of a time before its entry.
        if found is not None and found[0] < from_ms:
            low = middle + 1
        else:
            high = middle
    return low


def _is_past(connection: sqlite3.Connection, at: Ref, until_ms: int) -> bool:
    row = connection.execute("SELECT latest_ms FROM events WHERE (idx, line) = (?, ?)", at).fetchone()
    return row is not None and int(row[0]) > until_ms + _CLOCK_SET_BACK_MS
