"""gRPC server interceptors for a service in front of a model: no call passes without a token for what it asks."""

import asyncio
import inspect
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager, suppress
from contextvars import ContextVar
from typing import Any, NoReturn

import grpc
import grpc.aio

from broker.errors import NotAllowed, Rejected
from broker.sdk.bearer import sent_token
from broker.sdk.failures import DETAILS_KEY, status_details
from broker.sdk.showing import certificate_shown, checked_origin, shown_by
from broker.sdk.uses import Proof, Use
from broker.sdk.verifier import Verifier
from broker.token.binding import ShownCertificate

ModelOf = Callable[[grpc.HandlerCallDetails, Any], str]
"""Returns the model that will be dispatched to, from the call's details and its request.

The request is None where the client streams. Raising ValueError, KeyError, TypeError or AttributeError
refuses the call.
"""

PROOF: ContextVar[Proof] = ContextVar("broker_proof")
"""In a handler: what was accepted."""

# A synchronous handler that answers in this time ends with the reason; a blocked one with CANCELLED.
GRACE_S = 0.1
# A handler that does not end when it is cancelled is left behind.
END_WITHIN_S = 5.0
MAX_DETAILS_CHARS = 500


class _Guard:
    """What both interceptors do before a handler runs."""

    def __init__(
        self, verifier: Verifier, model_of: ModelOf, *, open_methods: Collection[str] = (), origin: str = ""
    ) -> None:
        self._verifier = verifier
        self._model_of = model_of
        self._open_methods = frozenset(open_methods)
        self._origin = checked_origin(origin)

    def _use(self, details: Any, request: Any, context: Any) -> Use:
        """Return a use to begin. Raises Rejected."""
        metadata = details.invocation_metadata or ()
        sent = sent_token(*([value for key, value in metadata if key == name] for name in ("authorization", "dpop")))
        shown = shown_by(sent, "POST", self._origin, details.method) or _certificate(context)
        try:
            model = self._model_of(details, request)
        except (ValueError, KeyError, TypeError, AttributeError) as bad:
            raise NotAllowed("the call names no model", hint="name the model to call") from bad
        return self._verifier.use(sent.token, model, proof=shown)


class BearerInterceptor(_Guard, grpc.ServerInterceptor):
    """For `grpc.server`. `open_methods` are full names, `/package.Service/Method`, that need no token.

    Tokens that are bound to a certificate need mutual TLS, at this very server. Those that are bound to a DPoP
    key need `origin`, the `https://HOST[:PORT]` that clients call: a call is `POST` to it with the method's
    full name. It is not taken from the call, because a proof for another service would name that one.
    """

    def intercept_service(self, continuation: Callable[[Any], Any], handler_call_details: Any) -> Any:
        """Wrap the handler that will serve the call."""
        handler = continuation(handler_call_details)
        if handler is None or handler_call_details.method in self._open_methods:
            return handler
        wrap = self._streaming if handler.response_streaming else self._single
        return _rewrapped(handler, wrap(_behaviour(handler), handler_call_details, handler.request_streaming))

    def _single(self, inner: Callable[..., Any], details: Any, is_streamed: bool) -> Callable[..., Any]:
        def call(request: Any, context: Any) -> Any:
            with self._held(details, None if is_streamed else request, context) as use:
                answer = inner(request, context)
                _abort_if_cancelled(use, context)
                use.count(calls=0, size=_size(answer))
                return answer

        return call

    def _streaming(self, inner: Callable[..., Any], details: Any, is_streamed: bool) -> Callable[..., Any]:
        def call(request: Any, context: Any) -> Iterator[Any]:
            with self._held(details, None if is_streamed else request, context) as use:
                answers = inner(request, context)
                try:
                    for answer in answers:
                        _abort_if_cancelled(use, context)
                        use.count(calls=0, size=_size(answer))
                        yield answer
                finally:
                    # Not left to the garbage collector: what stands behind the stream stops now.
                    if hasattr(answers, "close"):
                        answers.close()
                _abort_if_cancelled(use, context)

        return call

    @contextmanager
    def _held(self, details: Any, request: Any, context: Any) -> Iterator[Use]:
        with ExitStack() as held:
            try:
                use = held.enter_context(self._use(details, request, context))
            except Rejected as why:
                _abort(why, context)
            use.count()
            token = PROOF.set(use.proof)
            use.on_cancel(lambda: _later(GRACE_S, context.cancel))
            try:
                yield use
            finally:
                # The thread serves others. A generator may be ended in another one.
                with suppress(ValueError):
                    PROOF.reset(token)


