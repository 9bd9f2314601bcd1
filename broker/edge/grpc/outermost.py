"""The outermost interceptor: who calls, what failed, one log line; nothing else leaves the server."""

import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from dataclasses import replace
from typing import Any, NoReturn, cast

import grpc
from google.protobuf.message import DecodeError
from grpc.aio import AbortError, ServerInterceptor, ServicerContext

from broker.edge.grpc.callers import PeerCertificate, PeerCertificates
from broker.edge.grpc.failures import DETAILS_KEY, code_of, details_of
from broker.edge.grpc.login import LoginDoor, must_not_authorize
from broker.edge.grpc.translate import is_request_id
from broker.errors import Defect, Failure, Invalid
from broker.service.calling import Caller, identify
from broker.service.metering import Meter
from broker.service.policies import Policies
from broker.service.ports import Clock
from broker.service.users import prove_user

log = logging.getLogger("broker.calls")

Unary = Callable[..., Awaitable[Any]]
Streaming = Callable[..., AsyncIterator[Any]]

OURS = "/broker.v1."
CALLER: ContextVar[Caller] = ContextVar("caller")


class Outermost(ServerInterceptor):
    """Identifies the principal on each call and maps every failure through the one table.

    Callers are proven by their certificates or, `by_token`, by the login door and by nothing else.
    """

    def __init__(
        self,
        policies: Policies,
        clock: Clock,
        meter: Meter,
        admins: frozenset[str],
        login: LoginDoor,
        *,
        by_token: bool = False,
    ) -> None:
        self._policies = policies
        self._clock = clock
        self._meter = meter
        self._admins = admins
        self._login = login
        self._by_token = by_token
        self._certificates = PeerCertificates()
        self._wrapped: dict[str, grpc.RpcMethodHandler] = {}
        self.on_refused: Callable[[str, Caller, Any, Failure], None] = _unheard
        """Called in the loop with each refused unary call of somebody who was recognised."""

    def caller(self, context: ServicerContext) -> Caller:
        """Return who is calling by a certificate, by the policy as it is now. Raises Unauthenticated."""
        must_not_authorize(context.invocation_metadata() or ())
        proof = self._certificates.proof(context, self._clock.now())
        return identify(proof, self._policies.current(), self._admins)

    def caller_by(self, certificate: PeerCertificate, address: str) -> Caller:
        """Return who is calling by a certificate, from an IP address, as the policy is now. Raises Unauthenticated."""
        return identify(certificate.proof(self._clock.now(), address), self._policies.current(), self._admins)

    async def _caller(self, name: str, request: Any, context: ServicerContext) -> Caller:
        if self._by_token:
            # The configuration's admins have certificates: nobody becomes one of them by a provider's word.
            caller = identify(await self._login.proof(context, name, request), self._policies.current(), frozenset())
        else:
            caller = self.caller(context)
        user_token = getattr(request, "user_token", "")
        if not user_token:
            return caller
        proof = await self._login.prove(user_token)
        return replace(caller, beside=prove_user(proof, caller.partner, self._policies.current()))

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler | None:
        """Wrap the handler of one of our methods; health and reflection pass."""
        method = handler_call_details.method
        wrapped = self._wrapped.get(method)
        if wrapped is not None:
            return wrapped
        handler = await continuation(handler_call_details)
        if handler is None or not method.startswith(OURS):
            return handler
        # Asked for at each call, and always the same; only methods that exist get here.
        wrapped = self._wrapped[method] = self._wrap(method.removeprefix(OURS), handler)
        return wrapped

    def _wrap(self, name: str, handler: grpc.RpcMethodHandler) -> grpc.RpcMethodHandler:
        if handler.request_streaming:
            return grpc.stream_stream_rpc_method_handler(
                self._streaming(name, cast("Streaming", handler.stream_stream), _all_readable),
                _reader(handler.request_deserializer),
                handler.response_serializer,
            )
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(
                self._streaming(name, cast("Streaming", handler.unary_stream), _readable),
                _reader(handler.request_deserializer),
                handler.response_serializer,
            )
        return grpc.unary_unary_rpc_method_handler(
            self._unary(name, cast("Unary", handler.unary_unary)),
            _reader(handler.request_deserializer),
            handler.response_serializer,
        )

    def _unary(self, name: str, inner: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def call(request: Any, context: ServicerContext) -> Any:
            started = time.monotonic()
            principal, failure, caller = "", None, None
            try:
                caller = await self._caller(name, request, context)
                principal = caller.principal
                CALLER.set(caller)
                return await inner(_readable(request), context)
            except Exception as problem:  # noqa: BLE001 - the outermost place
                failure = failure_of(problem)
                if caller is not None:
                    self.on_refused(name, caller, request, failure)
            finally:
                self.note(name, request, principal, failure, started)
            return await _abort(context, failure)

        return call

    def _streaming(
        self, name: str, inner: Callable[..., AsyncIterator[Any]], readable: Callable[[Any], Any]
    ) -> Callable[..., AsyncIterator[Any]]:
        async def call(request: Any, context: ServicerContext) -> AsyncIterator[Any]:
            started = time.monotonic()
            principal, failure = "", None
            try:
                caller = await self._caller(name, request, context)
                principal = caller.principal
                CALLER.set(caller)
                async for response in inner(readable(request), context):
                    yield response
            except Exception as problem:  # noqa: BLE001 - the outermost place
                failure = failure_of(problem)
            finally:
                self.note(name, request, principal, failure, started)
            if failure is not None:
                await _abort(context, failure)

        return call

    def note(self, name: str, request: Any, principal: str, failure: Failure | None, started: float) -> None:
        """Write the one line about a call that ended, begun at `started` of the monotonic clock."""
        fields: dict[str, object] = {
            "call": secrets.token_hex(8),
            "method": name,
            "principal": principal,
            **_request_id(request),
            "ms": round((time.monotonic() - started) * 1000, 2),
        }
        if failure is None:
            log.info("done", extra={"fields": fields})
            return
        self._meter.denied(failure.reason)
        fields["reason"] = failure.reason
        fields["detail"] = failure.message
        if isinstance(failure, Defect):
            log.error("defect", extra={"fields": fields}, exc_info=failure.__cause__)
        else:
            log.info("refused", extra={"fields": fields})


def _unheard(method: str, caller: Caller, request: Any, failure: Failure) -> None:
    del method, caller, request, failure


class _Unreadable:
    """Stands for a message that could not be read, until there is somebody to tell."""


def _reader(deserialize: Callable[[bytes], Any] | None) -> Callable[[bytes], Any] | None:
    """What fails in here never meets an interceptor: grpc would answer without a reason."""
    if deserialize is None:
        return None

    def read(data: bytes) -> Any:
        try:
            return deserialize(data)
        except DecodeError:
            return _Unreadable()

    return read


def unreadable() -> Invalid:
    """Return what to say of a message that cannot be read."""
    return Invalid("request", "is not a message of this method", hint="send what protos/broker/v1 says")


def _readable(request: Any) -> Any:
    if isinstance(request, _Unreadable):
        raise unreadable()
    return request


async def _all_readable(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        yield _readable(request)


def _request_id(request: Any) -> dict[str, object]:
    """Return what the caller called its write, if it is one and well-formed: a log is no place for just any text."""
    given = getattr(request, "request_id", "")
    return {"request_id": given} if is_request_id(given) else {}


def failure_of(problem: Exception) -> Failure:
    """Return a failure that may leave: ours as it is, anything else without its text."""
    if isinstance(problem, Failure):
        return problem
    if isinstance(problem, AbortError):
        raise problem
    if isinstance(problem, UnicodeError | OverflowError):
        return Invalid("request", "has a value that cannot be represented", hint="look at its numbers and texts")
    defect = Defect("a defect in the broker", hint="report it with the time of the call")
    defect.__cause__ = problem
    return defect


def status_message_of(failure: Failure) -> str:
    """Return a status message: printable ASCII on the wire; details carry the rest."""
    text = f"{failure.message}; {failure.hint}" if failure.hint else failure.message
    return text.encode("ascii", "backslashreplace").decode("ascii")[:1000]


async def _abort(context: ServicerContext, failure: Failure) -> NoReturn:
    details = ((DETAILS_KEY, details_of(failure)),)
    await context.abort(code_of(failure), status_message_of(failure), trailing_metadata=details)
