"""The client for asyncio: as `Client`, in the caller's loop."""

import asyncio
import logging
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self, Unpack

import grpc.aio

from broker.errors import Failure, NotFound, RunEnded
from broker.sdk import asking
from broker.sdk.asking import Minted, OpenedRun, Spec
from broker.sdk.channels import CHANNEL_OPTIONS, METHODS, Fields, Wallet
from broker.sdk.client import TIMEOUT_S
from broker.sdk.identity import Identity, TokenIdentity, channel_credentials, endpoint_list
from broker.sdk.retrying import Attempts

log = logging.getLogger("broker.sdk")


class AsyncClient:
    """As `Client`, for the coroutines of one event loop."""

    def __init__(self, endpoints: Sequence[str], identity: Identity | TokenIdentity | None, timeout_s: float) -> None:
        self._endpoints = endpoints
        self._identity = identity
        self._timeout_s = timeout_s
        self._at = 0
        self._channel: grpc.aio.Channel | None = None

    @classmethod
    def connect(
        cls,
        endpoint: str | Sequence[str],
        *,
        identity: Identity | TokenIdentity | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> Self:
        """Return a client. Nothing is sent before the first call. Raises ConfigInvalid."""
        channel_credentials(identity)
        return cls(endpoint_list(endpoint), identity, timeout_s)

    async def mint(self, **fields: Unpack[Fields]) -> Minted:
        """Mint one token; the fields are those of `Spec`."""
        answer = await self._call("Mint", asking.mint_request(Spec(**fields)))
        return asking.minted(answer.token)

    async def mint_batch(self, specs: Sequence[Spec]) -> list[Minted]:
        """Mint 1 to 1,000 tokens, all or none, in the order of `specs`."""
        answer = await self._call("MintBatch", asking.batch_request(specs))
        return [asking.minted(token) for token in answer.tokens]

    async def open_run(
        self, *, realm: str, partner: str, models: Sequence[str], lease_s: int | None = None
    ) -> OpenedRun:
        """Open a run. The caller keeps and closes it; `run` does both by itself."""
        answer = await self._call("OpenRun", asking.open_request(realm, partner, models, lease_s))
        return asking.opened_run(answer.run)

    async def keep_run(self, run: str) -> OpenedRun:
        """Extend a run's lease from now."""
        return asking.opened_run((await self._call("KeepRun", asking.keep_request(run))).run)

    async def close_run(self, run: str) -> OpenedRun:
        """Close a run, and with it revoke every token of it."""
        return asking.opened_run((await self._call("CloseRun", asking.close_request(run))).run)

    def run(
        self,
        *,
        realm: str,
        partner: str,
        models: Sequence[str],
        user: str | None = None,
        workload: str | None = None,
        lease_s: int | None = None,
    ) -> "AsyncRun":
        """Return a run for `async with`: opened, kept alive in the background, closed. Raises Invalid."""
        return AsyncRun(self, Spec(realm, partner, models, user, workload), lease_s)

    async def close(self) -> None:
        """End the connection. Calls after it connect anew."""
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close(None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    async def _call(self, name: str, request: Any) -> Any:
        path, answer = METHODS[name]
        attempts = Attempts(time.monotonic() + self._timeout_s)
        while True:
            if self._channel is None:
                endpoint = self._endpoints[self._at % len(self._endpoints)]
                credentials = channel_credentials(self._identity)
                self._channel = grpc.aio.secure_channel(endpoint, credentials, options=CHANNEL_OPTIONS)
            channel = self._channel
            method: Any = channel.unary_unary(path, type(request).SerializeToString, answer.FromString)
            try:
                return await method(request, timeout=attempts.timeout_s(time.monotonic()))
            except grpc.aio.AioRpcError as failed:
                failure = attempts.failure(failed)
                rest_s = attempts.rest_s(failed.code(), time.monotonic())
                if rest_s is None:
                    raise failure from failed
                if self._channel is channel:
                    # Calls under way on the old channel may finish: it ends with the last.
                    self._channel = None
                    self._at += 1
            await asyncio.sleep(rest_s)


class AsyncRun:
    """A run for `async with`. Made by `AsyncClient.run`."""

    def __init__(self, client: AsyncClient, spec: Spec, lease_s: int | None) -> None:
        self._client = client
        self._spec = spec
        self._lease_s = lease_s
        self._wallet = Wallet()
        self._turns: dict[str | None, asyncio.Lock] = {}
        self._keeping: asyncio.Task[None] | None = None
        self._ended: Failure | None = None
        self.id = ""
        """The run's id, once it is open."""

    async def token(self, *, test: str | None = None) -> str:
        """As `Run.token`."""
        if self._ended is not None:
            raise self._ended
        async with self._turns.setdefault(test, asyncio.Lock()):
            held = self._wallet.get(test, time.monotonic())
            if held is None:
                asked_s = time.monotonic()
                fields = Fields(
                    realm=self._spec.realm,
                    partner=self._spec.partner,
                    models=self._spec.models,
                    user=self._spec.user,
                    workload=self._spec.workload,
                    run=self.id,
                    test=test,
                )
                held = (await self._client.mint(**fields)).text
                self._wallet.put(test, held, asked_s)
            return held

    async def __aenter__(self) -> Self:
        spec = self._spec
        request = asking.open_request(spec.realm, spec.partner, spec.models, self._lease_s)
        opened = (await self._client._call("OpenRun", request)).run  # noqa: SLF001 - the two are one mechanism
        self.id = opened.id
        self._keeping = asyncio.create_task(self._keep(asking.keep_every_s(opened)))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)
        self._ended = RunEnded("the run is closed")
        try:
            await self._client.close_run(self.id)
        except Failure as failure:
            if error is None:
                raise
            log.warning("a run could not be closed, its lease will run out: %s", failure)

    async def _keep(self, every_s: float) -> None:
        while True:
            await asyncio.sleep(every_s)
            try:
                await self._client.keep_run(self.id)
            except (RunEnded, NotFound) as over:
                self._ended = over
                return
            except Failure as failure:
                # The lease is longer than the time to the next try.
                log.warning("a run could not be kept alive: %s", failure)
