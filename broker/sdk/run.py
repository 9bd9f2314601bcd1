"""A run of evaluation, for threads: opened, kept alive, closed; its tokens asked for together and renewed in time."""

import logging
import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Self, Unpack

from broker.errors import Failure, RunEnded
from broker.sdk.asking import Minted, close_request, exchange_request, keep_request, minted
from broker.sdk.channels import ChildFields
from broker.sdk.gathering import Want
from broker.sdk.run_key import RunKey
from broker.sdk.run_state import NOT_NOW, RunState

log = logging.getLogger("broker.sdk")

Call = Callable[[str, Any, RunKey, str | None], Any]
"""Makes one call of a run, by its name, proven with the run's key; the last is the run's id, None in the first."""


class Run:
    """A run for `with`. Made by `Client.run` and `Client.resume`. Safe for threads."""

    def __init__(self, call: Call, state: "RunState[Future[str]]") -> None:
        self._call = call
        self._state = state
        self._turn = threading.Lock()
        self._closing = threading.Event()
        self._keeping: threading.Thread | None = None

    @property
    def id(self) -> str:
        """The run's id, once it is open."""
        return self._state.id

    def token(self, *, test: str | None = None, models: Sequence[str] | None = None) -> str:
        """Return a token of this run, for `test`: the one of last time until it is about to end.

        It is for all models of the run, or for those named. Any number of threads may ask at once; who misses a
        token while others are asked for shares the next call with all who do.

        Raises:
            RunEnded: The run is over, by an admin or because it could not be kept alive.
            LimitReached: See its `metadata["limit"]` and `retry_after_s`.
            Failure: As `Client.mint`.
        """
        state = self._state
        with self._turn:
            want = state.want(test, models)
            held = state.wallet.get(want, time.monotonic())
            if held is not None:
                return held
            future, begins = state.gathering.find(want), False
            if future is None:
                future = Future()
                begins = state.gathering.add(want, future)
        if begins:
            threading.Thread(target=self._fly, name="broker-run-tokens", daemon=True).start()
        try:
            return future.result()
        except NOT_NOW:
            with self._turn:
                spare = state.wallet.spare(want, time.monotonic())
            if spare is None or state.ended is not None:
                raise
            return spare

    def exchange(self, token: str, **fields: Unpack[ChildFields]) -> Minted:
        """Mint a child of a token of this run, never wider than it is: for a sandbox that is given this one only.

        Raises:
            Failure: As `Client.exchange`.
        """
        answer = self._call("Exchange", exchange_request(token, **fields), self._state.key, self._state.id)
        return minted(answer.token)

    def leave(self) -> None:
        """Let the block end without closing the run: its key file goes on with it, until its lease ends."""
        self._state.is_left = True

    def __enter__(self) -> Self:
        state = self._state
        name, request = state.beginning()
        opened = self._call(name, request, state.key, state.id or None).run
        try:
            state.begun(opened)
        except Failure:
            self._call("CloseRun", close_request(opened.id), state.key, opened.id)
            raise
        self._keeping = threading.Thread(target=self._keep, name="broker-run", daemon=True)
        self._keeping.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        state = self._state
        self._closing.set()
        if self._keeping is not None:
            # Not for longer: it may be waiting for a broker that is away.
            self._keeping.join(1.0)
        state.ended = RunEnded("the run is closed" if not state.is_left else "the run was left")
        if state.is_left:
            return
        try:
            self._call("CloseRun", close_request(state.id), state.key, state.id)
            state.closed()
        except Failure as failure:
            # A failure does not hide the one that the block ended with.
            if error is None:
                raise
            log.warning("a run could not be closed, its lease will run out: %s", failure)

    def _fly(self) -> None:
        """Ask for what is missed, call after call, until nothing is."""
        gathering = self._state.gathering
        while True:
            with self._turn:
                batch = gathering.take()
            if not batch:
                return
            wants, asked_s = tuple(batch), time.monotonic()
            try:
                tokens = self._asked(wants, asked_s)
            except BaseException as failure:  # noqa: BLE001 - a future carries whatever happened
                with self._turn:
                    if not (isinstance(failure, Failure) and self._is_split(failure, batch)):
                        gathering.failed(batch, failure)
            else:
                with self._turn:
                    gathering.landed(batch, tokens)

    def _is_split(self, failure: Failure, batch: "dict[Want, Future[str]]") -> bool:
        state = self._state
        state.is_over(failure)
        if state.is_batch_limit(failure):
            return state.gathering.too_many(batch)
        return state.gathering.trim(batch, state.room(failure), failure)

    def _asked(self, wants: Sequence[Want], asked_s: float) -> list[str]:
        state = self._state
        name, request = state.minting(wants)
        answer = self._call(name, request, state.key, state.id)
        with self._turn:
            return state.minted(wants, answer, asked_s)

    def _keep(self) -> None:
        state = self._state
        while not self._closing.wait(state.keep_every_s * random.uniform(0.8, 1.0)):
            try:
                self._call("KeepRun", keep_request(state.id), state.key, state.id)
            except Failure as failure:
                if state.is_over(failure):
                    return
                # The lease is longer than the time to the next try.
                log.warning("a run could not be kept alive: %s", failure)
