"""A run of evaluation for asyncio: as `Run`, in the caller's loop."""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import Any, Self, Unpack

from broker.errors import Failure, RunEnded
from broker.sdk.asking import Minted, close_request, exchange_request, keep_request, minted
from broker.sdk.channels import ChildFields
from broker.sdk.gathering import Want
from broker.sdk.run_key import RunKey
from broker.sdk.run_state import NOT_NOW, RunState

log = logging.getLogger("broker.sdk")

Call = Callable[[str, Any, RunKey, str | None], Awaitable[Any]]


class AsyncRun:
    """A run for `async with`. Made by `AsyncClient.run` and `AsyncClient.resume`. For the coroutines of one loop."""

    def __init__(self, call: Call, state: "RunState[asyncio.Future[str]]") -> None:
        self._call = call
        self._state = state
        self._keeping: asyncio.Task[None] | None = None
        # A task that nobody holds may be collected before its end.
        self._flights: set[asyncio.Task[None]] = set()

    @property
    def id(self) -> str:
        """The run's id, once it is open."""
        return self._state.id

    async def token(self, *, test: str | None = None, models: Sequence[str] | None = None) -> str:
        """As `Run.token`."""
        state = self._state
        want = state.want(test, models)
        held = state.wallet.get(want, time.monotonic())
        if held is not None:
            return held
        future = state.gathering.find(want)
        if future is None:
            future = asyncio.get_running_loop().create_future()
            # Those who wait may be cancelled, all of them: then nobody asks how it ended.
            future.add_done_callback(lambda done: done.cancelled() or done.exception())
            if state.gathering.add(want, future):
                flight = asyncio.create_task(self._fly())
                self._flights.add(flight)
                flight.add_done_callback(self._flights.discard)
        try:
            # One who is cancelled must not take the token from the others who wait for it.
            return await asyncio.shield(future)
        except NOT_NOW:
            spare = state.wallet.spare(want, time.monotonic())
            if spare is None or state.ended is not None:
                raise
            return spare

    async def exchange(self, token: str, **fields: Unpack[ChildFields]) -> Minted:
        """Mint a child of a token of this run, never wider than it is: for a sandbox that is given this one only.

        Raises:
            Failure: As `Client.exchange`.
        """
        answer = await self._call("Exchange", exchange_request(token, **fields), self._state.key, self._state.id)
        return minted(answer.token)

    def leave(self) -> None:
        """As `Run.leave`."""
        self._state.is_left = True

    async def __aenter__(self) -> Self:
        state = self._state
        name, request = state.beginning()
        opened = (await self._call(name, request, state.key, state.id or None)).run
        try:
            state.begun(opened)
        except Failure:
            await self._call("CloseRun", close_request(opened.id), state.key, opened.id)
            raise
        self._keeping = asyncio.create_task(self._keep())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        state = self._state
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)
        state.ended = RunEnded("the run is closed" if not state.is_left else "the run was left")
        if state.is_left:
            return
        try:
            await self._call("CloseRun", close_request(state.id), state.key, state.id)
            state.closed()
        except Failure as failure:
            # A failure does not hide the one that the block ended with.
            if error is None:
                raise
            log.warning("a run could not be closed, its lease will run out: %s", failure)

    async def _fly(self) -> None:
        """Ask for what is missed, call after call, until nothing is."""
        state = self._state
        # All who ask in this turn of the loop come along.
        await asyncio.sleep(0)
        while batch := state.gathering.take():
            wants, asked_s = tuple(batch), time.monotonic()
            try:
                tokens = await self._asked(wants, asked_s)
            except BaseException as failure:  # noqa: BLE001 - a future carries whatever happened
                if not (isinstance(failure, Failure) and self._is_split(failure, batch)):
                    state.gathering.failed(batch, failure)
            else:
                state.gathering.landed(batch, tokens)

    def _is_split(self, failure: Failure, batch: "dict[Want, asyncio.Future[str]]") -> bool:
        state = self._state
        state.is_over(failure)
        if state.is_batch_limit(failure):
            return state.gathering.too_many(batch)
        return state.gathering.trim(batch, state.room(failure), failure)

    async def _asked(self, wants: Sequence[Want], asked_s: float) -> list[str]:
        state = self._state
        name, request = state.minting(wants)
        answer = await self._call(name, request, state.key, state.id)
        return state.minted(wants, answer, asked_s)

    async def _keep(self) -> None:
        state = self._state
        while True:
            await asyncio.sleep(state.keep_every_s * random.uniform(0.8, 1.0))
            try:
                await self._call("KeepRun", keep_request(state.id), state.key, state.id)
            except Failure as failure:
                if state.is_over(failure):
                    return
                # The lease is longer than the time to the next try.
                log.warning("a run could not be kept alive: %s", failure)
