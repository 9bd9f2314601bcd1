"""The ports Denials and RevocationSearch on SQL."""

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, delete, or_, select

from broker.adapters.sql.instants import instant, ms
from broker.adapters.sql.schema import denials, revocations
from broker.adapters.sql.upserting import insert_into
from broker.domain.decision import Rule
from broker.service.explain_ports import KEEP_DENIALS, MOST_DENIALS, Denial
from broker.service.ports import RevocationRecord
from broker.token.revocation import Dimension, Selector

Transaction = Callable[[], AbstractContextManager[Connection]]
_NAMED = ("method", "reason", "message", "remedy", "version", "is_partners")


class SqlExplaining:
    """Keeps a row for each denial, and looks for revocations by what their selectors name."""

    def __init__(self, reading: Transaction, writing: Transaction) -> None:
        self._reading = reading
        self._writing = writing

    def note(self, found: Sequence[Denial]) -> None:
        """As the port says."""
        newest = {(one.partner, one.principal, one.request_id): one for one in sorted(found, key=lambda one: one.at)}
        if not newest:
            return
        # Always in the same order, so that two brokers do not wait for each other's rows.
        rows = [_row(newest[key]) for key in sorted(newest)]
        with self._writing() as connection:
            connection.execute(_upsert(connection), rows)
            for partner in sorted({one.partner for one in found}):
                _trim(connection, partner, max(one.at for one in found if one.partner == partner))

    def find(self, request_id: str, partner: str | None, *, since: datetime) -> Denial | None:
        """As the port says."""
        query = (
            select(denials)
            .where(denials.c.request_id == request_id, denials.c.at_ms >= ms(since))
            .order_by(denials.c.at_ms.desc())
            .limit(1)
        )
        if partner is not None:
            query = query.where(denials.c.partner == partner)
        with self._reading() as connection:
            row = connection.execute(query).first()
        return _denial(row) if row is not None else None

    def naming(
        self, conditions: Sequence[tuple[Dimension, str]], *, after: int, kid: str, limit: int
    ) -> Sequence[RevocationRecord]:
        """As the port says."""
        texts = (json.dumps([int(dimension), value], separators=(",", ":")) for dimension, value in conditions)
        query = (
            select(revocations)
            .where(
                or_(revocations.c.idx > after, revocations.c.kid == kid),
                or_(*(revocations.c.selector.contains(text, autoescape=True) for text in texts)),
            )
            .order_by(revocations.c.idx)
            .limit(limit)
        )
        with self._reading() as connection:
            return [
                RevocationRecord(
                    row.idx,
                    Selector.from_text(row.selector),
                    row.reason,
                    row.by,
                    instant(row.at_ms),
                    instant(row.keep_until_ms),
                )
                for row in connection.execute(query)
            ]


def _row(one: Denial) -> dict[str, Any]:
    document = {name: getattr(one, name) for name in _NAMED}
    document["rules"] = [[rule.rule, rule.passes, rule.detail] for rule in one.rules]
    return {
        "partner": one.partner,
        "principal": one.principal,
        "request_id": one.request_id,
        "at_ms": ms(one.at),
        "document": json.dumps(document),
    }


def _denial(row: Any) -> Denial:
    document = json.loads(row.document)
    rules = tuple(Rule(*rule) for rule in document.pop("rules"))
    return Denial(row.partner, row.request_id, row.principal, instant(row.at_ms), rules=rules, **document)


def _upsert(connection: Connection) -> Any:
    statement = insert_into(connection, denials)
    new = statement.excluded
    return statement.on_conflict_do_update(
        index_elements=["partner", "principal", "request_id"],
        set_={"at_ms": new.at_ms, "document": new.document},
        where=new.at_ms >= denials.c.at_ms,
    )


def _trim(connection: Connection, partner: str, now: datetime) -> None:
    own = denials.c.partner == partner
    newest = select(denials.c.at_ms).where(own).order_by(denials.c.at_ms.desc())
    oldest_kept = connection.execute(newest.offset(MOST_DENIALS - 1).limit(1)).scalar()
    before = ms(now - KEEP_DENIALS)
    connection.execute(delete(denials).where(own, denials.c.at_ms < max(before, oldest_kept or before)))
