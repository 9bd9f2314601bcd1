"""Group commit: one thread gathers the writes that wait and commits them in one transaction."""

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Engine, insert, select, tuple_, update
from sqlalchemy.exc import SQLAlchemyError

from broker.adapters.sql.effects import apply, check, ms
from broker.adapters.sql.engine import writing
from broker.adapters.sql.failing import StoreBroken, translated
from broker.adapters.sql.headroom import Headroom
from broker.adapters.sql.schema import head, ledger, requests
from broker.errors import Failure, Overloaded, PolicyMoved, RequestReused, StoreCorrupt, StoreFull, StoreUnavailable
from broker.ledger.entry import leaf_hash
from broker.service.ports import (
    Appended,
    CertificateAdded,
    Clock,
    PolicyReplaced,
    RevocationAdded,
    Write,
)

MAX_GROUP_DRAFTS = 4000
# Under SQLite's and PostgreSQL's limits on parameters in one statement.
MAX_LOOKUP = 400


@dataclass(slots=True)
class _Job:
    write: Write
    future: "Future[Appended]"
    answer: Appended | Failure | None = None


@dataclass(slots=True)
class _Group:
    """One transaction on its way: what the head will be, and the rows to insert at the end."""

    size: int
    version: int
    entries: list[dict[str, Any]] = field(default_factory=list)
    requests: list[dict[str, Any]] = field(default_factory=list)
    known: dict[tuple[str, str], tuple[bytes, int, int]] = field(default_factory=dict)
    wakes: bool = False


