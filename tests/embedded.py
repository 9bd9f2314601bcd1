"""A broker in a thread of the test's own process, on a clock that the test may set wrong."""

import asyncio
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from broker.adapters.checkpoint_keys import LocalCheckpointKey
from broker.adapters.clock import SystemClock
from broker.adapters.key_rotation import Lifetimes
from broker.adapters.local_root import LocalRoot
from broker.adapters.memory_signer import make_memory_key
from broker.adapters.metrics import PrometheusMeter
from broker.assembly import Broker
from broker.composing import Parts
from broker.doors import Doors
from broker.key_home import KeyHome
from broker.publishing import LogParts
from tests.served import ADMIN, Served

OpenHome = Callable[[SystemClock, PrometheusMeter], KeyHome]


class Wall:
    """A machine's wall clock, set wrong by `off`."""

    def __init__(self) -> None:
        self.off = timedelta()

    def read(self) -> datetime:
        return datetime.now(UTC) + self.off


class Embedded(Served):
    """As Served, without a process: `stop` and `start` as often as needed. A start reads `wall` anew."""

    def __init__(
        self,
        folder: Path,
        *,
        wall: Wall | None = None,
        store: str = "",
        lifetimes: Lifetimes | None = None,
        open_home: OpenHome | None = None,
        **options: Any,
    ) -> None:
        super().__init__(folder, **options)
        self._lifetimes = lifetimes or Lifetimes()
        self._open_home = open_home or self._local_home
        self._wall = wall or Wall()
        self._store = store or f"sqlite:///{folder / 'ledger.db'}"
        self._thread: threading.Thread | None = None
        self._stop: threading.Event = threading.Event()

    def __exit__(self, *_: object) -> None:
        for channel in self._channels:
            channel.close()
        self.stop()

    def start(self) -> None:
        ready, self._stop = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, args=(ready, self._stop), daemon=True)
        self._thread.start()
        assert ready.wait(timeout=20)

    def stop(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=20)
            assert not self._thread.is_alive()

    def wipe(self) -> None:
        """Take the ledger away."""
        for file in self.folder.glob("ledger.db*"):
            file.unlink()

    def _local_home(self, _clock: SystemClock, _meter: PrometheusMeter) -> KeyHome:
        keys, secret = self.folder / "keys", b"a passphrase"
        return KeyHome(LocalRoot(keys, secret), LocalCheckpointKey(keys, secret), make_memory_key, signs_in_memory=True)

    def _run(self, ready: threading.Event, stop: threading.Event) -> None:
        async def serve() -> None:
            clock, meter = SystemClock(read_wall=self._wall.read), PrometheusMeter()
            home = self._open_home(clock, meter)
            parts = Parts(
                store_url=self._store,
                headroom_bytes=1 << 20,
                is_sole=True,
                root=home.root,
                make_token_key=home.make,
                signs_in_memory=home.signs_in_memory,
                lifetimes=self._lifetimes,
                admins=frozenset({ADMIN}),
                max_ttl=timedelta(days=1),
                max_run=timedelta(days=30),
                clock=clock,
                meter=meter,
                log=LogParts(home.checkpoints),
                key_home_problem=home.problem,
            )
            papers = self.server
            doors = Doors(f"127.0.0.1:{self.port}", None, papers.certificate, papers.key, self.authority.ca)
            broker = Broker(parts, doors)

            def on_ready() -> None:
                self.port = broker.port
                ready.set()

            async def watch() -> None:
                await asyncio.to_thread(stop.wait)
                broker.stop()

            watching = asyncio.create_task(watch())
            try:
                await broker.serve(on_ready)
            finally:
                stop.set()
                await watching
                await asyncio.to_thread(home.close)

        asyncio.run(serve())
