"""Many verifiers in one process: the SDK's own stream and follower, each on a TLS connection of gRPC's own client.

Shared is what a thousand machines would do side by side: a frame that came to all is checked once.
"""

import asyncio
import json
import random
import resource
import sys
import time
from pathlib import Path
from typing import Any

import grpc

from broker.sdk.following import Follower
from broker.sdk.identity import Identity
from broker.sdk.stream import Keeper, Pace, Stream
from broker.token.keys import parse_trust
from tests.bench.playing import SharedOpener, Story

OPTIONS = (("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", 8 << 20))


async def main(arguments: dict[str, Any]) -> None:
    """Join, and tell the story until stdin ends."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    count = arguments["count"]
    trust = parse_trust(Path(arguments["trust"]).read_text())["evaluation"]  # noqa: ASYNC240 - before it begins
    opener = SharedOpener(trust)
    credentials = [Identity(*papers, arguments["ca"]).credentials() for papers in arguments["papers"]]
    story = Story(count)

    async def one(number: int) -> None:
        follower = Follower(trust)
        follower._opener = opener
        failures = 0
        while True:
            joined = time.monotonic()
            try:
                await listen(number, follower)
            except Exception as ended:
                story.end(type(ended).__name__)
            # As the SDK does: a stream that was good for a while begins anew.
            failures = 0 if time.monotonic() - joined > Pace().backoff_most_s else failures + 1
            longest_s = min(Pace().backoff_most_s, Pace().backoff_first_s * 2 ** min(failures, 16))
            await asyncio.sleep(random.random() * longest_s)

    async def listen(number: int, follower: Follower) -> None:
        papers = credentials[number % len(credentials)]
        async with grpc.aio.secure_channel(arguments["endpoint"], papers, options=OPTIONS) as channel:
            stream = Stream(
                follower,
                Keeper(None, Pace()),
                Pace(),
                lambda step: story.note(number, follower, step),
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
    asyncio.run(main(json.loads(sys.stdin.readline())))
