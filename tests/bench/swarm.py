"""Many verifiers in one process: the SDK's own stream and follower, each on a connection of its own."""

import asyncio
import json
import sys
import time
from functools import lru_cache
from pathlib import Path

import grpc

from broker.sdk.following import Follower, Step
from broker.sdk.identity import Identity
from broker.sdk.opening import OpenedEcho, OpenedFrame, Opener
from broker.sdk.stream import Keeper, Pace, Stream
from broker.token.keys import RealmTrust, parse_trust

OPTIONS = (("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", 8 << 20))


class SharedOpener(Opener):
    """A thousand machines check a frame's signature side by side; this process checks it once for all of them."""

    def __init__(self, trust: RealmTrust) -> None:
        super().__init__(trust)
        self._opened = lru_cache(64)(super().open)

    def open(self, message: bytes) -> OpenedFrame | OpenedEcho:
        return self._opened(message)


async def main(arguments: dict[str, str]) -> None:
    """Join, then print for each change of revocations when each verifier had applied it."""
    count = int(arguments["count"])
    trust = parse_trust(Path(arguments["trust"]).read_text())["evaluation"]  # noqa: ASYNC240 - before it begins
    opener = SharedOpener(trust)
    identity = Identity(arguments["cert"], arguments["key"], arguments["ca"])
    credentials = identity.credentials()
    applied: dict[int, list[float]] = {}
    reached = [0] * count
    fresh: set[int] = set()

    def note(number: int, follower: Follower, step: Step) -> None:
        if follower.state.accept_until_ns > time.clock_gettime_ns(time.CLOCK_BOOTTIME) and number not in fresh:
            fresh.add(number)
            if len(fresh) == count:
                print(json.dumps({"fresh": count, "at": time.monotonic()}), flush=True)
        if step.has_contents and step.in_force:
            # A verifier may come to several at once.
            for size in range(reached[number] + 1, len(follower.state.matcher) + 1):
                reached[number] = size
                times = applied.setdefault(size, [])
                times.append(time.monotonic())
                if len(times) == count:
                    print(json.dumps({"size": size, "times": times}), flush=True)

    async def one(number: int) -> None:
        follower = Follower(trust)
        follower._opener = opener
        async with grpc.aio.secure_channel(arguments["endpoint"], credentials, options=OPTIONS) as channel:
            stream = Stream(
                follower,
                Keeper(None, Pace()),
                Pace(),
                lambda step: note(number, follower, step),
                lambda _text: None,
            )
            await stream.listen(channel, "evaluation")

    tasks = []
    for number in range(count):
        tasks.append(asyncio.create_task(one(number)))
        if number % 50 == 49:
            await asyncio.sleep(0.1)
    await asyncio.gather(*tasks)


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
