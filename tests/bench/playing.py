"""What players of many verifiers have in common: frames opened once for all, and what they tell of on stdout."""

import json
import time
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from broker.sdk.following import Follower, Step
from broker.sdk.opening import OpenedEcho, OpenedFrame, OpenedKept, Opener
from broker.token.keys import RealmTrust, TrustedKey


class SharedOpener(Opener):
    """A thousand machines check a frame's signature side by side; this process checks it once for all of them."""

    def __init__(self, trust: RealmTrust) -> None:
        super().__init__(trust)
        self._opened = lru_cache(64)(super().open)
        self._certified_keys = lru_cache(64)(lambda certificates: super(SharedOpener, self).token_keys(certificates))

    def open(self, message: bytes) -> OpenedFrame | OpenedEcho | OpenedKept:
        return self._opened(message)

    def token_keys(self, certificates: Sequence[str]) -> dict[str, TrustedKey]:
        return self._certified_keys(tuple(certificates)) if certificates else {}


class Story:
    """Tells, a line of JSON each time, when all are fresh, and when all have applied one more revocation."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._reached = [0] * count
        self._applied: dict[int, list[float]] = {}
        # By broker process: after a restart all become fresh once more.
        self._fresh: dict[str, set[int]] = {}
        self.ended: dict[str, int] = {}
        """How many streams ended, by why."""

    def note(self, number: int, follower: Follower, step: Step) -> None:
        """Note what a message did to one of them. Time is read after it was applied."""
        state = follower.state
        members = self._fresh.setdefault(state.boot, set())
        if (
            number not in members
            and not follower.needs_echo
            and state.accept_until_ns > time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        ):
            members.add(number)
            if len(members) == self._count:
                _tell({"fresh": self._count, "at": time.monotonic(), "ended": self.ended})
        if step.in_force and step.has_contents:
            # One may come to several at once.
            for size in range(self._reached[number] + 1, len(state.matcher) + 1):
                self._reached[number] = size
                times = self._applied.setdefault(size, [])
                times.append(time.monotonic())
                if len(times) == self._count:
                    _tell({"size": size, "times": self._applied.pop(size), "cpu_s": time.process_time()})

    def end(self, why: str) -> None:
        """Count a stream that ended."""
        self.ended[why] = self.ended.get(why, 0) + 1


def _tell(what: dict[str, Any]) -> None:
    print(json.dumps(what), flush=True)
