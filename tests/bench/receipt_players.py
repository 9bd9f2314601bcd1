"""Verifiers that only send receipts: batches that were signed before, each stream with a key of its own.

Reads a line of JSON, gets ready, and says so; at the next line it sends, and tells how long it took until the broker
had answered for all of it, and how long the answers and the heartbeats took meanwhile.
"""

import asyncio
import json
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc.aio

from broker.sdk.identity import Identity
from broker.v1 import feed_pb2
from tests.receipting import ReceiptKey, accepted

WINDOW = 2
EOF: Any = vars(grpc.aio)["EOF"]
OPTIONS = (("grpc.use_local_subchannel_pool", 1),)


class Player:
    """One stream."""

    def __init__(self, tokens: list[tuple[str, int]], batches: int, size: int, every_s: float) -> None:
        self.every_s = every_s
        self._answered = asyncio.Event()
        self.key = ReceiptKey()
        lines = [accepted(*tokens[number % len(tokens)], number + 1) for number in range(batches * size)]
        self.batches = [self.key.batch(lines[at : at + size], after=at) for at in range(0, len(lines), size)]
        self.through = size * batches
        self.size = size
        self.kept = -1
        self.took_ms: list[float] = []
        self.gap_s = 0.0
        self._heard_s = 0.0
        self._sent_s: list[float] = []

    async def listen(self, channel: grpc.aio.Channel, enrolled: "asyncio.Queue[None]", go: asyncio.Event) -> None:
        """Enroll, wait, and send until all is acknowledged."""
        call: Any = channel.stream_stream(
            "/broker.v1.FeedService/Listen",
            feed_pb2.ListenRequest.SerializeToString,
            feed_pb2.ListenResponse.FromString,
        )()
        hello = feed_pb2.Hello(realm="evaluation", version="bench", speaks=["receipts"])
        await call.write(feed_pb2.ListenRequest(hello=hello))
        enroll = feed_pb2.EnrollKey(public_key=self.key.point, signature=self.key.proof())
        await call.write(feed_pb2.ListenRequest(enroll=enroll))
        reading = asyncio.create_task(self._read(call, enrolled))
        await go.wait()
        self._heard_s = time.perf_counter()
        self.gap_s = 0.0
        # Spread, as clocks of different machines are.
        began_s = self._heard_s + self.every_s * random.random()
        for number, (body, signature) in enumerate(self.batches):
            await self._until(lambda n=number: n - self.kept // self.size < WINDOW)
            if self.every_s:
                await asyncio.sleep(max(0.0, began_s + number * self.every_s - time.perf_counter()))
            self._sent_s.append(time.perf_counter())
            receipts = feed_pb2.SignedReceipts(body=body, signature=signature)
            await call.write(feed_pb2.ListenRequest(receipts=receipts))
        await self._until(lambda: self.kept >= self.through)
        reading.cancel()
        call.cancel()

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._answered.clear()
            await self._answered.wait()

    async def _read(self, call: Any, enrolled: "asyncio.Queue[None]") -> None:
        while (message := await call.read()) is not EOF:
            now_s = time.perf_counter()
            if message.HasField("frame"):
                self.gap_s, self._heard_s = max(self.gap_s, now_s - self._heard_s), now_s
            if not message.HasField("receipts_kept"):
                continue
            kept = feed_pb2.ReceiptsKept.FromString(message.receipts_kept.body)
            if kept.refusal:
                sys.exit(f"refused: {kept.refusal} {kept.detail}")
            if self.kept < 0:
                enrolled.put_nowait(None)
            else:
                for number in range(self.kept // self.size, kept.through // self.size):
                    self.took_ms.append((now_s - self._sent_s[number]) * 1000)
            self.kept = max(self.kept, kept.through)
            self._answered.set()


async def main(arguments: dict[str, Any]) -> None:
    """Play."""
    tokens = [(str(token), int(index)) for token, index in arguments["tokens"]]
    players = [
        Player(tokens[number::7] or tokens, arguments["batches"], arguments["size"], arguments["every_s"])
        for number in range(arguments["count"])
    ]
    papers = Identity(*(Path(arguments[paper]) for paper in ("certificate", "key", "ca"))).credentials()
    enrolled: asyncio.Queue[None] = asyncio.Queue()
    go = asyncio.Event()

    async def play(player: Player) -> None:
        async with grpc.aio.secure_channel(arguments["endpoint"], papers, options=OPTIONS) as channel:
            await player.listen(channel, enrolled, go)

    tasks = [asyncio.create_task(play(player)) for player in players]
    for _ in players:
        await enrolled.get()
    print(json.dumps({"ready": True}), flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    began_s = time.perf_counter()
    go.set()
    await asyncio.gather(*tasks)
    took_s = time.perf_counter() - began_s
    took_ms = sorted(ms for player in players for ms in player.took_ms)
    told = {
        "took_s": took_s,
        "receipts": sum(player.through for player in players),
        "took_ms": took_ms,
        "gap_s": max(player.gap_s for player in players),
    }
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.stdin.readline())))
