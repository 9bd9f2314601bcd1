"""Many verifiers in one process: the SDK's own stream and follower, each on a TLS connection of its own.

Shared is what a thousand machines would do side by side: a frame that came to all is checked once.
"""

import asyncio
import json
import random
import resource
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
    """Join, then print for each change of revocations when each verifier had applied it.

    Prints `fresh` when all hold a lease of one broker process, after a restart once more. Ends when stdin does.
    """
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    count = int(arguments["count"])
    trust = parse_trust(Path(arguments["trust"]).read_text())["evaluation"]  # noqa: ASYNC240 - before it begins
    opener = SharedOpener(trust)
    identity = Identity(arguments["cert"], arguments["key"], arguments["ca"])
    credentials = identity.credentials()
    applied: dict[int, list[float]] = {}
    reached = [0] * count
    fresh: dict[str, set[int]] = {}

    def note(number: int, follower: Follower, step: Step) -> None:
        state = follower.state
        members = fresh.setdefault(state.boot, set())
        if number not in members and not follower.needs_echo:
            if state.accept_until_ns <= time.clock_gettime_ns(time.CLOCK_BOOTTIME):
                return
            members.add(number)
            if len(members) == count:
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
        failures = 0
        while True:
            joined = time.monotonic()
            try:
                await listen(number, follower)
            except Exception as ended:
                print(json.dumps({"ended": type(ended).__name__}), file=sys.stderr, flush=True)
            # As the SDK does: a stream that was good for a while begins anew.
            failures = 0 if time.monotonic() - joined > Pace().backoff_most_s else failures + 1
            longest_s = min(Pace().backoff_most_s, Pace().backoff_first_s * 2 ** min(failures, 16))
            await asyncio.sleep(random.random() * longest_s)

    async def listen(number: int, follower: Follower) -> None:
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
            await asyncio.sleep(0.05)
    await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
