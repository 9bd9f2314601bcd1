"""A small broker for tests of clients: mints real tokens and keeps runs over mutual TLS, and fails on demand."""

import secrets
import threading
import time
from concurrent import futures
from dataclasses import replace
from typing import Any

import grpc

from broker.errors import Failure, NotGranted, RunEnded
from broker.sdk.failures import DETAILS_KEY, status_details
from broker.v1 import runs_pb2, runs_pb2_grpc, tokens_pb2, tokens_pb2_grpc
from tests.authority import Issued
from tests.realm_keys import RealmKeys

_ID_BYTES = 16


class TokenServer(tokens_pb2_grpc.TokenServiceServicer, runs_pb2_grpc.RunServiceServicer):
    """Does each request id once. `failures` are raised for the next calls, after the work is done."""

    def __init__(self, keys: RealmKeys, issued: Issued, *, lease_s: int = 60, life_s: int = 600) -> None:
        self.keys = keys
        self.lease_s = lease_s
        self.life_s = life_s
        self.calls: list[tuple[str, Any]] = []
        self.answers: dict[str, Any] = {}
        self.failures: list[tuple[grpc.StatusCode, Failure | None]] = []
        self.ended: set[str] = set()
        self.silent = threading.Event()
        self._index = 10
        self._turn = threading.Lock()
        self._server = grpc.server(futures.ThreadPoolExecutor(8))
        tokens_pb2_grpc.add_TokenServiceServicer_to_server(self, self._server)
        runs_pb2_grpc.add_RunServiceServicer_to_server(self, self._server)
        credentials = grpc.ssl_server_credentials(
            [(issued.key.read_bytes(), issued.certificate.read_bytes())],
            root_certificates=issued.ca.read_bytes(),
            require_client_auth=True,
        )
        self.endpoint = f"127.0.0.1:{self._server.add_secure_port('127.0.0.1:0', credentials)}"
        self._server.start()

    def __enter__(self) -> "TokenServer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.silent.set()
        self._server.stop(None).wait(10)

    def named(self, name: str) -> list[Any]:
        return [request for called, request in list(self.calls) if called == name]

    def Mint(self, request: tokens_pb2.MintRequest, context: grpc.ServicerContext) -> tokens_pb2.MintResponse:
        return self._once("Mint", request, context, lambda: tokens_pb2.MintResponse(token=self._mint(request.spec)))

    def MintBatch(
        self, request: tokens_pb2.MintBatchRequest, context: grpc.ServicerContext
    ) -> tokens_pb2.MintBatchResponse:
        return self._once(
            "MintBatch",
            request,
            context,
            lambda: tokens_pb2.MintBatchResponse(tokens=[self._mint(spec) for spec in request.specs]),
        )

    def OpenRun(self, request: runs_pb2.OpenRunRequest, context: grpc.ServicerContext) -> runs_pb2.OpenRunResponse:
        return self._once(
            "OpenRun",
            request,
            context,
            lambda: runs_pb2.OpenRunResponse(run=self._run(secrets.token_urlsafe(_ID_BYTES), request)),
        )

    def KeepRun(self, request: runs_pb2.KeepRunRequest, context: grpc.ServicerContext) -> runs_pb2.KeepRunResponse:
        return self._once(
            "KeepRun", request, context, lambda: runs_pb2.KeepRunResponse(run=self._run(request.run, request))
        )

    def CloseRun(self, request: runs_pb2.CloseRunRequest, context: grpc.ServicerContext) -> runs_pb2.CloseRunResponse:
        def close() -> runs_pb2.CloseRunResponse:
            run = self._run(request.run, request)
            run.state = runs_pb2.RUN_STATE_CLOSED
            return runs_pb2.CloseRunResponse(run=run)

        return self._once("CloseRun", request, context, close)

    def _once(self, name: str, request: Any, context: grpc.ServicerContext, work: Any) -> Any:
        with self._turn:
            self.calls.append((name, request))
            failure: tuple[grpc.StatusCode, Failure | None] | None = None
            if getattr(request, "run", "") in self.ended:
                failure = (grpc.StatusCode.FAILED_PRECONDITION, RunEnded("the run is closed"))
            elif request.request_id not in self.answers:
                self.answers[request.request_id] = work()
            if self.failures:
                failure = self.failures.pop(0)
        if failure is not None:
            code, told = failure
            if code is grpc.StatusCode.DEADLINE_EXCEEDED:
                self.silent.wait(60)
            if told is not None:
                context.set_trailing_metadata(((DETAILS_KEY, status_details(told, code)),))
            context.abort(code, "it failed")
        return self.answers[request.request_id]

    def _mint(self, spec: tokens_pb2.TokenSpec) -> tokens_pb2.MintedToken:
        self._index += 1
        now_s = int(time.time())
        kind, who = ("user", spec.user) if spec.user else ("workload", spec.workload)
        claims = replace(
            self.keys.claims(),
            partner=spec.partner,
            sub=f"{spec.partner}/{kind}/{who}",
            user=spec.user or None,
            workload=spec.workload or None,
            act={"sub": f"{spec.partner}/workload/{spec.workload}"} if spec.user and spec.workload else None,
            models=tuple(spec.models),
            scope=" ".join(f"model:{model}" for model in spec.models),
            run=spec.run or None,
            test=spec.test or None,
            iat=now_s,
            nbf=now_s - 5,
            exp=now_s + (spec.lifetime.seconds or self.life_s),
            idx=self._index,
        )
        named = {name: getattr(claims, name) for name in claims.__dataclass_fields__}
        minted = tokens_pb2.MintedToken(
            token=self.keys.mint(**named), id=claims.jti, index=claims.idx, grant="acme-evals"
        )
        minted.expires_at.FromSeconds(claims.exp)
        return minted

    def _run(self, run: str, request: Any) -> runs_pb2.Run:
        opened = runs_pb2.Run(
            id=run,
            realm=getattr(request, "realm", "evaluation"),
            partner=getattr(request, "partner", "acme"),
            models=getattr(request, "models", ["mythos"]),
            state=runs_pb2.RUN_STATE_OPEN,
        )
        opened.opened_at.FromSeconds(1_800_000_000)
        opened.lease_ends_at.FromSeconds(1_800_000_000 + self.lease_s)
        return opened


REFUSED = (grpc.StatusCode.PERMISSION_DENIED, NotGranted("no grant covers it"))
AWAY = (grpc.StatusCode.UNAVAILABLE, None)
SILENT = (grpc.StatusCode.DEADLINE_EXCEEDED, None)
