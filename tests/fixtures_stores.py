"""Fixtures with real stores; a test module asks for them by `pytest_plugins = ["tests.fixtures_stores"]`."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.adapters.sql import SqlLedger
from tests.postgresql import PostgreSql
from tests.stores import Home


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSql]:
    """A server for tests that do not harm it."""
    server = PostgreSql().start()
    yield server
    server.remove()


@pytest.fixture
def own_postgresql() -> Iterator[PostgreSql]:
    """A server for one test that kills or stops it."""
    server = PostgreSql().start()
    yield server
    server.remove()


@pytest.fixture
def sqlite_home(tmp_path: Path) -> Iterator[Home]:
    """A place for a ledger in a SQLite file; nothing is there yet."""
    place = Home("sqlite", f"sqlite:///{tmp_path / 'ledger.db'}")
    yield place
    place.close()


@pytest.fixture
def postgresql_home(postgresql: PostgreSql) -> Iterator[Home]:
    """A place for a ledger in a new database; nothing is there yet."""
    database = postgresql.new_database()
    place = Home("postgresql", postgresql.url(database))
    yield place
    place.close()
    postgresql.drop_database(database)


@pytest.fixture(params=["sqlite", "postgresql"])
def home(request: pytest.FixtureRequest) -> Home:
    """A place for a ledger, on each engine in turn."""
    place: Home = request.getfixturevalue(f"{request.param}_home")
    return place


@pytest.fixture
def store(home: Home) -> SqlLedger:
    """A ledger at `home`."""
    return home.open()
