"""A service that forks, as a pre-forking server does. Started by test_forking.py; prints JSON lines."""

import json
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from broker.errors import Rejected, Stale
from broker.sdk import Identity, Verifier
from tests.feed_server import eventually


def say(**facts: object) -> None:
    os.write(1, json.dumps(facts).encode() + b"\n")


def verdict(verifier: Verifier, token: str) -> str:
    try:
        return verifier.verify(token, "mythos").model
    except Rejected as why:
        return why.reason


def in_child(work: Callable[[], None]) -> None:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    say(child_ended=status)


def main(endpoint: str, trust: str, token: str, *files: str) -> None:
    verifier = Verifier.connect(endpoint, realm="evaluation", trust=Path(trust), identity=Identity(*files))
    closed = Verifier.connect(endpoint, realm="evaluation", trust=Path(trust), identity=Identity(*files))
    closed.close()
    verifier.wait_fresh(10)
    say(parent=verdict(verifier, token))

    def child() -> None:
        say(
            threads=[thread.name for thread in threading.enumerate() if thread.name.startswith("broker")],
            fresh=verifier.state().is_fresh,
            cancelled=use.cancelled.is_set() and isinstance(use.reason, Stale),
            before=verdict(verifier, token),
            closed=verdict(closed, token),
        )
        verifier.wait_fresh(10)
        with verifier.use(token, "mythos") as own:
            say(after=verdict(verifier, token), own=not own.cancelled.is_set())
        verifier.close()

    with verifier.use(token, "mythos") as use:
        in_child(child)
        say(parent=verdict(verifier, token), held=not use.cancelled.is_set())
        eventually(use.cancelled.is_set, "the revocation")
    say(parent=verdict(verifier, token))
    verifier.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
