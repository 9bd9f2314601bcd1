"""Applies a snapshot in a process of its own, as a verifier's is: `python -m tests.bench.applying TRUST FRAMES...`."""

import json
import sys
import time
from pathlib import Path

from broker.sdk.following import Follower
from broker.token.keys import parse_trust


def main(trust: str, frames: list[str]) -> None:
    """Print how long it took, and how many revocations are in force then."""
    messages = [Path(frame).read_bytes() for frame in frames]
    follower = Follower(parse_trust(Path(trust).read_text())["evaluation"])
    began = time.monotonic()
    for message in messages:
        follower.take(message, time.clock_gettime_ns(time.CLOCK_BOOTTIME))
    print(json.dumps({"s": time.monotonic() - began, "entries": len(follower.state.matcher)}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
