"""Whether this PostgreSQL is still the one: an old primary beside its successor makes no verifier fresh (P5)."""

import threading
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotInTime

from sqlalchemy import Connection, Engine, text

from broker.adapters.sql.engine import for_writing, make_engine
from broker.adapters.sql.failing import ENGINE_ERRORS, translated
from broker.errors import StoreUnavailable

# A server that waits for its standby waits for ever. One proof at a time is under way: each holds a connection there.
PATIENCE_S = 5.0
PROBE_TIMEOUT_S = 24 * 60 * 60

AWAITS_STANDBYS = text("SELECT current_setting('synchronous_standby_names') <> ''")
# Does nothing but that the commit has something to wait for.
PROBE = text("SELECT pg_logical_emit_message(true, 'broker', '')")


class Fence:
    """Proves that the primary's standbys still follow it. Safe to call from several threads.

    Only where commits wait for a standby (`synchronous_standby_names`) can it be proven: a standby that was promoted
    acknowledges nothing to its old primary. What that acknowledges after an instant, it was the primary at.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine: Engine | None = None
        self._url = engine.url
        self._lock = threading.Lock()
        self._under_way: Future[None] | None = None

    def is_needed(self, connection: Connection) -> bool:
        """Tell whether there is something to prove."""
        if connection.dialect.name != "postgresql":
            return False
        return bool(connection.execute(AWAITS_STANDBYS).scalar())

    def must_hold(self) -> None:
        """Return if all that was committed anywhere before this was called was committed here.

        Raises:
            StoreUnavailable: It cannot be proven: this is an old primary, or its standby is away.
        """
        with self._lock:
            before = self._under_way
        # One that began earlier proves nothing about now.
        if before is not None and not _is_done(before):
            raise _unproven()
        with self._lock:
            if self._under_way is not before:
                raise _unproven()
            probe = self._under_way = Future()
        # The process must not wait at its end for a server that waits for ever.
        threading.Thread(target=self._run, args=(probe,), name="fence", daemon=True).start()
        if not _is_done(probe):
            raise _unproven()
        with self._lock:
            self._under_way = None
        try:
            probe.result()
        except ENGINE_ERRORS as problem:
            raise translated(problem) from problem

    def close(self) -> None:
        """Give the connection back; a proof that is under way is left alone."""
        if self._engine is not None:
            self._engine.dispose()

    def _run(self, probe: "Future[None]") -> None:
        try:
            self._probe()
        except BaseException as problem:  # noqa: BLE001 - whoever waits for it hears of it
            probe.set_exception(problem)
        else:
            probe.set_result(None)

    def _probe(self) -> None:
        if self._engine is None:
            self._engine = make_engine(self._url, answer_timeout_s=PROBE_TIMEOUT_S)
        with for_writing(self._engine).begin() as connection:
            connection.execute(PROBE)


def _is_done(probe: "Future[None]") -> bool:
    try:
        probe.exception(PATIENCE_S)
    except NotInTime:
        return False
    return True


def _unproven() -> StoreUnavailable:
    return StoreUnavailable(
        "PostgreSQL waits for its standby",
        hint="bring the standby back; if it was promoted, stop the old primary and point store.url at the new one",
    )
