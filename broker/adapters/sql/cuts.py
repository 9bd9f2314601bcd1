"""The Cuts port on SQL."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, select

from broker.adapters.sql.instants import ms
from broker.adapters.sql.schema import cuts as table
from broker.adapters.sql.upserting import insert_into
from broker.service.proof_ports import Cut

Transaction = Callable[[], AbstractContextManager[Connection]]


class SqlCuts:
    """Keeps a row for each revocation, verifier and broker."""

    def __init__(self, reading: Transaction, writing: Transaction) -> None:
        self._reading = reading
        self._writing = writing

    def note(self, broker: str, cuts: Sequence[Cut], *, keep_until: datetime) -> None:
        """As the port says."""
        rows = [
            {
                "revocation": cut.revocation,
                "realm": cut.realm,
                "verifier": cut.verifier,
                "broker": broker,
                "uses": cut.uses,
                "keep_until_ms": ms(keep_until),
            }
            for cut in cuts
        ]
        if rows:
            with self._writing() as connection:
                connection.execute(_upsert(connection), rows)

    def elsewhere(self, broker: str, first: int, last: int) -> Sequence[Cut]:
        """As the port says."""
        query = select(table).where(table.c.revocation.between(first, last), table.c.broker != broker)
        with self._reading() as connection:
            return [Cut(row.revocation, row.verifier, row.realm, row.uses) for row in connection.execute(query)]


def _upsert(connection: Connection) -> Any:
    statement = insert_into(connection, table)
    new = statement.excluded
    return statement.on_conflict_do_update(
        index_elements=["revocation", "realm", "verifier", "broker"],
        set_={"uses": new.uses, "keep_until_ms": new.keep_until_ms},
    )
