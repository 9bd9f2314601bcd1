"""Snapshots that the feed's door brings: one for all who wait, later while nothing can be signed, or a reason why not."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

import grpc.aio
import pytest

from broker.doors import Doors, feed_door_of
from broker.edge.feed.door import Door
from broker.edge.grpc.hub import FeedHub
from broker.edge.grpc.login import LoginDoor
from broker.edge.grpc.outermost import Outermost
from broker.edge.grpc.session import Desk
from broker.errors import Failure, SignerUnavailable, StoreUnavailable
from broker.sdk.identity import Identity
from broker.sdk.stream import LISTEN
from broker.service.metering import Unmetered
from broker.service.publish import Publisher
from broker.v1 import feed_pb2
from tests.authority import Authority
from tests.edge.feed.test_connection import HELLO_MESSAGE
from tests.edge.test_one_frame_for_all import Room, until
from tests.served import PRINCIPALS


class Moody:
    """A real signer, unless it has a problem."""

    def __init__(self, signer):
        self._signer = signer
        self.problem: Failure | None = None
        self.asked = 0

    def current(self, realm, purpose):
        self.asked += 1
        if self.problem is not None:
            raise self.problem
        return self._signer.current(realm, purpose)


class Lobby:
    """A door of a room, open to gRPC's client."""

    def __init__(self, room: Room, folder) -> None:
        authority = Authority(folder / "ca")
        server, issued = authority.server(), authority.client(PRINCIPALS["gateway"])
        papers = feed_door_of(
            Doors("127.0.0.1:0", None, server.certificate, server.key, authority.ca, feed="127.0.0.1:0")
        )
        assert papers is not None
        world = room.world
        self.signer = Moody(room.signer)
        publisher = Publisher(world.ledger, world.policies, self.signer, world.clock, boot="boot-1")
        self.hub = FeedHub(publisher, world.policies, room.listeners, world.clock, Unmetered())
        login = LoginDoor(None, None)  # type: ignore[arg-type] - nobody comes by it
        outermost = Outermost(world.policies, world.clock, Unmetered(), frozenset(), login)
        self.door = Door(Desk(self.hub, world.policies, world.clock), outermost, *papers)
        credentials = Identity(issued.certificate, issued.key, authority.ca).credentials()
        self.channel = grpc.aio.secure_channel(f"127.0.0.1:{papers[1].getsockname()[1]}", credentials)

    async def listen(self):
        call = self.channel.stream_stream(LISTEN, None, None)()
        await call.write(HELLO_MESSAGE)
        return call


@pytest.fixture
def lobby(tmp_path):
    """Run a test inside of a loop, with a lobby."""

    def run(test: Callable[[Lobby], Awaitable[None]]) -> None:
        async def whole() -> None:
            room = Room(tmp_path)
            lobby = Lobby(room, tmp_path)
            publishing = asyncio.create_task(lobby.hub.run())
            try:
                await until(lambda: lobby.hub.publisher.head is not None)
                lobby.door.start()
                await asyncio.wait_for(test(lobby), 30)
            finally:
                publishing.cancel()
                await asyncio.gather(publishing, return_exceptions=True)
                await lobby.channel.close()
                await lobby.door.stop()
                room.close()

        asyncio.run(whole())

    return run


def kind(message: bytes) -> int:
    return feed_pb2.FrameBody.FromString(feed_pb2.ListenResponse.FromString(message).frame.body).kind


def test_whoever_joins_while_nothing_can_be_signed_gets_the_snapshot_when_it_can_again(lobby):
    async def test(lobby: Lobby) -> None:
        lobby.signer.problem = SignerUnavailable("the key is away")
        calls = [await lobby.listen() for _ in range(3)]
        await until(lambda: len(lobby.door._waiting.get("evaluation", ())) == 3)
        tried = lobby.signer.asked
        await until(lambda: lobby.signer.asked > tried + 2)
        lobby.signer.problem = None
        for call in calls:
            assert kind(await call.read()) == feed_pb2.FRAME_KIND_SNAPSHOT
        assert not lobby.door._waiting
        await until(lambda: not lobby.door._bringing)

    lobby(test)


def test_whoever_leaves_while_nothing_can_be_signed_is_forgotten(lobby):
    async def test(lobby: Lobby) -> None:
        lobby.signer.problem = SignerUnavailable("the key is away")
        staying, leaving = await lobby.listen(), await lobby.listen()
        await until(lambda: len(lobby.door._waiting.get("evaluation", ())) == 2)
        leaving.cancel()
        await until(lambda: len(list(lobby.hub.live())) == 1)
        await until(lambda: len(lobby.door._waiting.get("evaluation", ())) == 1)
        lobby.signer.problem = None
        assert kind(await staying.read()) == feed_pb2.FRAME_KIND_SNAPSHOT

    lobby(test)


def test_p7_a_snapshot_that_cannot_be_made_ends_the_calls_that_wait_for_it_with_the_reason(lobby):
    async def test(lobby: Lobby) -> None:
        lobby.signer.problem = StoreUnavailable("the disk is away")
        for _ in range(2):
            call = await lobby.listen()
            assert await call.code() == grpc.StatusCode.UNAVAILABLE
            assert "the disk is away" in await call.details()
        await until(lambda: not list(lobby.hub.live()))
        lobby.signer.problem = None
        assert kind(await (await lobby.listen()).read()) == feed_pb2.FRAME_KIND_SNAPSHOT

    lobby(test)


def test_a_defect_of_the_door_ends_one_connection_and_no_more(lobby, caplog):
    async def test(lobby: Lobby) -> None:
        staying = await lobby.listen()
        assert kind(await staying.read()) == feed_pb2.FRAME_KIND_SNAPSHOT
        [connection] = lobby.door._connections.values()

        def broken() -> None:
            raise ZeroDivisionError

        lobby.door._guarded(connection, broken)
        assert not connection.is_open
        assert not lobby.door._connections
        assert await staying.code() == grpc.StatusCode.UNAVAILABLE
        # gRPC's client comes back by itself; a call that began while it learnt of the end went with that.
        message = None
        while message is None:
            with suppress(grpc.aio.AioRpcError):
                message = await (await lobby.listen()).read()
        assert kind(message) == feed_pb2.FRAME_KIND_SNAPSHOT
        assert "a defect in the feed's door" in caplog.text

    lobby(test)
