"""The Roster port on SQL."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from sqlalchemy import Connection, case, select

from broker.adapters.sql.instants import instant, ms
from broker.adapters.sql.schema import verifiers
from broker.adapters.sql.upserting import insert_into
from broker.service.proof_ports import Sighting

Transaction = Callable[[], AbstractContextManager[Connection]]


class SqlRoster:
    """Keeps one row for each verifier of a realm."""

    def __init__(self, reading: Transaction, writing: Transaction) -> None:
        self._reading = reading
        self._writing = writing

    def note(self, sightings: Sequence[Sighting]) -> None:
        """As the port says."""
        if not sightings:
            return
        newest: dict[tuple[str, str], dict[str, Any]] = {}
        for one in sorted(sightings, key=lambda one: one.seen_at):
            before = newest.get((one.realm, one.verifier))
            newest[one.realm, one.verifier] = {
                "verifier": one.verifier,
                "realm": one.realm,
                "version": one.version,
                "address": one.address,
                "head": max(one.head, before["head"] if before is not None else 0),
                "seen_at_ms": ms(one.seen_at),
                "is_present": one.is_present,
            }
        # Always in the same order, so that two brokers do not wait for each other's rows.
        rows = [newest[key] for key in sorted(newest)]
        with self._writing() as connection:
            connection.execute(_upsert(connection), rows)

    def known(self, realm: str | None) -> Sequence[Sighting]:
        """As the port says."""
        query = select(verifiers).order_by(verifiers.c.realm, verifiers.c.verifier)
        if realm is not None:
            query = query.where(verifiers.c.realm == realm)
        with self._reading() as connection:
            return [
                Sighting(
                    row.verifier, row.realm, row.version, row.address, row.head, instant(row.seen_at_ms), row.is_present
                )
                for row in connection.execute(query)
            ]


def _upsert(connection: Connection) -> Any:
    statement = insert_into(connection, verifiers)
    new = statement.excluded
    is_newer = new.seen_at_ms >= verifiers.c.seen_at_ms
    newer = {
        name: case((is_newer, new[name]), else_=verifiers.c[name])
        for name in ("version", "address", "seen_at_ms", "is_present")
    }
    # Two brokers may tell of one verifier in any order; what it has applied it never takes back.
    furthest = case((new.head > verifiers.c.head, new.head), else_=verifiers.c.head)
    return statement.on_conflict_do_update(index_elements=["realm", "verifier"], set_={**newer, "head": furthest})
