"""However many listen: a frame is built, signed and serialized once, and each stream sends those very bytes."""

import asyncio
from types import SimpleNamespace

import pytest

from broker.adapters.key_rotation import KeyRotation, Lifetimes
from broker.adapters.local_root import LocalRoot
from broker.adapters.memory_signer import make_memory_key
from broker.edge.grpc.feed import FeedService
from broker.edge.grpc.hub import FeedHub
from broker.service.frames import FRAME_CONTEXT
from broker.service.listening import Listeners
from broker.service.metering import Unmetered
from broker.service.publish import Publisher
from broker.token.keys import Purpose
from broker.token.revocation import Selector
from broker.v1 import feed_pb2
from tests.served import POLICY
from tests.unit.service.world import OPS, make_world, request


class CountingKey:
    """A real key that notes the frames which it signs."""

    def __init__(self, key, signed):
        self._key, self._signed = key, signed

    def __getattr__(self, name):
        return getattr(self._key, name)

    def sign(self, messages):
        self._signed += [
            feed_pb2.FrameBody.FromString(message[len(FRAME_CONTEXT) :])
            for message in messages
            if message.startswith(FRAME_CONTEXT)
        ]
        return self._key.sign(messages)


class CountingSigner:
    """A real signer whose feed keys note what they sign."""

    def __init__(self, signer):
        self._signer = signer
        self.signed = []

    def current(self, realm, purpose):
        key = self._signer.current(realm, purpose)
        return CountingKey(key, self.signed) if purpose is Purpose.FEED else key


class Room:
    """A feed without a network."""

    def __init__(self, folder):
        self.world = world = make_world(folder)
        world.apply(POLICY)
        self._keys = KeyRotation(
            LocalRoot(folder / "keys", b"not a secret in a test"),
            world.clock,
            realms=world.policies.realm_keys,
            publish=lambda *_: None,
            make=make_memory_key,
            meter=Unmetered(),
            lifetimes=Lifetimes(),
        )
        self._keys.start()
        self.signer = CountingSigner(self._keys)
        self.listeners = Listeners(started_ns=None, is_sole=True)
        self.publisher = Publisher(world.ledger, world.policies, self.signer, world.clock, boot="boot-1")
        self.hub = FeedHub(self.publisher, world.policies, self.listeners, world.clock, Unmetered())

    def close(self):
        self._keys.close()
        self.world.ledger.close()

    def join(self, number, realm):
        listener = self.listeners.join(
            verifier=f"spiffe://lab.example/gateway-{number}",
            realm=realm,
            version="1",
            address="",
            lease_ms=3000,
            now_ns=self.world.clock.boottime_ns(),
        )
        subscriber = self.hub.subscribe(realm, listener)
        subscriber.position = self.publisher.head.size
        return subscriber

    def revoke(self):
        return self.world.revoke(
            OPS, Selector.of(partner="acme"), reason="a test", whole_realm=False, request=request()
        ).index


async def until(condition):
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - what is waited for is seen from outside
            await asyncio.sleep(0.005)


def sent(subscriber):
    """Return what the stream would send, as bytes."""
    messages = []
    while subscriber.queue:
        messages.append(subscriber.next_message())
    return messages


def with_contents(messages):
    bodies = [feed_pb2.FrameBody.FromString(feed_pb2.ListenResponse.FromString(one).frame.body) for one in messages]
    return [message for message, body in zip(messages, bodies, strict=True) if body.revocations]


@pytest.mark.parametrize("listening", [1, 1000])
def test_scale_one_frame_is_signed_and_serialized_for_each_realm_whatever_the_number_that_listens(tmp_path, listening):
    async def whole():
        room = Room(tmp_path)
        publishing = asyncio.create_task(room.hub.run())
        try:
            await until(lambda: room.publisher.head is not None)
            streams = {
                realm: [room.join(number, realm) for number in range(listening)] for realm in ("evaluation", "research")
            }
            index = room.revoke()
            room.hub.wake()
            await until(lambda: all(one.queue and one.queue[-1].head > index for one in streams["research"]))
            for subscribers in streams.values():
                frames = [with_contents(sent(one)) for one in subscribers]
                assert all(len(one) == 1 for one in frames)
                # The very same bytes, not equal ones: nothing was made for one of them.
                assert len({id(message) for [message] in frames}) == 1
            carrying = [body.realm for body in room.signer.signed if body.revocations]
            assert sorted(carrying) == ["evaluation", "research"]
        finally:
            publishing.cancel()
            await asyncio.gather(publishing, return_exceptions=True)
            room.close()

    asyncio.run(asyncio.wait_for(whole(), 60))


def test_scale_a_snapshot_is_built_and_signed_once_for_all_who_join(tmp_path):
    room_and_parts = []

    async def whole():
        room = Room(tmp_path)
        try:
            room.publisher.poll()
            room.revoke()
            room.publisher.poll()
            answers = [room.publisher.snapshot("evaluation")[0] for _ in range(200)]
            # Last comes the bridge, which is fresh.
            room_and_parts.extend({id(part) for part in answer[:-1]} for answer in answers)
            snapshots = [body for body in room.signer.signed if body.kind == feed_pb2.FRAME_KIND_SNAPSHOT]
            assert len(snapshots) == 1
        finally:
            room.close()

    asyncio.run(whole())
    assert all(parts == room_and_parts[0] for parts in room_and_parts)


def test_scale_the_door_sends_bytes_as_they_are():
    service = FeedService(None, None, None, None)
    [method] = [
        handler
        for name in ("/broker.v1.FeedService/Listen",)
        if (handler := service.handler().service(SimpleNamespace(method=name, invocation_metadata=())))
    ]
    frame = b"made once"
    assert method.response_serializer(frame) is frame
