"""The Ledger port on SQL: reading, and handing writes to the writer."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Engine, delete, func, select, tuple_

from broker.adapters.entry_archive import EntryArchive
from broker.adapters.sql.approvals import SqlApprovals
from broker.adapters.sql.bodies import Bodies, head_of
from broker.adapters.sql.cuts import SqlCuts
from broker.adapters.sql.drill_calls import SqlDrillCalls
from broker.adapters.sql.engine import SqliteFile, for_writing, reading
from broker.adapters.sql.explaining import SqlExplaining
from broker.adapters.sql.failing import LastFailure, engine_errors
from broker.adapters.sql.fencing import Fence
from broker.adapters.sql.folding import fold
from broker.adapters.sql.headroom import Headroom
from broker.adapters.sql.history import SqlPolicyHistory
from broker.adapters.sql.instants import instant, ms
from broker.adapters.sql.listener import Listener
from broker.adapters.sql.proofs import SqlProofs
from broker.adapters.sql.receipts import SqlReceiptBook
from broker.adapters.sql.roster import SqlRoster
from broker.adapters.sql.schema import (
    RUN_IS_OPEN,
    blocks,
    certificates,
    counts,
    cuts,
    policies,
    requests,
    restorations,
    revocations,
    runs,
)
from broker.adapters.sql.tree import SqlCheckpoints, SqlTree
from broker.adapters.sql.writer import Writer
from broker.errors import Failure, StoreCorrupt
from broker.service.ports import (
    Appended,
    CertificateRecord,
    Changes,
    Clock,
    Head,
    PolicyRecord,
    RevocationRecord,
    RunRecord,
    Write,
)
from broker.token.keys import Purpose, compact_certificate
from broker.token.revocation import Dimension, Selector

DEFAULT_HEADROOM_BYTES = 16 << 20
DEFAULT_MAX_WAITING = 20_000
KEEP_REQUESTS = timedelta(days=8)
# One transaction of a prune; the writer waits no longer than that takes.
PRUNE_AT_ONCE = 10_000


def _nothing(*_: object) -> None:
    pass


class SqlLedger:
    """The Ledger port. Reads go to the primary, each in one transaction."""

    def __init__(
        self,
        engine: Engine,
        clock: Clock,
        *,
        file: SqliteFile | None = None,
        is_sole: bool = True,
        headroom: Headroom | None = None,
        archive: EntryArchive | None = None,
        max_waiting: int = DEFAULT_MAX_WAITING,
        on_commit: Callable[[], None] = _nothing,
        on_group: Callable[[int, float], None] = _nothing,
        on_fatal: Callable[[Failure], None] = _nothing,
    ) -> None:
        self._engine = engine
        self._file = file
        self._is_sole = is_sole
        self._listener: Listener | None = None
        self._last = LastFailure(on_fatal)
        self._fence = Fence(engine)
        self._bodies = Bodies(archive)
        self.proofs = SqlProofs(self._reading)
        """The Proofs port, on the same store."""
        self.cuts = SqlCuts(self._reading, self._writing)
        """The Cuts port, on the same store."""
        self.drill_calls = SqlDrillCalls(self._reading, self._writing)
        """The DrillCalls port, on the same store."""
        self.roster = SqlRoster(self._reading, self._writing)
        """The Roster port, on the same store."""
        self.history = SqlPolicyHistory(self._reading)
        """The PolicyHistory port, on the same store."""
        self.explaining = SqlExplaining(self._reading, self._writing)
        """The ports Denials and RevocationSearch, on the same store."""
        self.approvals = SqlApprovals(self._reading)
        """The Approvals port, on the same store."""
        self.tree = SqlTree(self._reading)
        """The Tree port, on the same store."""
        self.checkpoints = SqlCheckpoints(self._reading, self._writing)
        """The Checkpoints port, on the same store."""
        self.receipts = SqlReceiptBook(self._reading, self._bodies)
        """The ReceiptBook port, on the same store."""
        self._writer = Writer(
            engine,
            clock,
            headroom=headroom,
            max_waiting=max_waiting,
            on_commit=on_commit,
            on_group=on_group,
            last=self._last,
        )

    def append(self, write: Write) -> "Future[Appended]":
        """As the port says."""
        return self._writer.submit(write)

    def head(self) -> Head:
        """As the port says."""
        with self._reading() as connection:
            return head_of(connection)

    def entries(self, start: int, stop: int) -> Sequence[bytes]:
        """As the port says, out of the archive where they were moved there.

        Raises:
            StoreCorrupt: An entry is missing or not what was written.
            ArchiveUnavailable: One was moved, and cannot be had from there.
        """
        with self._reading() as connection:
            return self._bodies.between(connection, start, stop)

    def changes(self, after: int, *, now: datetime) -> Changes:
        """As the port says."""
        new_revocations = (
            select(revocations)
            .where(revocations.c.idx >= after, revocations.c.keep_until_ms > ms(now))
            .order_by(revocations.c.idx)
        )
        new_certificates = (
            select(certificates)
            .where(certificates.c.idx >= after, certificates.c.expires_at_ms > ms(now))
            .order_by(certificates.c.idx)
        )
        with self._reading() as connection:
            is_fenced = self._fence.is_needed(connection)
            changes = Changes(
                head_of(connection),
                [_revocation(row) for row in connection.execute(new_revocations)],
                [
                    CertificateRecord(
                        row.idx,
                        row.realm,
                        Purpose(row.purpose),
                        row.kid,
                        compact_certificate(json.loads(row.certificate)),
                        instant(row.expires_at_ms),
                    )
                    for row in connection.execute(new_certificates)
                ],
            )
        if is_fenced:
            self._fence.must_hold()
        return changes

    def policy(self) -> PolicyRecord:
        """As the port says."""
        with self._reading() as connection:
            version = head_of(connection).policy_version
            newest = connection.execute(select(policies).order_by(policies.c.version.desc()).limit(1)).first()
            set_blocks = {Selector.from_text(row.selector): row.idx for row in connection.execute(select(blocks))}
            keys = connection.execute(select(revocations.c.kid).where(revocations.c.kid.isnot(None))).scalars()
            return PolicyRecord(
                version,
                newest.document if newest else "",
                newest.by if newest else "",
                instant(newest.at_ms) if newest else None,
                set_blocks,
                frozenset(keys),
                newest.reason if newest else "",
            )

    def version_applied_at(self, index: int) -> int:
        """As the port says."""
        with self._reading() as connection:
            version: int | None = connection.execute(select(policies.c.version).where(policies.c.idx == index)).scalar()
        if version is None:
            raise StoreCorrupt(f"entry {index} applied no policy")
        return version

    def run(self, run: str) -> RunRecord | None:
        """As the port says."""
        with self._reading() as connection:
            row = connection.execute(select(runs).where(runs.c.id == run)).first()
            return _run(row) if row is not None else None

    def runs(self, partner: str | None, limit: int) -> Sequence[RunRecord]:
        """As the port says."""
        query = select(runs).order_by(runs.c.opened_at_ms.desc(), runs.c.id).limit(limit)
        if partner is not None:
            query = query.where(runs.c.partner == partner)
        with self._reading() as connection:
            return [_run(row) for row in connection.execute(query)]

    def lapsed(self, now: datetime, limit: int) -> Sequence[RunRecord]:
        """As the port says."""
        query = select(runs).where(RUN_IS_OPEN, runs.c.lease_ends_at_ms <= ms(now))
        with self._reading() as connection:
            return [_run(row) for row in connection.execute(query.order_by(runs.c.lease_ends_at_ms).limit(limit))]

    def revocations(self, after: int, limit: int, *, partner: str | None = None) -> Sequence[RevocationRecord]:
        """As the port says."""
        query = select(revocations).where(revocations.c.idx > after).order_by(revocations.c.idx).limit(limit)
        if partner is not None:
            # In a selector's one spelling no other condition, and no value, can hold this.
            condition = json.dumps([int(Dimension.PARTNER), partner], separators=(",", ":"))
            query = query.where(revocations.c.selector.contains(condition, autoescape=True))
        with self._reading() as connection:
            return [_revocation(row) for row in connection.execute(query)]

    def restorations(self) -> Mapping[str, Sequence[str]]:
        """Return by realm what its root said of each time that this ledger was restored, the oldest first."""
        found: dict[str, list[str]] = {}
        with self._reading() as connection:
            for row in connection.execute(select(restorations).order_by(restorations.c.idx)):
                found.setdefault(row.realm, []).append(row.document)
        return found

    def prune(self, now: datetime) -> int:
        """As the port says. Certificates and request ids go with the revocations; the ledger keeps everything."""
        moment, requests_from = ms(now), ms(now - KEEP_REQUESTS)
        gone = 0
        for table, column, until_ms in (
            (revocations, revocations.c.keep_until_ms, moment),
            (certificates, certificates.c.expires_at_ms, moment),
            (requests, requests.c.at_ms, requests_from),
            (counts, counts.c.keep_until_ms, moment),
            (cuts, cuts.c.keep_until_ms, moment),
        ):
            key = tuple_(*table.primary_key.columns)
            some = delete(table).where(
                key.in_(select(*table.primary_key.columns).where(column <= until_ms).limit(PRUNE_AT_ONCE))
            )
            dropped = PRUNE_AT_ONCE
            while dropped >= PRUNE_AT_ONCE:
                with self._writing() as connection:
                    dropped = connection.execute(some).rowcount
                gone += dropped
        # Also where nothing is appended, others write: who listens, and what was denied.
        with self._looked_at():
            fold(self._engine)
        return gone

    def wall_clock(self) -> datetime | None:
        """As the port says."""
        if self._engine.dialect.name != "postgresql":
            return None
        with self._reading() as connection:
            at: datetime = connection.execute(select(func.clock_timestamp())).scalar_one()
            return at

    def listen(self, on_change: Callable[[], None]) -> None:
        """Call `on_change` when another broker on the same PostgreSQL committed something verifiers must learn.

        Raises:
            StoreUnavailable: This is to be the only broker, and is not, or another is to be the only one.
        """
        if self._engine.dialect.name == "postgresql":
            with engine_errors():
                self._listener = Listener(self._engine, on_change, is_sole=self._is_sole, last=self._last)

    def close(self) -> None:
        """As the port says."""
        if self._listener is not None:
            self._listener.stop()
        self._writer.close()
        self._fence.close()
        self._engine.dispose()
        if self._file is not None:
            self._file.release()

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        with self._looked_at(), engine_errors(), reading(self._engine) as connection:
            yield connection

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        """Begin a transaction beside the ledger's."""
        with self._looked_at(), engine_errors(), for_writing(self._engine).begin() as connection:
            yield connection

    @contextmanager
    def _looked_at(self) -> Iterator[None]:
        try:
            yield
        except Failure as failure:
            self._last.look_at(failure)
            raise


def _revocation(row: Any) -> RevocationRecord:
    return RevocationRecord(
        row.idx,
        Selector.from_text(row.selector),
        row.reason,
        row.by,
        instant(row.at_ms),
        instant(row.keep_until_ms),
    )


def _run(row: Any) -> RunRecord:
    return RunRecord(
        row.id,
        row.realm,
        row.partner,
        tuple(json.loads(row.models)),
        row.opened_by,
        instant(row.opened_at_ms),
        row.lease_s,
        instant(row.lease_ends_at_ms),
        row.is_closed,
        row.is_lapsed,
        row.user,
        row.workload,
        row.environment,
        tuple((model, grant) for model, grant in json.loads(row.grants)),
        None if row.key is None else json.loads(row.key),
        row.approval,
    )
