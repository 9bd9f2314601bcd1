"""Stores that are opened, written and left, one process each: `python -m tests.faulted_writer`, under failing calls.

Each line of JSON that comes in, `{"url": ..., "requests": [...]}`, forks one: what it imports, it has already. It
opens the store, does each request, every third urgently, and says in lines of JSON what it was answered. Then it says
how it ended: "closed", "broken" (the store ended it), or "shut" (it could not be opened).
"""

import json
import os
import sys
import traceback
from typing import Any

from broker.adapters.clock import SystemClock
from broker.adapters.sql import open_store
from broker.errors import Failure
from tests.stores import failure_of, key, revocation, write


def say(**words: Any) -> None:
    os.write(1, json.dumps(words).encode() + b"\n")


def ended(how: str) -> None:
    # As the broker does: at once, and nothing is closed in good order.
    say(ended=how)
    os._exit(0)


def live(url: str, requests: list[str]) -> None:
    try:
        store = open_store(url, SystemClock(), headroom_bytes=1 << 20, on_fatal=lambda _: ended("broken"))
    except Failure as failure:
        say(why=str(failure))
        ended("shut")
    for number, request in enumerate(requests):
        is_urgent = number % 3 == 0
        effects = [revocation(user=f"u{number}")] if is_urgent else []
        future = store.append(write(1 + number % 2, *effects, request=key(request_id=request), urgent=is_urgent))
        failure = failure_of(future)
        if failure is None:
            answer = future.result()
            say(answered=request, indices=list(answer.indices), again=answer.is_repeat)
        else:
            say(refused=request, why=f"{type(failure).__name__}: {failure}")
    store.close()
    ended("closed")


def main() -> None:
    for line in sys.stdin:
        asked = json.loads(line)
        pid = os.fork()
        if pid == 0:
            try:
                live(asked["url"], asked["requests"])
            except BaseException:
                say(failed=traceback.format_exc()[-3000:])
            os._exit(1)
        os.waitpid(pid, 0)
        say(gone=pid)


if __name__ == "__main__":
    main()
