"""A TCP proxy that forwards, holds, resets, or lets answers trickle."""

import socket
import struct
import threading
import time
from enum import Enum
from types import TracebackType

CHUNK = 65_536
TRICKLE_S = 0.2


class Behaviour(Enum):
    FORWARD = "forward"
    HOLD = "hold"  # takes connections and bytes, and answers nothing
    RESET = "reset"  # resets every connection
    TRICKLE = "trickle"  # answers byte by byte


class TcpProxy:
    """Listens on a loopback port and forwards to another. `accepted_at` has the time of each connection."""

    def __init__(self, upstream_port: int) -> None:
        self.upstream_port = upstream_port
        self.accepted_at: list[float] = []
        self.forwarded_bytes = 0
        self._behaviour = Behaviour.FORWARD
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = int(self._listener.getsockname()[1])
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def __enter__(self) -> "TcpProxy":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def behave(self, behaviour: Behaviour) -> None:
        self._behaviour = behaviour
        if behaviour is Behaviour.RESET:
            self.cut()

    def cut(self) -> None:
        """Reset what is open."""
        with self._lock:
            for connection in self._open:
                _reset(connection)
            self._open.clear()

    def close(self) -> None:
        self._closing.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        self._thread.join(timeout=5)

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.accepted_at.append(time.monotonic())
            if self._behaviour is Behaviour.RESET:
                _reset(client)
                continue
            try:
                server = socket.create_connection(("127.0.0.1", self.upstream_port), timeout=5)
            except OSError:
                _reset(client)
                continue
            server.settimeout(None)
            with self._lock:
                self._open |= {client, server}
            for source, target, is_answer in ((client, server, False), (server, client, True)):
                threading.Thread(target=self._pump, args=(source, target, is_answer), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, is_answer: bool) -> None:
        try:
            while data := source.recv(CHUNK):
                if self._behaviour is Behaviour.HOLD:
                    continue
                step = 1 if self._behaviour is Behaviour.TRICKLE and is_answer else CHUNK
                for start in range(0, len(data), step):
                    target.sendall(data[start : start + step])
                    self.forwarded_bytes += min(step, len(data) - start)
                    if step == 1 and self._closing.wait(TRICKLE_S):
                        return
            target.shutdown(socket.SHUT_WR)
        except OSError:
            pass
        finally:
            with self._lock:
                self._open.discard(source)
            source.close()


def _reset(connection: socket.socket) -> None:
    try:
        # Linger of no time: close sends RST instead of FIN.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.shutdown(socket.SHUT_RD)
    except OSError:
        pass
    connection.close()
