"""The client: mints tokens and keeps runs, for threads. `AsyncClient` is its twin for asyncio."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self, Unpack

import grpc

from broker.errors import Failure, NotFound, RunEnded
from broker.sdk import asking
from broker.sdk.asking import Minted, OpenedRun, Spec
from broker.sdk.channels import CHANNEL_OPTIONS, METHODS, Fields, Wallet
from broker.sdk.identity import Identity, TokenIdentity, channel_credentials, endpoint_list
from broker.sdk.retrying import Attempts

log = logging.getLogger("broker.sdk")

TIMEOUT_S = 15.0


class Client:
    """Asks the brokers at `endpoints`, one at a time. Safe for threads; make a new one after a fork.

    Every write has a request id, made here, and is repeated with it while a broker is unavailable, so it
    happens once. All methods raise the classes of `broker.errors` and take at most `timeout_s`.
    """

    def __init__(self, endpoints: Sequence[str], identity: Identity | TokenIdentity | None, timeout_s: float) -> None:
        self._endpoints = endpoints
        self._identity = identity
        self._timeout_s = timeout_s
        self._turn = threading.Lock()
        self._at = 0
        self._channel: grpc.Channel | None = None

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

    def mint(self, **fields: Unpack[Fields]) -> Minted:
        """Mint one token; the fields are those of `Spec`."""
        answer = self._call("Mint", asking.mint_request(Spec(**fields)))
        return asking.minted(answer.token)

    def mint_batch(self, specs: Sequence[Spec]) -> list[Minted]:
        """Mint 1 to 1,000 tokens, all or none, in the order of `specs`."""
        answer = self._call("MintBatch", asking.batch_request(specs))
        return [asking.minted(token) for token in answer.tokens]

    def open_run(self, *, realm: str, partner: str, models: Sequence[str], lease_s: int | None = None) -> OpenedRun:
        """Open a run. The caller keeps and closes it; `run` does both by itself."""
        return asking.opened_run(self._call("OpenRun", asking.open_request(realm, partner, models, lease_s)).run)

    def keep_run(self, run: str) -> OpenedRun:
        """Extend a run's lease from now."""
        return asking.opened_run(self._call("KeepRun", asking.keep_request(run)).run)

    def close_run(self, run: str) -> OpenedRun:
        """Close a run, and with it revoke every token of it."""
        return asking.opened_run(self._call("CloseRun", asking.close_request(run)).run)

    def run(
        self,
        *,
        realm: str,
        partner: str,
        models: Sequence[str],
        user: str | None = None,
        workload: str | None = None,
        lease_s: int | None = None,
    ) -> "Run":
        """Return a run for `with`: opened, kept alive in the background, closed. Raises Invalid."""
        return Run(self, Spec(realm, partner, models, user, workload), lease_s)

    def close(self) -> None:
        """End the connection. Calls after it connect anew."""
        with self._turn:
            channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _call(self, name: str, request: Any) -> Any:
        path, answer = METHODS[name]
        attempts = Attempts(time.monotonic() + self._timeout_s)
        while True:
            channel = self._connected()
            method = channel.unary_unary(path, type(request).SerializeToString, answer.FromString)
            try:
                return method(request, timeout=attempts.timeout_s(time.monotonic()))
            except grpc.RpcError as failed:
                call: Any = failed
                failure = attempts.failure(call)
                rest_s = attempts.rest_s(call.code(), time.monotonic())
                if rest_s is None:
                    raise failure from failed
                self._elsewhere(channel)
            time.sleep(rest_s)

    def _connected(self) -> grpc.Channel:
        with self._turn:
            if self._channel is None:
                # Files are read at each connection, so that renewed certificates are taken up.
                endpoint = self._endpoints[self._at % len(self._endpoints)]
                self._channel = grpc.secure_channel(endpoint, channel_credentials(self._identity), CHANNEL_OPTIONS)
            return self._channel

    def _elsewhere(self, failed: grpc.Channel) -> None:
        """Use another endpoint from now on. Calls under way on the old channel may finish: it ends with the last."""
        with self._turn:
            if self._channel is failed:
                self._channel = None
                self._at += 1


class Run:
    """A run for `with`. Made by `Client.run`."""

    def __init__(self, client: Client, spec: Spec, lease_s: int | None) -> None:
        self._client = client
        self._spec = spec
        self._lease_s = lease_s
        self._wallet = Wallet()
        self._turns: dict[str | None, threading.Lock] = {}
        self._turn = threading.Lock()
        self._closing = threading.Event()
        self._keeping: threading.Thread | None = None
        self._ended: Failure | None = None
        self.id = ""
        """The run's id, once it is open."""

    def token(self, *, test: str | None = None) -> str:
        """Return a token of this run, for `test`: the one of last time until it is about to end.

        Raises:
            RunEnded: The run is over, by an admin or because it could not be kept alive.
            Failure: As `Client.mint`.
        """
        if self._ended is not None:
            raise self._ended
        with self._turn:
            turn = self._turns.setdefault(test, threading.Lock())
        with turn:
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
                held = self._client.mint(**fields).text
                self._wallet.put(test, held, asked_s)
            return held

    def __enter__(self) -> Self:
        spec = self._spec
        request = asking.open_request(spec.realm, spec.partner, spec.models, self._lease_s)
        opened = self._client._call("OpenRun", request).run  # noqa: SLF001 - the two classes are one mechanism
        self.id = opened.id
        keep_every_s = asking.keep_every_s(opened)
        self._keeping = threading.Thread(target=self._keep, args=(keep_every_s,), name="broker-run", daemon=True)
        self._keeping.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._closing.set()
        if self._keeping is not None:
            # Not for longer: it may be waiting for a broker that is away.
            self._keeping.join(1.0)
        self._ended = RunEnded("the run is closed")
        _closing(lambda: self._client.close_run(self.id), error)

    def _keep(self, every_s: float) -> None:
        while not self._closing.wait(every_s):
            try:
                self._client.keep_run(self.id)
            except (RunEnded, NotFound) as over:
                self._ended = over
                return
            except Failure as failure:
                # The lease is longer than the time to the next try.
                log.warning("a run could not be kept alive: %s", failure)


def _closing(close: Callable[[], object], error: BaseException | None) -> None:
    """Close a run at the end of `with`; a failure does not hide the one that the block ended with."""
    try:
        close()
    except Failure as failure:
        if error is None:
            raise
        log.warning("a run could not be closed, its lease will run out: %s", failure)
