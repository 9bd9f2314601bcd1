"""A TCP proxy that can stop forwarding without closing anything, one way or both, and keeps what came meanwhile."""

import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType

CHUNK = 65_536
LOOK_EVERY_S = 0.01
# Beyond it, the proxy reads no more, and the sender finds its way blocked.
MAX_HELD_BYTES = 8 << 20


@dataclass(slots=True)
class Way:
    """One direction of all connections. What arrived before `until` may pass."""

    until: float = float("inf")
    bytes_per_s: float = float("inf")


@dataclass(slots=True, eq=False)
class Pump:
    """One direction of one connection."""

    source: socket.socket
    target: socket.socket
    way: Way
    held: deque[tuple[float, bytes]] = field(default_factory=deque)
    is_ended: bool = False
    passed_at: float = 0.0


class StallingProxy:
    """Listens on a loopback port. `to_broker` and `to_verifier` can be stalled, slowed and healed at any time."""

    def __init__(
        self,
        upstream_port: int,
        *,
        connect: Callable[[], socket.socket] | None = None,
        max_held_bytes: int = MAX_HELD_BYTES,
    ) -> None:
        self._max_held_bytes = max_held_bytes
        self.to_broker = Way()
        self.to_verifier = Way()
        self._connect = connect or (lambda: socket.create_connection(("127.0.0.1", upstream_port), timeout=5))
        self._closing = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=16)
        self._listener.settimeout(LOOK_EVERY_S)
        self.port = int(self._listener.getsockname()[1])
        self._pumps: list[Pump] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def __enter__(self) -> "StallingProxy":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        self._thread.join(10)
        self._listener.close()
        for pump in self._pumps:
            pump.source.close()

    def stall(self, *ways: Way) -> float:
        """Let nothing more through; return the instant."""
        at = time.monotonic()
        for way in ways:
            way.until = at
        return at

    def heal(self) -> None:
        """Let everything through, first what was held."""
        for way in (self.to_broker, self.to_verifier):
            way.until = way.bytes_per_s = float("inf")

    def _run(self) -> None:
        while not self._closing.is_set():
            self._accept()
            ready = self._readable()
            now = time.monotonic()
            for pump in self._pumps:
                if pump.source in ready:
                    self._take_in(pump, now)
                self._pass_on(pump, now)
            self._forget_ended()

    def _accept(self) -> None:
        self._listener.settimeout(0 if self._pumps else LOOK_EVERY_S)
        try:
            client, _ = self._listener.accept()
        except OSError:
            return
        try:
            server = self._connect()
        except OSError:
            client.close()
            return
        for connection in (client, server):
            connection.setblocking(False)
        self._pumps += [Pump(client, server, self.to_broker), Pump(server, client, self.to_verifier)]

    def _readable(self) -> set[socket.socket]:
        with selectors.DefaultSelector() as waiting:
            for pump in self._pumps:
                if not pump.is_ended and sum(len(data) for _, data in pump.held) < self._max_held_bytes:
                    waiting.register(pump.source, selectors.EVENT_READ)
            if not waiting.get_map():
                self._closing.wait(LOOK_EVERY_S)
                return set()
            return {key.fileobj for key, _ in waiting.select(LOOK_EVERY_S)}  # type: ignore[misc]

    def _take_in(self, pump: Pump, now: float) -> None:
        try:
            data = pump.source.recv(CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        pump.held.append((now, data))
        pump.is_ended = not data

    def _pass_on(self, pump: Pump, now: float) -> None:
        allowed = CHUNK * 16.0
        if pump.way.bytes_per_s != float("inf"):
            allowed = (now - (pump.passed_at or now)) * pump.way.bytes_per_s
            if allowed < 1:
                pump.passed_at = pump.passed_at or now
                return
        pump.passed_at = now
        while pump.held and pump.held[0][0] <= pump.way.until and allowed >= 1:
            arrived, data = pump.held.popleft()
            if not data:
                _end(pump.target)
                return
            piece, rest = data[: int(allowed)], data[int(allowed) :]
            try:
                sent = pump.target.send(piece)
            except BlockingIOError:
                sent = 0
            except OSError:
                # Nobody reads it any more; the other direction finds out by itself.
                pump.held.clear()
                pump.is_ended = True
                return
            allowed -= sent
            rest = data[sent:]
            if rest:
                pump.held.appendleft((arrived, rest))
                return

    def _forget_ended(self) -> None:
        by_source = {pump.source: pump for pump in self._pumps}
        for pump in list(self._pumps):
            other = by_source.get(pump.target)
            if pump.is_ended and not pump.held and other is not None and other.is_ended and not other.held:
                self._pumps.remove(pump)
                self._pumps.remove(other)
                pump.source.close()
                other.source.close()
                return


def _end(target: socket.socket) -> None:
    try:
        target.shutdown(socket.SHUT_WR)
    except OSError:
        return
