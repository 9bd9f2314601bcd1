"""A consumer that reads nothing, or a byte a second, costs a bounded amount and delays nobody else (P4, P5)."""

import http.client
import queue
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from broker.sdk.following import Follower
from broker.token.keys import parse_trust
from broker.v1 import feed_pb2, feed_pb2_grpc, revocations_pb2
from tests.e2e.force.stage import GATEWAYS, USERS, Stage, must_have_stopped
from tests.e2e.force.stalling_proxy import StallingProxy
from tests.e2e.force.verifying import MS, now_ns, rss_mib
from tests.served import request_id
from tests.waiting import eventually

# Each call is a frame of some 400 KiB: together with the single ones more than a queue and HTTP/2's windows hold.
BATCHES = 6
BATCH = 10_000
SINGLES = 400
MAX_FRAME_BYTES = (4 << 20) + (16 << 10)
# What the broker must keep of a revocation for itself, and what one slow queue of frames can cost.
MAX_GROWTH_MIB = 224


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    with Stage(tmp_path, with_feed_door=True) as stage:
        yield stage


class Idle:
    """A stream of the feed whose client takes nothing unless it is told to."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._said: queue.SimpleQueue[feed_pb2.ListenRequest | None] = queue.SimpleQueue()
        stub: Any = feed_pb2_grpc.FeedServiceStub(channel)
        self._said.put(feed_pb2.ListenRequest(hello=feed_pb2.Hello(realm="evaluation", version="idle")))
        self._call = stub.Listen(iter(self._said.get, None))

    def next_frame(self) -> bytes:
        return bytes(next(self._call).SerializeToString())

    def end(self) -> None:
        self._said.put(None)
        self._call.cancel()


@contextmanager
def idle_stream(stage: Stage, gateway: str) -> Iterator[Idle]:
    options = (("grpc.max_receive_message_length", 8 << 20), ("grpc.use_local_subchannel_pool", 1))
    with grpc.secure_channel(stage.listen_endpoint, stage.identity(gateway).credentials(), options=options) as channel:
        idle = Idle(channel)
        try:
            yield idle
        finally:
            idle.end()


def metric(stage: Stage, name: str) -> float:
    context = ssl.create_default_context(cafile=str(stage.authority.ca))
    connection = http.client.HTTPSConnection("127.0.0.1", stage.http_port, timeout=10, context=context)
    try:
        connection.request("GET", "/metrics")
        lines = connection.getresponse().read().decode().splitlines()
    finally:
        connection.close()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


def publish_much(stage: Stage) -> None:
    by = stage.ready_to_revoke()
    for _ in range(BATCHES):
        request = revocations_pb2.RevokeTokensRequest(
            request_id=request_id(),
            realm="evaluation",
            tokens=[f"{number:06d}{request_id()[:16]}" for number in range(BATCH)],
            reason="by force",
        )
        list(by.RevokeTokens(request, timeout=60))
    for number in range(SINGLES):
        selector = {"selector": {"token": f"{number:06d}{request_id()[:16]}"}}
        list(
            by.Revoke(revocations_pb2.RevokeRequest(request_id=request_id(), reason="by force", **selector), timeout=60)
        )


def test_p4_p5_slow_consumers_cost_a_bounded_amount_delay_nobody_and_are_resynchronised(stage: Stage) -> None:
    tokens = {user: stage.token(user) for user in USERS[:8]}
    trust = parse_trust(stage.trust().read_text())["evaluation"]
    with (
        StallingProxy(stage.feed_port, max_held_bytes=1 << 16) as proxy,
        stage.verifying("alpha") as swift,
        stage.verifying("beta", endpoint=f"127.0.0.1:{proxy.port}") as slow,
        idle_stream(stage, GATEWAYS[2]) as idle,
    ):
        follower = Follower(trust)
        follower.take(idle.next_frame(), now_ns())
        swift.watch(**tokens)
        slow.watch(**tokens)
        before_mib = rss_mib(stage.pid)
        proxy.to_verifier.bytes_per_s = 1.0
        latencies_ms = []
        for turn, user in enumerate(USERS[:8]):
            if turn in (2, 4):
                publish_much(stage)
            revoking = stage.revoking(user=user)
            eventually(lambda: swift.runs()[user][-1].verdict == "REVOKED", "the swift one has it", within_s=20)  # noqa: B023 - of this turn
            # A verifier can be faster than the answer to whoever revoked.
            revoking.until_committed()
            latencies_ms.append((swift.runs()[user][-1].began_ns - revoking.committed_ns) / MS)
            outcomes = revoking.until_complete()
            assert outcomes["alpha"].acknowledged
            # Lapsed at first; later it is not even there, as it does not get as far as listening.
            assert "beta" in outcomes or turn
            assert "beta" not in outcomes or not outcomes["beta"].acknowledged
            for verifier in (swift, slow):
                must_have_stopped(verifier, user, revoking)
        after_mib = rss_mib(stage.pid)
        print(
            f"broker: {before_mib:.0f} MiB, after {2 * BATCHES * BATCH} revocations {after_mib:.0f} MiB; "
            f"denied elsewhere {', '.join(f'{one:.1f}' for one in latencies_ms)} ms after the answer"
        )
        assert after_mib - before_mib < MAX_GROWTH_MIB
        assert slow.verdict(tokens[USERS[0]]) == "STALE"
        eventually(
            lambda: metric(stage, "broker_feed_resynchronisations_total") > 0, "a queue was dropped", within_s=20
        )
        # It reads again: what lay in its buffers, then a snapshot in place of all that was dropped.
        assert revoking.committed is not None
        kinds = []
        while follower.state.head <= revoking.committed.index:
            message = idle.next_frame()
            assert len(message) <= MAX_FRAME_BYTES
            follower.take(message, now_ns())
            frame = feed_pb2.ListenResponse.FromString(message).frame
            kinds.append(feed_pb2.FrameBody.FromString(frame.body).kind)
        assert feed_pb2.FRAME_KIND_SNAPSHOT in kinds
        assert len(follower.state.matcher) >= 2 * (BATCHES * BATCH + SINGLES)
        proxy.heal()
        print(f"{slow.name} is fresh {slow.until_fresh(within_s=60):.2f} s after it reads again")
        for token in tokens.values():
            assert slow.verdict(token) == "REVOKED"
