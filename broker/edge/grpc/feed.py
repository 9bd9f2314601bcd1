"""FeedService on the door of gRPC: a session of the feed on a stream."""

import asyncio
from collections.abc import AsyncIterator, Callable

import grpc
from grpc.aio import ServicerContext

from broker.domain.policy import Role
from broker.edge.grpc.hub import FeedHub
from broker.edge.grpc.names import certificate_of
from broker.edge.grpc.receiving import Receiving
from broker.edge.grpc.session import Desk, Session
from broker.errors import SignerUnavailable
from broker.service.calling import Caller
from broker.service.policies import Policies
from broker.service.ports import Clock
from broker.v1 import feed_pb2

NO_SNAPSHOT_S = 0.2


class FeedService:
    """Serves one stream for each verifier. Messages go out as the bytes that were made once for all."""

    def __init__(
        self,
        hub: FeedHub,
        policies: Policies,
        clock: Clock,
        caller: Callable[[ServicerContext], Caller],
        certificate: Callable[[ServicerContext], bytes] = certificate_of,
        receiving: Receiving | None = None,
    ) -> None:
        self.desk = Desk(hub, policies, clock, receiving)
        self._certificate = certificate
        self._caller = caller

    def handler(self) -> grpc.GenericRpcHandler:
        """Return the handler to register: like the generated one, but it sends bytes as they are."""
        return grpc.method_handlers_generic_handler(
            "broker.v1.FeedService",
            {"Listen": grpc.stream_stream_rpc_method_handler(self.listen, feed_pb2.ListenRequest.FromString, bytes)},
        )

    async def listen(
        self, requests: AsyncIterator[feed_pb2.ListenRequest], context: ServicerContext
    ) -> AsyncIterator[bytes]:
        """Say hello, then carry frames out and acknowledgements in until either side ends it."""
        # Whoever may not listen is told before it says anything.
        self._caller(context).must_be(Role.VERIFIER)
        first = await anext(aiter(requests), None)
        has_work = asyncio.Event()
        session = Session(
            self.desk,
            first,
            lambda: self._caller(context),
            self._certificate(context),
            context.peer(),
            has_work.set,
        )
        reading = asyncio.create_task(_read(requests, session))
        try:
            async for message in self._messages(session, reading, has_work):
                yield message
        finally:
            reading.cancel()
            session.close()

    async def _messages(
        self, session: Session, reading: "asyncio.Task[None]", has_work: asyncio.Event
    ) -> AsyncIterator[bytes]:
        while not reading.done():
            has_work.clear()
            message = session.next()
            if message is not None:
                yield message
            elif session.needs_snapshot():
                try:
                    session.bring(*await self.desk.hub.snapshot(session.realm))
                except SignerUnavailable:
                    await asyncio.sleep(NO_SNAPSHOT_S)
            else:
                await has_work.wait()
        await reading


async def _read(requests: AsyncIterator[feed_pb2.ListenRequest], session: Session) -> None:
    try:
        async for request in requests:
            if not session.take(request):
                break
    finally:
        session.subscriber.wake()
