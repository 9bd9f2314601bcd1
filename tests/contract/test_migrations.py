"""A store of an earlier version is brought up to date when it is opened, and keeps what it holds."""

import itertools
from datetime import UTC, datetime
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import Engine, create_engine, event, inspect

import broker.adapters.sql
from broker.adapters.sql.schema import metadata
from broker.ledger.entry import leaf_hash
from broker.ledger.merkle import Frontier
from broker.token.revocation import Selector
from tests.stores import Home, assert_whole, everything

pytest_plugins = ["tests.fixtures_stores"]

MIGRATIONS = Path(broker.adapters.sql.__file__).parent / "migrations"
CREATED = (
    b'{"at":"2026-06-01T00:00:00.000Z","body":{"incarnation":"0123456789abcdef0123456789abcdef"},'
    b'"by":"broker","index":0,"kind":"ledger-created"}'
)
REVOKED = (
    b'{"at":"2026-06-01T00:00:01.000Z","body":{"blocks":true,"reason":"a test","request":"r","selector":'
    b'{"partner":"acme"}},"by":"spiffe://lab.example/ops","index":1,"kind":"revoked"}'
)
MINTED = (
    b'{"at":"2026-06-01T00:00:02.000Z","body":{"claims":{"partner":"globex"}},'
    b'"by":"spiffe://lab.example/ops","index":2,"kind":"token-minted"}'
)
STATEMENTS_LOOKED_AT_CLOSELY = 30
ENTRIES = [CREATED, REVOKED, MINTED]


def make_at(home: Home, revision: str) -> None:
    """Make a store as that revision left it, with a revocation and a mint."""
    engine = create_engine(home.url.replace("postgresql:", "postgresql+psycopg:"))
    with engine.begin() as connection:
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS))
        config.set_main_option("path_separator", "os")
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
    mark = "%s" if home.kind == "postgresql" else "?"
    with engine.begin() as connection:
        for index, entry in enumerate(ENTRIES):
            connection.exec_driver_sql(
                f"INSERT INTO ledger (idx, entry, leaf_hash) VALUES ({index}, {mark}, {mark})",
                (entry, leaf_hash(entry)),
            )
        connection.exec_driver_sql(
            "INSERT INTO head (id, incarnation, size, policy_version) VALUES (0, '0123456789abcdef0123456789abcdef', 3, 1)"
        )
        connection.exec_driver_sql(
            "INSERT INTO policies (version, idx, document, \"by\", at_ms) VALUES (1, 1, 'a policy', 'ops', 1780272001000)"
        )
        connection.exec_driver_sql(
            "INSERT INTO revocations (idx, selector, reason, by, at_ms, keep_until_ms) VALUES "
            "(1, '[[2,\"acme\"]]', 'a test', 'spiffe://lab.example/ops', 1780272001000, 4102444800000)"
        )
    engine.dispose()


@pytest.mark.parametrize("revision", ["0001", "0002", "0003", "0004", "0005"])
def test_p11_an_older_store_is_migrated_and_its_ledger_is_the_same(home: Home, revision: str) -> None:
    make_at(home, revision)
    store = home.open()
    assert everything(store) == ENTRIES
    assert [str(record.selector) for record in store.revocations(0, 10)] == [str(Selector.of(partner="acme"))]
    assert [(one.version, one.by, one.reason) for one in store.history.applied(None, 10)] == [(1, "ops", "")]
    assert store.proofs.completion(1) is None
    assert list(store.proofs.awaited()) == []
    assert list(store.roster.known(None)) == []
    assert list(store.approvals.approvals_asked(partner=None, groups=None, limit=10)) == []
    assert list(store.proofs.minted([b'"partner":"globex"'], since=datetime(2026, 6, 1, tzinfo=UTC))) == [MINTED]
    assert store.tree.head().root == Frontier().extended([leaf_hash(entry) for entry in ENTRIES]).root()
    assert store.checkpoints.newest() is None
    assert_whole(home)
    store.close()
    # Once more: there is nothing left to do.
    assert everything(home.open()) == ENTRIES


def test_the_migrations_make_exactly_the_tables_that_the_code_uses(home: Home) -> None:
    home.open()
    engine = create_engine(home.url.replace("postgresql:", "postgresql+psycopg:"))
    found = inspect(engine)
    assert set(found.get_table_names()) == {*metadata.tables, "alembic_version"}
    for name, table in metadata.tables.items():
        columns = {column["name"]: column["nullable"] for column in found.get_columns(name)}
        assert columns == {column.name: bool(column.nullable) for column in table.columns}
        assert {index["name"] for index in found.get_indexes(name)} == {index.name for index in table.indexes}
        assert set(found.get_pk_constraint(name)["constrained_columns"]) == {one.name for one in table.primary_key}
    engine.dispose()


class PowerCut(Exception):
    """Ends a migration between two of its statements."""


def interrupted(home: Home, after: int) -> bool:
    """Open the store and cut it off after so many statements; return whether there were as many."""
    count = itertools.count(1)

    def cut(*_: object) -> None:
        if next(count) > after:
            raise PowerCut

    event.listen(Engine, "before_cursor_execute", cut)
    try:
        home.open()
    except PowerCut:
        return True
    finally:
        event.remove(Engine, "before_cursor_execute", cut)
    return False


@pytest.mark.parametrize("revision", ["0001", "0005"])
def test_p11_a_migration_that_is_interrupted_after_any_statement_has_done_nothing(home: Home, revision: str) -> None:
    make_at(home, revision)
    after = 0
    while interrupted(home, after):
        assert home.sql("SELECT version_num FROM alembic_version") == [(revision,)]
        assert [bytes(row[0]) for row in home.sql("SELECT entry FROM ledger ORDER BY idx")] == ENTRIES
        after += 1 if after < STATEMENTS_LOOKED_AT_CLOSELY else 7
    assert after > STATEMENTS_LOOKED_AT_CLOSELY
    store = home.opened[-1]
    assert everything(store) == ENTRIES
    assert_whole(home)
    store.close()
