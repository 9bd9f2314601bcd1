"""The DrillCalls port on SQL."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any

from sqlalchemy import Connection, delete, insert, select

from broker.adapters.sql.instants import instant, ms
from broker.adapters.sql.proving import packed, unpacked
from broker.adapters.sql.schema import drill_calls, drill_parts
from broker.adapters.sql.upserting import insert_into
from broker.service.proof_ports import DrillCall

Transaction = Callable[[], AbstractContextManager[Connection]]

FORGOTTEN_AFTER = timedelta(hours=1)


class SqlDrillCalls:
    """Keeps a row for each drill under way, and one for each broker that has something to tell of it."""

    def __init__(self, reading: Transaction, writing: Transaction) -> None:
        self._reading = reading
        self._writing = writing

    def call(self, call: DrillCall) -> None:
        """As the port says."""
        row = {
            "canary": call.canary,
            "realm": call.realm,
            "token": call.token,
            "hold_ms": call.hold_ms,
            "called_at_ms": ms(call.called_at),
        }
        with self._writing() as connection:
            connection.execute(
                delete(drill_calls).where(drill_calls.c.called_at_ms <= ms(call.called_at - FORGOTTEN_AFTER))
            )
            # Also what was told at the very moment in which its drill ended.
            connection.execute(delete(drill_parts).where(drill_parts.c.canary.not_in(select(drill_calls.c.canary))))
            connection.execute(insert(drill_calls), row)

    def called(self) -> Sequence[DrillCall]:
        """As the port says."""
        query = select(drill_calls).order_by(drill_calls.c.called_at_ms, drill_calls.c.canary)
        with self._reading() as connection:
            return [
                DrillCall(row.canary, row.realm, row.token, row.hold_ms, instant(row.called_at_ms))
                for row in connection.execute(query)
            ]

    def tell(self, canary: str, broker: str, part: bytes) -> None:
        """As the port says."""
        row = {"canary": canary, "broker": broker, "part": packed(part)}
        with self._writing() as connection:
            if connection.execute(select(drill_calls.c.canary).where(drill_calls.c.canary == canary)).first():
                connection.execute(_upsert(connection), row)

    def told(self, canary: str) -> Mapping[str, bytes]:
        """As the port says."""
        with self._reading() as connection:
            return {
                row.broker: unpacked(bytes(row.part))
                for row in connection.execute(select(drill_parts).where(drill_parts.c.canary == canary))
            }

    def end(self, canary: str) -> None:
        """As the port says."""
        with self._writing() as connection:
            for table in (drill_parts, drill_calls):
                connection.execute(delete(table).where(table.c.canary == canary))


def _upsert(connection: Connection) -> Any:
    statement = insert_into(connection, drill_parts)
    return statement.on_conflict_do_update(index_elements=["canary", "broker"], set_={"part": statement.excluded.part})
