"""An end to the waiting for a client that connects and does not ask: handles are few, and this door asks no name."""

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

ASK_WITHIN_S = 15.0


class PatientProtocol(H11Protocol):
    """As uvicorn's, which waits for a first request, and for the end of any, as long as the client likes."""

    _next_look: asyncio.TimerHandle | None = None
    _last_seen: RequestResponseCycle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """As the protocol says."""
        super().connection_made(transport)
        self._look_later()

    def connection_lost(self, exc: Exception | None) -> None:
        """As the protocol says."""
        super().connection_lost(exc)
        if self._next_look is not None:
            self._next_look.cancel()

    def _look_later(self) -> None:
        self._next_look = self.loop.call_later(ASK_WITHIN_S, self._look)

    def _look(self) -> None:
        cycle: RequestResponseCycle | None = self.cycle
        is_answered = cycle is None or cycle.response_complete
        if is_answered and cycle is self._last_seen:
            # Not closed: TLS would wait half a minute more, for its goodbye.
            self.transport.abort()
            return
        self._last_seen = cycle
        self._look_later()
