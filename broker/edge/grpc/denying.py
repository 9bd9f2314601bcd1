"""Keep denials for who asks why: taken where every refusal passes, written about once a second."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from broker.domain.asking import Ask
from broker.edge.grpc.translate import ask, is_request_id
from broker.errors import Failure
from broker.service.calling import Caller
from broker.service.denials import DenialBook
from broker.v1 import runs_pb2, tokens_pb2

WRITE_EVERY_S = 1.0


class Denying:
    """Runs a denial book. One event loop owns it; the store is asked in a thread of its own."""

    def __init__(self, book: DenialBook) -> None:
        self.book = book
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="denials")

    def refused(self, method: str, caller: Caller, request: Any, failure: Failure) -> None:
        """Note that a mint or a run was refused. Does no I/O, and never fails the call again."""
        request_id = getattr(request, "request_id", "")
        asks = [] if method == "TokenService/Exchange" else _asks(caller, request)
        if asks is not None and is_request_id(request_id):
            self.book.note(caller, method, request_id, asks, failure)

    async def run(self) -> None:
        """Write for as long as the task lives."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(WRITE_EVERY_S)
            with suppress(Failure):
                await loop.run_in_executor(self._thread, self.book.write)

    async def close(self) -> None:
        """Write what waits. Call before the store is closed."""
        with suppress(Failure):
            await asyncio.get_running_loop().run_in_executor(self._thread, self.book.write)
        self._thread.shutdown(wait=False)


def _asks(caller: Caller, request: Any) -> Sequence[Ask] | None:
    """Return what was asked for, as far as it can be read; None: it was neither a mint nor a run."""
    match request:
        case tokens_pb2.MintRequest():
            specs = [request.spec]
        case tokens_pb2.MintBatchRequest():
            specs = list(request.specs)
        case runs_pb2.OpenRunRequest():
            specs = [_spec(request)]
        case _:
            return None
    asks = []
    for spec in specs:
        with suppress(Failure):
            asks.append(ask(spec, caller.environment, caller))
    return asks


def _spec(request: runs_pb2.OpenRunRequest) -> tokens_pb2.TokenSpec:
    spec = tokens_pb2.TokenSpec(realm=request.realm, partner=request.partner, models=request.models)
    for name in ("user", "workload"):
        if getattr(request, name):
            setattr(spec, name, getattr(request, name))
    return spec
