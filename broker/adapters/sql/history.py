"""The PolicyHistory port on SQL."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from sqlalchemy import Connection, select

from broker.adapters.sql.instants import instant
from broker.adapters.sql.schema import policies
from broker.service.policy_ports import PolicyDocument, PolicyVersion

_APPLIED = (policies.c.version, policies.c.idx, policies.c.by, policies.c.at_ms, policies.c.reason)


class SqlPolicyHistory:
    """The PolicyHistory port. Reads go to the primary, each in one transaction."""

    def __init__(self, reading: Callable[[], AbstractContextManager[Connection]]) -> None:
        self._reading = reading

    def applied(self, below: int | None, limit: int) -> Sequence[PolicyVersion]:
        """As the port says."""
        query = select(*_APPLIED).order_by(policies.c.version.desc()).limit(limit)
        if below is not None:
            query = query.where(policies.c.version < below)
        with self._reading() as connection:
            return [_version(row) for row in connection.execute(query)]

    def as_of(self, version: int) -> PolicyDocument | None:
        """As the port says."""
        query = (
            select(*_APPLIED, policies.c.document)
            .where(policies.c.version <= version)
            .order_by(policies.c.version.desc())
            .limit(1)
        )
        with self._reading() as connection:
            row = connection.execute(query).first()
        return PolicyDocument(_version(row), row.document) if row is not None else None

    def before(self, index: int) -> PolicyVersion | None:
        """As the port says."""
        query = select(*_APPLIED).where(policies.c.idx < index).order_by(policies.c.idx.desc()).limit(1)
        with self._reading() as connection:
            row = connection.execute(query).first()
        return _version(row) if row is not None else None


def _version(row: Any) -> PolicyVersion:
    return PolicyVersion(row.version, row.idx, row.by, instant(row.at_ms), row.reason)