class AioBearerInterceptor(_Guard, grpc.aio.ServerInterceptor):
    """For `grpc.aio.server`. As BearerInterceptor; handlers must be asynchronous."""

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any) -> Any:
        """Wrap the handler that will serve the call."""
        handler = await continuation(handler_call_details)
        if handler is None or handler_call_details.method in self._open_methods:
            return handler
        wrap = self._streaming if handler.response_streaming else self._single
        return _rewrapped(handler, wrap(_behaviour(handler), handler_call_details, handler.request_streaming))

    def _single(self, inner: Callable[..., Any], details: Any, is_streamed: bool) -> Callable[..., Any]:
        async def call(request: Any, context: Any) -> Any:
            async with AsyncExitStack() as held:
                use = await self._begin(held, details, None if is_streamed else request, context)
                answer = await _or_cancelled(inner(request, context), use, context)
                use.count(calls=0, size=_size(answer))
                return answer

        return call

    def _streaming(self, inner: Callable[..., Any], details: Any, is_streamed: bool) -> Callable[..., Any]:
        async def call(request: Any, context: Any) -> AsyncIterator[Any]:
            async with AsyncExitStack() as held:
                use = await self._begin(held, details, None if is_streamed else request, context)
                answers = inner(request, context)
                if inspect.isawaitable(answers):
                    # A handler that writes to its context instead of yielding.
                    await _or_cancelled(answers, use, context)
                    return
                held.push_async_callback(answers.aclose)
                while (answer := await _or_cancelled(anext(answers, _END), use, context)) is not _END:
                    use.count(calls=0, size=_size(answer))
                    yield answer

        return call

    async def _begin(self, held: AsyncExitStack, details: Any, request: Any, context: Any) -> Use:
        try:
            use = await held.enter_async_context(self._use(details, request, context))
        except Rejected as why:
            await _abort_aio(why, context)
        use.count()
        PROOF.set(use.proof)
        return use


def _certificate(context: Any) -> ShownCertificate | None:
    """Return the client's certificate, which this server's TLS has verified, or None."""
    pems = tuple(context.auth_context().get("x509_pem_cert") or ())
    return certificate_shown(pems[0].decode("ascii", "replace")) if len(pems) == 1 else None


def _size(answer: Any) -> int:
    """Return how many bytes an answer has, for a receipt; 0 of one that does not say."""
    if isinstance(answer, bytes | str):
        return len(answer)
    size = getattr(answer, "ByteSize", None)
    return int(size()) if callable(size) else 0


_END: Any = object()


async def _or_cancelled(work: Awaitable[Any], use: Use, context: Any) -> Any:
    """Return what `work` returns, unless the use is cancelled first: then end it and abort the call."""
    working = asyncio.ensure_future(work)
    cancelled = asyncio.ensure_future(use.wait_cancelled())
    try:
        await asyncio.wait({working, cancelled}, return_when=asyncio.FIRST_COMPLETED)
        if working.done() and use.reason is None:
            return working.result()
        why = await cancelled
    finally:
        working.cancel()
        cancelled.cancel()
        # A generator cannot be closed while it runs.
        await asyncio.wait({working, cancelled}, timeout=END_WITHIN_S)
    # What it ended with is of no interest any more.
    _ = working.cancelled() or working.exception()
    return await _abort_aio(why, context)


def _behaviour(handler: Any) -> Callable[..., Any]:
    found: Callable[..., Any] = (
        handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
    )
    return found


def _rewrapped(handler: Any, call: Callable[..., Any]) -> Any:
    makers = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }
    make: Any = makers[handler.request_streaming, handler.response_streaming]
    return make(call, handler.request_deserializer, handler.response_serializer)


def _later(after_s: float, call: Callable[[], object]) -> None:
    timer = threading.Timer(after_s, call)
    timer.daemon = True
    timer.start()


def _abort_if_cancelled(use: Use, context: Any) -> None:
    if use.reason is not None:
        _abort(use.reason, context)


def _abort(why: Rejected, context: Any) -> NoReturn:
    code, text, trailing = _status(why)
    context.set_trailing_metadata(trailing)
    context.abort(code, text)
    raise AssertionError("abort raises")


async def _abort_aio(why: Rejected, context: Any) -> NoReturn:
    code, text, trailing = _status(why)
    await context.abort(code, text, trailing_metadata=trailing)
    raise AssertionError("abort raises")


def _status(why: Rejected) -> tuple[grpc.StatusCode, str, tuple[tuple[str, bytes], ...]]:
    code = grpc.StatusCode[why.grpc_code]
    text = str(why).encode("ascii", "backslashreplace").decode("ascii")[:MAX_DETAILS_CHARS]
    return code, text, ((DETAILS_KEY, status_details(why, code)),)