class Writer:
    """Owns the only thread that writes. Urgent writes overtake the waiting ones."""

    def __init__(
        self,
        engine: Engine,
        clock: Clock,
        *,
        headroom: Headroom | None,
        max_waiting: int,
        on_commit: Callable[[], None],
        on_group: Callable[[int, float], None],
        on_fatal: Callable[[Failure], None],
    ) -> None:
        self._engine = engine
        self._clock = clock
        self._headroom = headroom
        self._max_waiting = max_waiting
        self._on_commit = on_commit
        self._on_group = on_group
        self._on_fatal = on_fatal
        self._waiting: deque[_Job] = deque()
        self._urgent: deque[_Job] = deque()
        self._drafts_waiting = 0
        self._has_work = threading.Condition()
        self._closing = False
        self._broken: Failure | None = None
        self._thread = threading.Thread(target=self._run, name="ledger-writer", daemon=True)
        self._thread.start()

    def submit(self, write: Write) -> "Future[Appended]":
        """Queue a write; the future resolves after the commit, or with the failure."""
        job = _Job(write, Future())
        with self._has_work:
            refusal: Failure | None = self._broken
            if refusal is None and self._closing:
                refusal = StoreUnavailable("the store is closed")
            if refusal is None and not write.urgent and self._drafts_waiting + len(write.drafts) > self._max_waiting:
                refusal = Overloaded("too many writes are waiting")
            if refusal is not None:
                job.future.set_exception(refusal)
                return job.future
            (self._urgent if write.urgent else self._waiting).append(job)
            self._drafts_waiting += len(write.drafts)
            self._has_work.notify()
        return job.future

    def close(self) -> None:
        """Commit what waits, then end the thread."""
        with self._has_work:
            self._closing = True
            self._has_work.notify()
        self._thread.join()

    def _run(self) -> None:
        while jobs := self._gather():
            started = time.monotonic()
            jobs = [job for job in jobs if job.future.set_running_or_notify_cancel()]
            self._do(jobs)
            self._on_group(sum(len(job.write.drafts) for job in jobs), time.monotonic() - started)
            for job in jobs:
                _answer(job)

    def _gather(self) -> list[_Job]:
        with self._has_work:
            while not (self._urgent or self._waiting or self._closing):
                self._has_work.wait()
            jobs: list[_Job] = []
            drafts = 0
            for queue in (self._urgent, self._waiting):
                while queue and (not jobs or drafts + len(queue[0].write.drafts) <= MAX_GROUP_DRAFTS):
                    job = queue.popleft()
                    drafts += len(job.write.drafts)
                    jobs.append(job)
            self._drafts_waiting -= drafts
            return jobs

    def _do(self, jobs: list[_Job]) -> None:
        if self._broken is not None:
            for job in jobs:
                job.answer = self._broken
            return
        if self._headroom is not None and self._headroom.is_low():
            _refuse_what_can_wait(jobs)
        failure = self._commit([job for job in jobs if job.answer is None])
        if isinstance(failure, StoreFull) and self._headroom is not None and self._headroom.give_up():
            # The reserve is for what must not wait: a revocation fits on a full disk.
            _refuse_what_can_wait(jobs)
            failure = self._commit([job for job in jobs if not isinstance(job.answer, StoreFull)])
        if failure is not None:
            for job in jobs:
                job.answer = job.answer if isinstance(job.answer, StoreFull) else failure
        if isinstance(failure, StoreBroken | StoreCorrupt):
            self._broken = failure
            self._on_fatal(failure)

    def _commit(self, jobs: list[_Job]) -> Failure | None:
        """Do all of `jobs` in one transaction; return why the transaction as a whole failed, or None."""
        if not jobs:
            return None
        try:
            with writing(self._engine) as connection:
                group = self._begin(connection, jobs)
                for job in jobs:
                    job.answer = self._one(connection, group, job.write)
                self._finish(connection, group)
        except SQLAlchemyError as problem:
            return translated(problem)
        except StoreCorrupt as corrupt:
            return corrupt
        if group.wakes:
            self._on_commit()
        return None

    def _begin(self, connection: Connection, jobs: list[_Job]) -> _Group:
        query = select(head.c.size, head.c.policy_version).where(head.c.id == 0)
        row = connection.execute(query.with_for_update()).first()
        if row is None:
            raise StoreCorrupt("the store has no head")
        group = _Group(row.size, row.policy_version)
        keys = [(key.principal, key.request_id) for job in jobs if (key := job.write.request) is not None]
        for start in range(0, len(keys), MAX_LOOKUP):
            found = connection.execute(
                select(requests).where(
                    tuple_(requests.c.principal, requests.c.request_id).in_(keys[start : start + MAX_LOOKUP])
                )
            )
            for row_ in found:
                group.known[row_.principal, row_.request_id] = (row_.digest, row_.first_idx, row_.entries)
        return group

    def _one(self, connection: Connection, group: _Group, write: Write) -> Appended | Failure:
        """Do one write, or nothing of it."""
        try:
            if (repeated := _repeated(group, write)) is not None:
                return repeated
            if write.expecting is not None and write.expecting != group.version:
                raise PolicyMoved(f"the policy is at version {group.version}, not {write.expecting}")
            for guard in write.guards:
                check(connection, guard)
            entries = [draft(group.size + offset) for offset, draft in enumerate(write.drafts)]
        except Failure as refusal:
            return refusal
        first = group.size
        group.entries += [
            {"idx": first + offset, "entry": entry, "leaf_hash": leaf_hash(entry)}
            for offset, entry in enumerate(entries)
        ]
        group.size += len(entries)
        for effect in write.effects:
            if apply(connection, effect, first, group.version):
                group.version += 1
            group.wakes |= isinstance(effect, RevocationAdded | CertificateAdded | PolicyReplaced)
        if write.request is not None:
            _remember(group, write, first, ms(self._clock.now()))
        return Appended(range(first, group.size), False, group.version)

    def _finish(self, connection: Connection, group: _Group) -> None:
        if group.entries:
            connection.execute(insert(ledger), group.entries)
        if group.requests:
            connection.execute(insert(requests), group.requests)
        connection.execute(update(head).where(head.c.id == 0).values(size=group.size, policy_version=group.version))
        if group.wakes and connection.dialect.name == "postgresql":
            connection.exec_driver_sql("NOTIFY broker_changed")


def _repeated(group: _Group, write: Write) -> Appended | None:
    if write.request is None:
        return None
    known = group.known.get((write.request.principal, write.request.request_id))
    if known is None:
        return None
    digest, first, count = known
    if digest != write.request.digest:
        raise RequestReused(f"request_id {write.request.request_id} was used for something else")
    return Appended(range(first, first + count), True, group.version)


def _remember(group: _Group, write: Write, first: int, at_ms: int) -> None:
    key = write.request
    assert key is not None  # noqa: S101 - the caller looked
    group.known[key.principal, key.request_id] = (key.digest, first, len(write.drafts))
    group.requests.append(
        {
            "principal": key.principal,
            "request_id": key.request_id,
            "digest": key.digest,
            "first_idx": first,
            "entries": len(write.drafts),
            "at_ms": at_ms,
        }
    )


def _refuse_what_can_wait(jobs: list[_Job]) -> None:
    for job in jobs:
        job.answer = None if job.write.urgent else StoreFull("too little space is left on the store's disk")


def _answer(job: _Job) -> None:
    match job.answer:
        case Appended() as appended:
            job.future.set_result(appended)
        case Failure() as failure:
            job.future.set_exception(failure)
        case _:
            job.future.set_exception(StoreUnavailable("the write was not done"))
