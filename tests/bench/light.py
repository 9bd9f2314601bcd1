"""Many verifiers in one process, light enough that the broker and not their player is measured.

Real for each verifier: a TLS connection with a certificate, an HTTP/2 connection and a gRPC stream of its own, the
SDK's follower with its own state, lease, echoes and acknowledgements, the SDK's pace of echoing and acknowledging,
and its backoff. Shared, because a thousand machines would do it side by side: the signature and the parsing of a
frame that came to all are done once, and what has arrived at many is taken by all before any answers, as on machines of
their own. Missing: gRPC's client (see wire.py) and a thread for each.
"""

import heapq
import json
import os
import random
import resource
import select
import ssl
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from broker.errors import FrameRefused
from broker.sdk.following import Follower
from broker.sdk.stream import LISTEN, NONCE_BYTES, Pace, sdk_version
from broker.token.keys import parse_trust
from broker.v1 import feed_pb2
from tests.bench.playing import SharedOpener, Story
from tests.bench.wire import Ended, Wire

REALM = "evaluation"
PACE = Pace()
NS_PER_MS = 1_000_000
# Handshakes and all: a machine that cannot get on within it tries again, as the SDK does.
SWEEP_S = 1.0


class Player:
    """One verifier: a follower, and a wire while there is one."""

    __slots__ = (
        "_swarm",
        "acked_s",
        "deadline_s",
        "echoed_s",
        "failures",
        "follower",
        "good_since_s",
        "is_ack_planned",
        "is_greeted",
        "number",
        "papers",
        "wire",
    )

    def __init__(self, swarm: "Swarm", number: int, papers: ssl.SSLContext) -> None:
        self._swarm = swarm
        self.number = number
        self.papers = papers
        self.follower = Follower(swarm.trust)
        self.follower._opener = swarm.opener
        self.failures = 0
        self.wire: Wire | None = None

    def connect(self) -> None:
        """Begin a stream."""
        self.is_greeted = self.is_ack_planned = False
        self.good_since_s: float | None = None
        self.acked_s = self.echoed_s = 0.0
        self.deadline_s = time.monotonic() + PACE.first_frame_s
        self.follower.begin_stream()
        self.wire = Wire(self._swarm.address, self.papers, LISTEN, self._hear)
        self._swarm.watch(self)

    def go_on(self) -> None:
        """The socket is ready. Raises Ended, FrameRefused."""
        assert self.wire is not None
        if self.wire.advance() and not self.is_greeted:
            self.is_greeted = True
            mark = self.follower.mark
            hello = feed_pb2.Hello(
                realm=REALM, version=sdk_version(), incarnation=mark.incarnation, head=mark.head, speaks=()
            )
            self.wire.send(feed_pb2.ListenRequest(hello=hello).SerializeToString())
            self._ask_echo(time.monotonic())

    def _hear(self, message: bytes) -> None:
        follower = self.follower
        before_ns = follower.state.accept_until_ns
        step = follower.take(message, time.clock_gettime_ns(time.CLOCK_BOOTTIME))
        now_s = time.monotonic()
        state = follower.state
        if state.accept_until_ns > before_ns:
            self.good_since_s = self.good_since_s or now_s
            self.deadline_s = now_s + max(state.lease_ms, 3 * state.heartbeat_ms) / 1000
        elif step.is_part:
            self.deadline_s = now_s + PACE.first_frame_s
        self._swarm.story.note(self.number, follower, step)
        if step.in_force:
            every_s = PACE.ack_after_s(state.lease_ms)
            if step.has_contents or now_s - self.acked_s >= every_s:
                self.is_ack_planned = True
                self._swarm.soon.append(self)
            elif not self.is_ack_planned:
                self.is_ack_planned = True
                self._swarm.later(self.acked_s + every_s, self.acknowledge_then)
        every_s = PACE.echo_after_s(follower, time.clock_gettime_ns(time.CLOCK_BOOTTIME))
        if now_s - self.echoed_s >= every_s and not follower.is_echo_under_way:
            self._ask_echo(now_s)

    def acknowledge_then(self) -> None:
        """Say how far it is, if it was not said meanwhile. Raises Ended."""
        if self.is_ack_planned and self.wire is not None:
            self.acknowledge(time.monotonic())
            self._swarm.rewatch(self)

    def acknowledge(self, now_s: float) -> None:
        """Say how far it is."""
        assert self.wire is not None
        self.is_ack_planned = False
        self.acked_s = now_s
        mark = self.follower.mark
        left_ns = self.follower.state.accept_until_ns - time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        ack = feed_pb2.Ack(head=mark.head, incarnation=mark.incarnation, fresh_for_ms=max(0, left_ns // NS_PER_MS))
        self.wire.send(feed_pb2.ListenRequest(ack=ack).SerializeToString())

    def _ask_echo(self, now_s: float) -> None:
        assert self.wire is not None
        nonce, now_ns = os.urandom(NONCE_BYTES), time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        self.follower.ask_echo(nonce, now_ns)
        self.echoed_s = now_s
        self.wire.send(
            feed_pb2.ListenRequest(echo=feed_pb2.Echo(nonce=nonce, verifier_clock_ns=now_ns)).SerializeToString()
        )

    def rest_s(self, now_s: float) -> float:
        """Return how long to wait before the next stream, as the SDK does."""
        was_steady = self.good_since_s is not None and now_s - self.good_since_s > PACE.backoff_most_s
        self.failures = 0 if was_steady else min(self.failures + 1, 16)
        return random.random() * min(PACE.backoff_most_s, PACE.backoff_first_s * 2**self.failures)


class Swarm:
    """All of them, on one epoll."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        host, port = arguments["endpoint"].rsplit(":", 1)
        self.address = (host, int(port))
        self.trust = parse_trust(Path(arguments["trust"]).read_text())[REALM]
        self.opener = SharedOpener(self.trust)
        self._epoll = select.epoll()
        self._playing: dict[int, tuple[Player, bool]] = {}
        self.soon: list[Player] = []
        """Those who acknowledge once all that has arrived is taken."""
        self._plans: list[tuple[float, int, Callable[[], None]]] = []
        self._planned = 0
        self._join_per_s = arguments["join_per_s"]
        self.story = Story(arguments["count"])
        papers = [_papers(*one, arguments["ca"]) for one in arguments["papers"]]
        self._players = [Player(self, n, papers[n % len(papers)]) for n in range(arguments["count"])]

    def run(self) -> None:
        """Play until stdin ends."""
        now_s = time.monotonic()
        for player in self._players:
            # At the start they come in turn, as machines do; after a restart all at once.
            self.later(now_s + player.number / self._join_per_s, player.connect)
        self.later(now_s + SWEEP_S, self._sweep)
        self._epoll.register(sys.stdin.fileno(), select.EPOLLIN)
        while True:
            wait_s = max(0.0, self._plans[0][0] - time.monotonic())
            for number, _ in self._epoll.poll(wait_s, 1024):
                if number == sys.stdin.fileno():
                    return
                if number in self._playing:
                    player = self._playing[number][0]
                    self._do(player, player.go_on)
                    self.rewatch(player)
            soon, self.soon = self.soon, []
            for player in soon:
                self._do(player, player.acknowledge_then)
            now_s = time.monotonic()
            while self._plans[0][0] <= now_s:
                _, _, what = heapq.heappop(self._plans)
                owner = getattr(what, "__self__", None)
                if isinstance(owner, Player):
                    self._do(owner, what)
                else:
                    what()

    def later(self, at_s: float, what: Callable[[], None]) -> None:
        """Plan something."""
        self._planned += 1
        heapq.heappush(self._plans, (at_s, self._planned, what))

    def watch(self, player: Player) -> None:
        """Wait for the socket of a new wire."""
        assert player.wire is not None
        self._epoll.register(player.wire.fileno(), select.EPOLLOUT)
        self._playing[player.wire.fileno()] = (player, True)

    def rewatch(self, player: Player) -> None:
        """Wait for what the wire wants now."""
        wire = player.wire
        if wire is not None and self._playing[wire.fileno()][1] != wire.wants_write:
            self._epoll.modify(wire.fileno(), select.EPOLLOUT if wire.wants_write else select.EPOLLIN)
            self._playing[wire.fileno()] = (player, wire.wants_write)

    def _do(self, player: Player, what: Callable[[], None]) -> None:
        try:
            what()
        except (Ended, FrameRefused) as ended:
            self._end(player, str(ended))

    def _end(self, player: Player, why: str) -> None:
        self.story.end(why)
        if player.wire is not None:
            del self._playing[player.wire.fileno()]
            player.wire.close()
            player.wire = None
        now_s = time.monotonic()
        self.later(now_s + player.rest_s(now_s), player.connect)

    def _sweep(self) -> None:
        now_s = time.monotonic()
        for player in self._players:
            if player.wire is not None and player.deadline_s < now_s:
                self._end(player, "silent")
        self.later(now_s + SWEEP_S, self._sweep)


def _papers(certificate: str, key: str, ca: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(ca)
    context.load_cert_chain(certificate, key)
    context.set_alpn_protocols(["h2"])
    return context


def main() -> None:
    """Play what stdin's first line says."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    Swarm(json.loads(sys.stdin.readline())).run()


if __name__ == "__main__":
    main()
