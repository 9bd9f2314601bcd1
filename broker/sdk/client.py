"""The client: mints tokens and keeps runs, for threads. `AsyncClient` is its twin for asyncio."""

import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self, Unpack

import grpc

from broker.sdk import approvals, asking
from broker.sdk.approvals import NOT_NOW, WAIT_S, Approval, Purpose, Waiting
from broker.sdk.asking import Minted, OpenedRun, OwnCertificate, Spec
from broker.sdk.channels import CHANNEL_OPTIONS, METHODS, ChildFields, Fields, proof_metadata
from broker.sdk.dpop import DpopKey
from broker.sdk.identity import AnyIdentity, channel_credentials, endpoint_list, without_token
from broker.sdk.retrying import Attempts
from broker.sdk.run import Run
from broker.sdk.run_key import RunKey
from broker.sdk.run_state import RunState
from broker.token.binding import Bound

TIMEOUT_S = 15.0


class Client:
    """Asks the brokers at `endpoints`, one at a time. Safe for threads; make a new one after a fork.

    Every write has a request id, made here, and is repeated with it while a broker is unavailable, so it
    happens once. All methods raise the classes of `broker.errors` and take at most `timeout_s`.
    """

    def __init__(self, endpoints: Sequence[str], identity: AnyIdentity | None, timeout_s: float) -> None:
        self._endpoints = endpoints
        self._identity = identity
        self._timeout_s = timeout_s
        self._turn = threading.Lock()
        self._at = 0
        # One that says who calls, and, where a token does that, one for calls that a run's key proves by itself.
        self._channels: dict[bool, grpc.Channel] = {}

    @classmethod
    def connect(
        cls,
        endpoint: str | Sequence[str],
        *,
        identity: AnyIdentity | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> Self:
        """Return a client. Nothing is sent before the first call. Raises ConfigInvalid."""
        channel_credentials(identity)
        return cls(endpoint_list(endpoint), identity, timeout_s)

    def mint(self, *, user_token: str = "", **fields: Unpack[Fields]) -> Minted:
        """Mint one token; the fields are those of `Spec`.

        `user_token` is the user's own identity token, which realms with two subjects ask for outside of runs.
        """
        answer = self._call("Mint", asking.mint_request(Spec(**fields), user_token))
        return asking.minted(answer.token)

    def mint_batch(self, specs: Sequence[Spec], *, user_token: str = "") -> list[Minted]:
        """Mint 1 to 1,000 tokens, all or none, in the order of `specs`."""
        answer = self._call("MintBatch", asking.batch_request(specs, user_token))
        return [asking.minted(token) for token in answer.tokens]

    def exchange(self, token: str, *, holder: DpopKey | None = None, **fields: Unpack[ChildFields]) -> Minted:
        """Mint a child of `token`, never wider than it is; `holder` is the DPoP key to which it is bound, if it is.

        A token of a run is exchanged by `Run.exchange`, which proves the run's key.
        """
        answer = self._call("Exchange", asking.exchange_request(token, **fields), holder=holder)
        return asking.minted(answer.token)

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
        key_file: str | Path | None = None,
        lifetime_s: int | None = None,
        binding: Bound | OwnCertificate | None = None,
        user_token: str = "",
        approval: str = "",
    ) -> Run:
        """Return a run for `with`: opened, kept alive in the background, closed. Raises Invalid.

        It has a key of its own, which is proven at each call: the run outlives the login that opened it. With
        `key_file` the key is kept in a new file (mode 0600), by which `resume` goes on after a crash; the file is
        gone when the run is closed. `lifetime_s` and `binding` are those of its tokens; `user_token` and `approval`
        are shown when it is opened, and never again.
        """
        spec = Spec(realm, partner, models, user, workload, lifetime_s=lifetime_s, binding=binding)
        return Run(self._call, RunState(spec, lease_s, key_file, user_token=user_token, approval=approval))

    def request_approval(
        self,
        *,
        purpose: Purpose,
        realm: str,
        partner: str,
        models: Sequence[str],
        user: str | None = None,
        workload: str | None = None,
        lifetime_s: int | None = None,
    ) -> Approval:
        """Ask for the approval of exactly one token, or one run (`lifetime_s`: its lease)."""
        request = approvals.asked(purpose, realm, partner, models, user, workload, lifetime_s)
        return approvals.told((self._call("RequestApproval", request)).approval)

    def approval(self, approval: str) -> Approval:
        """Return how an approval stands."""
        return approvals.told((self._call("GetApproval", approvals.looking(approval))).approval)

    def withdraw_approval(self, approval: str) -> Approval:
        """Take a request for approval back."""
        return approvals.told((self._call("Withdraw", approvals.withdrawing(approval))).approval)

    def wait_approval(self, approval: str, *, timeout_s: float = WAIT_S) -> Approval:
        """Wait until an approval can be spent, through outages of the broker.

        Raises:
            ApprovalOver: It never will be: denied, withdrawn, expired, spent, lapsed or void.
            ApprovalNeeded: It still waits after `timeout_s`.
        """
        waiting = Waiting(approval, time.monotonic() + timeout_s)
        while True:
            with suppress(*NOT_NOW):
                found = self.approval(approval)
                if waiting.judge(found):
                    return found
            time.sleep(waiting.rest_s(time.monotonic()))

    def resume(
        self,
        key_file: str | Path,
        *,
        lifetime_s: int | None = None,
        binding: Bound | OwnCertificate | None = None,
    ) -> Run:
        """Return the run that a key file is of, for `with`: kept alive again, and closed at the end.

        Raises:
            ConfigInvalid: The file is missing, damaged, or others may read it.
        """
        return Run(self._call, RunState.kept(key_file, lifetime_s=lifetime_s, binding=binding))

    def close(self) -> None:
        """End the connection. Calls after it connect anew."""
        with self._turn:
            channels, self._channels = self._channels, {}
        for channel in channels.values():
            channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _call(
        self,
        name: str,
        request: Any,
        key: RunKey | None = None,
        run: str | None = None,
        holder: DpopKey | None = None,
    ) -> Any:
        path, answer = METHODS[name]
        attempts = Attempts(time.monotonic() + self._timeout_s)
        while True:
            channel = self._connected(by_key=run is not None)
            method = channel.unary_unary(path, type(request).SerializeToString, answer.FromString)
            try:
                metadata = proof_metadata(path, request, key, run, holder)
                return method(request, timeout=attempts.timeout_s(time.monotonic()), metadata=metadata)
            except grpc.RpcError as failed:
                call: Any = failed
                failure = attempts.failure(call)
                if attempts.may_prove_again(failure, key):
                    continue
                rest_s = attempts.rest_s(call.code(), time.monotonic())
                if rest_s is None:
                    raise failure from failed
                self._elsewhere(channel)
            time.sleep(rest_s)

    def _connected(self, *, by_key: bool) -> grpc.Channel:
        identity = without_token(self._identity) if by_key else self._identity
        is_other = identity is not self._identity
        with self._turn:
            if is_other not in self._channels:
                # Files are read at each connection, so that renewed certificates are taken up.
                endpoint = self._endpoints[self._at % len(self._endpoints)]
                self._channels[is_other] = grpc.secure_channel(endpoint, channel_credentials(identity), CHANNEL_OPTIONS)
            return self._channels[is_other]

    def _elsewhere(self, failed: grpc.Channel) -> None:
        """Use another endpoint from now on. Calls under way on the old channel may finish: it ends with the last."""
        with self._turn:
            if failed in self._channels.values():
                self._channels = {}
                self._at += 1
