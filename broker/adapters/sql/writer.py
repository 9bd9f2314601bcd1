"""Group commit: one thread gathers the writes that wait and commits them in one transaction."""

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Engine

from broker.adapters.sql.appending import EntryRow, RequestRow, statements_for
from broker.adapters.sql.effects import Seen, apply, check
from broker.adapters.sql.engine import LOCK_TIMEOUT_S, for_writing
from broker.adapters.sql.failing import ENGINE_ERRORS, LastFailure, translated
from broker.adapters.sql.folding import LogFolding
from broker.adapters.sql.growing import Growth, caught_up, pack
from broker.adapters.sql.headroom import Headroom
from broker.adapters.sql.instants import ms
from broker.errors import (
    Defect,
    Failure,
    Overloaded,
    PolicyMoved,
    RequestReused,
    StoreCorrupt,
    StoreFull,
    StoreUnavailable,
)
from broker.ledger.entry import leaf_hash
from broker.service.ports import (
    Appended,
    BlockLifted,
    CertificateAdded,
    Clock,
    PolicyReplaced,
    RevocationAdded,
    TokensRevoked,
    Write,
)

# More would gain little and could eat up the headroom at once.
MAX_GROUP_DRAFTS = 1000
# What verifiers must learn of at once.
_NEWS = RevocationAdded | TokensRevoked | CertificateAdded | PolicyReplaced | BlockLifted


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
    tree: Growth
    entries: list[EntryRow] = field(default_factory=list)
    requests: list[RequestRow] = field(default_factory=list)
    known: dict[tuple[str, str], tuple[bytes, int, int]] = field(default_factory=dict)
    seen: Seen = field(default_factory=Seen)
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
        last: LastFailure,
    ) -> None:
        self._engine = for_writing(engine)
        self._statements = statements_for(engine.dialect.name)
        self._clock = clock
        self._headroom = headroom
        self._folding = LogFolding(engine)
        self._max_waiting = max_waiting
        self._on_commit = on_commit
        self._on_group = on_group
        self._last = last
        self._waiting: deque[_Job] = deque()
        self._urgent: deque[_Job] = deque()
        self._drafts_waiting = 0
        self._has_work = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="ledger-writer", daemon=True)
        self._thread.start()

    def submit(self, write: Write) -> "Future[Appended]":
        """Queue a write; the future resolves after the commit, or with the failure."""
        job = _Job(write, Future())
        with self._has_work:
            refusal = self._last.failure
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
            try:
                self._do(jobs)
                self._on_group(sum(len(job.write.drafts) for job in jobs), time.monotonic() - started)
            except Exception as problem:  # noqa: BLE001 - whatever it was, those who wait must hear of it
                for job in jobs:
                    job.answer = job.answer or _defect(problem)
            for job in jobs:
                _answer(job)
            self._fold(jobs)
            if time.monotonic() - started > LOCK_TIMEOUT_S:
                self._refuse_who_waited(jobs)

    def _fold(self, jobs: list[_Job]) -> None:
        # Those who waited have their answers: what they wrote is durable in the log.
        try:
            self._folding.after(sum(len(job.write.drafts) for job in jobs))
        except Failure as failure:
            self._last.look_at(failure)

    def _refuse_who_waited(self, jobs: list[_Job]) -> None:
        """After a store that was long away: those who waited for it meanwhile must not wait that long again."""
        away = next((job.answer for job in jobs if isinstance(job.answer, StoreUnavailable)), None)
        if away is None:
            return
        with self._has_work:
            waited = [*self._urgent, *self._waiting]
            self._urgent.clear()
            self._waiting.clear()
            self._drafts_waiting = 0
        for job in waited:
            if job.future.set_running_or_notify_cancel():
                job.future.set_exception(StoreUnavailable(away.message, hint=away.hint))

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
        if self._last.failure is not None:
            for job in jobs:
                job.answer = self._last.failure
            return
        if self._headroom is not None and self._headroom.is_low():
            _refuse_what_can_wait(jobs)
        waiting = [job for job in jobs if job.answer is None]
        failure = self._commit(waiting)
        if isinstance(failure, StoreFull) and self._headroom is not None and self._headroom.give_up():
            # The reserve is for what must not wait: a revocation fits on a full disk.
            _refuse_what_can_wait(waiting)
            waiting = [job for job in waiting if job.answer is None]
            failure = self._commit(waiting)
        if isinstance(failure, Defect) and len(waiting) > 1:
            # One write is at fault; the others must not suffer for it.
            for job in waiting:
                self._settle([job], self._commit([job]))
        else:
            self._settle(waiting, failure)

    def _settle(self, jobs: list[_Job], failure: Failure | None) -> None:
        if failure is not None:
            self._last.look_at(failure)
            for job in jobs:
                job.answer = failure

    def _commit(self, jobs: list[_Job]) -> Failure | None:
        """Do all of `jobs` in one transaction; return why the transaction as a whole failed, or None."""
        if not jobs:
            return None
        try:
            # Given to the driver directly: SQLAlchemy's own layer costs more than the fsync. A cursor that a
            # failure's traceback keeps would keep the file open, too.
            with self._engine.begin() as connection, closing(connection.connection.cursor()) as cursor:
                group = self._begin(cursor, jobs)
                answers = [self._one(connection, group, job.write) for job in jobs]
                self._finish(cursor, group)
        except ENGINE_ERRORS as problem:
            return translated(problem)
        except StoreCorrupt as corrupt:
            return corrupt
        except Exception as problem:  # noqa: BLE001 - an effect's defect; those who share the transaction try again
            return _defect(problem)
        # P1: nobody has an answer before the commit is durable.
        for job, answer in zip(jobs, answers, strict=True):
            job.answer = answer
        if group.wakes:
            self._on_commit()
        return None

    def _begin(self, cursor: Any, jobs: list[_Job]) -> _Group:
        at = self._statements.lock_head(cursor)
        if at is None:
            raise StoreCorrupt("the store has no head")
        size, version, frontier = at
        tree = caught_up(frontier, size, lambda start, stop: self._statements.leaf_hashes(cursor, start, stop))
        group = _Group(size, version, tree)
        keys = [(key.principal, key.request_id) for job in jobs if (key := job.write.request) is not None]
        if keys:
            for principal, request_id, digest, first, count in self._statements.known(cursor, keys):
                group.known[principal, request_id] = (digest, first, count)
        return group

    def _one(self, connection: Connection, group: _Group, write: Write) -> Appended | Failure:
        """Do one write, or nothing of it."""
        try:
            if (repeated := _repeated(group, write)) is not None:
                return repeated
            if write.expecting is not None and write.expecting != group.version:
                raise PolicyMoved(f"the policy is at version {group.version}, not {write.expecting}")
            group.seen.tally.noted.clear()
            for guard in write.guards:
                check(connection, guard, group.seen)
            entries = [draft(group.size + offset) for offset, draft in enumerate(write.drafts)]
        except Failure as refusal:
            return refusal
        except ENGINE_ERRORS:
            raise
        except Exception as problem:  # noqa: BLE001 - a draft's defect is its own write's, not the group's
            return _defect(problem)
        first = group.size
        group.entries += [(first + offset, entry, leaf_hash(entry)) for offset, entry in enumerate(entries)]
        group.size += len(entries)
        for effect in write.effects:
            if apply(connection, effect, range(first, group.size), group.version, group.seen):
                group.version += 1
            group.wakes |= isinstance(effect, _NEWS)
        if write.request is not None:
            _remember(group, write, first, ms(self._clock.now()))
        return Appended(range(first, group.size), False, group.version, tuple(group.seen.tally.noted))

    def _finish(self, cursor: Any, group: _Group) -> None:
        if group.entries:
            self._statements.add_entries(cursor, group.entries)
            group.tree.add(hashed for _, _, hashed in group.entries)
            if group.tree.nodes:
                self._statements.add_nodes(cursor, group.tree.nodes)
            self._statements.move_head(cursor, group.size, group.version, pack(group.tree.frontier))
        if group.requests:
            self._statements.add_requests(cursor, group.requests)
        if group.wakes:
            self._statements.notify(cursor)


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
    group.requests.append((key.principal, key.request_id, key.digest, first, len(write.drafts), at_ms))


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


def _defect(problem: Exception) -> Defect:
    defect = Defect(f"a write failed by a defect ({type(problem).__name__})")
    defect.__cause__ = problem
    return defect
