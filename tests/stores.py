"""The same ledger on SQLite and on PostgreSQL, and short words for its writes."""

import hashlib
import secrets
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import create_engine

from broker.adapters.sql import SqlLedger, open_store
from broker.errors import StoreUnavailable
from broker.ledger.entry import Entry, Kind, encode_entry, leaf_hash
from broker.ledger.merkle import Frontier
from broker.service.ports import Appended, Draft, Effect, PolicyReplaced, RequestKey, RevocationAdded, Write
from broker.token.revocation import Selector
from tests.moved_clock import MovedClock
from tests.postgresql import PostgreSql

BY = "spiffe://acme.example/ci"


@dataclass
class Home:
    """Where a ledger lives. Each `open` is one more broker on it."""

    kind: str
    url: str
    clock: MovedClock = field(default_factory=MovedClock)
    opened: list[SqlLedger] = field(default_factory=list)

    def open(self, **options: Any) -> SqlLedger:
        options = {"is_sole": False, "headroom_bytes": 1 << 20, **options}
        store = open_store(self.url, self.clock, **options)
        self.opened.append(store)
        return store

    def close(self) -> None:
        for store in self.opened:
            store.close()

    def sql(self, statement: str) -> list[Any]:
        """Run `statement` behind the ledger's back."""
        engine = create_engine(self.url.replace("postgresql:", "postgresql+psycopg:"))
        try:
            with engine.begin() as connection:
                done = connection.exec_driver_sql(statement)
                return list(done) if done.returns_rows else []
        finally:
            engine.dispose()


def draft(body: Mapping[str, object] | None = None, *, kind: Kind = Kind.TOKEN_MINTED) -> Draft:
    at = datetime.now(UTC)
    return lambda index: encode_entry(Entry(index, kind, at, BY, body or {"index": index}))


def key(contents: str = "", *, request_id: str = "", principal: str = BY) -> RequestKey:
    return RequestKey(principal, request_id or secrets.token_urlsafe(16), hashlib.sha256(contents.encode()).digest())


def write(count: int = 1, *effects: Effect, **options: Any) -> Write:
    return Write([draft()] * count, effects=effects, **options)


def append(store: SqlLedger, *arguments: Any, **options: Any) -> Appended:
    return store.append(write(*arguments, **options)).result(20)


def policy(document: str = "a policy") -> PolicyReplaced:
    return PolicyReplaced(document, BY, datetime.now(UTC))


def revocation(*, blocks: bool = False, keep: timedelta = timedelta(hours=1), **selector: str) -> RevocationAdded:
    now = datetime.now(UTC)
    return RevocationAdded(Selector.of(**selector), "a test", BY, now, now + keep, blocks)


def everything(store: SqlLedger) -> list[bytes]:
    return list(store.entries(0, store.head().size))


def failure_of(future: Future[Appended]) -> BaseException | None:
    return future.exception(20)


def assert_whole(home: Home) -> None:
    """Look with eyes of our own: indices have no gap, all hashes are right, the head says how many (P2, P10)."""
    rows = home.sql("SELECT idx, entry, leaf_hash FROM ledger ORDER BY idx")
    assert [row[0] for row in rows] == list(range(len(rows)))
    for index, entry, hashed in rows:
        assert bytes(hashed) == leaf_hash(bytes(entry)) == hashlib.sha256(b"\x00" + bytes(entry)).digest()
        assert f'"index":{index},' in bytes(entry).decode()
    assert home.sql("SELECT size FROM head") == [(len(rows),)]
    if home.kind != "fake":
        [(frontier,)] = home.sql("SELECT frontier FROM head")
        grown = Frontier().extended([bytes(hashed) for _, _, hashed in rows])
        assert bytes(frontier) == len(rows).to_bytes(8, "big") + grown.to_bytes()
        nodes = home.sql("SELECT idx, hash FROM tree WHERE level = 1 ORDER BY idx")
        assert [(at, bytes(found)) for at, found in nodes] == [
            (at, Frontier().extended([bytes(row[2]) for row in rows[at * 256 : at * 256 + 256]]).root())
            for at in range(len(rows) // 256)
        ]


def away_and_back(server: PostgreSql, questions: Sequence[Callable[[], object]]) -> None:
    """Stop the server, and expect each question to say so; start it, and expect answers."""
    server.stop()
    for question in questions:
        with pytest.raises(StoreUnavailable):
            question()
    server.start()
    for question in questions:
        question()
