"""Other brokers on the same PostgreSQL: told by them what was committed, and telling them that this one is there."""

import threading
import time
from collections.abc import Callable
from typing import Any

from sqlalchemy import Engine

from broker.adapters.sql.failing import LastFailure, StoreBroken

LISTEN_S = 0.2
# Beside the one under which brokers migrate.
PRESENCE_LOCK = 7444
PRESENCE_WAIT_S = 3.0
NOT_ALONE_HINT = "stop it; several brokers on one database need store.sole_broker = false, or unset, in each"


class Listener:
    """Waits for PostgreSQL's notifications; while it cannot, the feed's heartbeat polls anyway.

    Its session also says that this broker is there: a sole one excludes all others, because it tells a
    revocation complete as if nobody else had verifiers (P6).
    """

    def __init__(self, engine: Engine, on_change: Callable[[], None], *, is_sole: bool, last: LastFailure) -> None:
        self._engine = engine
        self._on_change = on_change
        self._is_sole = is_sole
        self._last = last
        self._stopping = threading.Event()
        self._first: Any = self._connected()
        self._thread = threading.Thread(target=self._run, name="ledger-listener", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread; another broker may be the only one then."""
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._listen()
            except StoreBroken as not_alone:
                self._last.look_at(not_alone)
                return
            except Exception:  # noqa: BLE001 - whatever it was, try again; the poll backs it up
                self._stopping.wait(1)

    def _connected(self) -> Any:
        connection: Any = self._engine.raw_connection()
        driver = connection.driver_connection
        driver.autocommit = True
        shared = "" if self._is_sole else "_shared"
        deadline_s = time.monotonic() + PRESENCE_WAIT_S
        while not driver.execute(f"SELECT pg_try_advisory_lock{shared}({PRESENCE_LOCK})").fetchone()[0]:
            # PostgreSQL may not have noticed yet that the one who held it is gone.
            if time.monotonic() > deadline_s or self._stopping.wait(0.1):
                connection.invalidate()
                connection.close()
                raise StoreBroken("another broker is using this PostgreSQL database", hint=NOT_ALONE_HINT)
        return connection

    def _listen(self) -> None:
        connection, self._first = self._first or self._connected(), None
        try:
            driver = connection.driver_connection
            driver.execute("LISTEN broker_changed")
            # What was committed before this went unheard.
            self._on_change()
            while not self._stopping.is_set():
                for _ in driver.notifies(timeout=LISTEN_S, stop_after=1):
                    self._on_change()
        finally:
            connection.invalidate()
            connection.close()
