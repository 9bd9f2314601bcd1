"""A service in front of a model, as a process of its own: it watches tokens with the SDK and tells what it saw.

Reads a line of JSON with how to connect, then commands, and answers each with a line. Instants are its own
readings of CLOCK_BOOTTIME in nanoseconds, so the test, on the same machine, can hold them against its own.
"""

import ctypes
import json
import signal
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from broker.errors import Rejected
from broker.sdk import Identity, Verifier
from broker.sdk.stream import Pace

PR_SET_PDEATHSIG = 1
MODEL = "mythos"


def now_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


@dataclass(slots=True)
class Run:
    """Verdicts about one token that were the same, one after another."""

    verdict: str
    began_ns: int
    ended_ns: int
    count: int
    # What the verifier had applied after the first of them.
    head: int


class Watch:
    """Asks for a verdict about each token again and again, and keeps them as runs."""

    def __init__(self, verifier: Verifier, every_s: float) -> None:
        self.runs: dict[str, list[Run]] = {}
        self.heads_back: list[tuple[int, int]] = []
        self.defects: list[str] = []
        self._head = 0
        self._verifier = verifier
        self._every_s = every_s
        self._tokens: dict[str, str] = {}
        self._turn = threading.Lock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def add(self, tokens: dict[str, str]) -> None:
        with self._turn:
            self._tokens |= tokens

    def drop(self, names: list[str]) -> None:
        with self._turn:
            for name in names:
                self._tokens.pop(name, None)

    def told(self) -> dict[str, list[Run]]:
        with self._turn:
            return {name: list(runs) for name, runs in self.runs.items()}

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stopping.wait(self._every_s):
            with self._turn:
                for name, token in self._tokens.items():
                    self._look(name, token)

    def _look(self, name: str, token: str) -> None:
        # Read before: an acceptance is judged by the earliest instant that it can be of.
        began_ns = now_ns()
        verdict = verdict_of(self._verifier, token, MODEL)
        head = self._verifier.state().head
        if head < self._head:
            self.heads_back.append((self._head, head))
        self._head = max(self._head, head)
        runs = self.runs.setdefault(name, [])
        if runs and runs[-1].verdict == verdict:
            runs[-1].ended_ns, runs[-1].count = began_ns, runs[-1].count + 1
        else:
            runs.append(Run(verdict, began_ns, began_ns, 1, head))


def verdict_of(verifier: Verifier, token: str, model: str) -> str:
    try:
        verifier.verify(token, model)
    except Rejected as refused:
        return refused.reason
    return "accepted"


def answer(verifier: Verifier, watch: Watch, asked: dict[str, Any]) -> dict[str, Any]:
    match asked["do"]:
        case "verify":
            began_ns = now_ns()
            verdict = verdict_of(verifier, asked["token"], asked.get("model", MODEL))
            return {"verdict": verdict, "began_ns": began_ns, "ended_ns": now_ns()}
        case "state":
            return {**asdict(verifier.state()), "now_ns": now_ns(), "wall_s": time.time()}
        case "watch":
            watch.add(asked["tokens"])
            return {}
        case "drop":
            watch.drop(asked["names"])
            return {}
        case "watched":
            runs = {name: [asdict(run) for run in runs] for name, runs in watch.told().items()}
            return {"runs": runs, "heads_back": watch.heads_back}
        case "time":
            # What one verdict takes, which must not grow with the number of revocations.
            spans = []
            for _ in range(asked["times"]):
                began = time.perf_counter_ns()
                verdict_of(verifier, asked["token"], MODEL)
                spans.append(time.perf_counter_ns() - began)
            return {"median_ns": sorted(spans)[len(spans) // 2]}
        case other:
            return {"unknown": other}


def say(**words: Any) -> None:
    sys.stdout.write(json.dumps(words) + "\n")
    sys.stdout.flush()


def main() -> None:
    # Also a stopped process must go when the test does.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    how = json.loads(sys.stdin.readline())
    identity = Identity(*(Path(how[paper]) for paper in ("certificate", "key", "ca")))
    verifier = Verifier.connect(
        how["endpoint"],
        realm=how["realm"],
        trust=how["trust"],
        identity=identity,
        state_dir=how.get("state_dir"),
        max_lease_s=how.get("max_lease_s"),
        pace=Pace(**how.get("pace", {})),
    )
    watch = Watch(verifier, how.get("every_s", 0.005))
    say(ready=True)
    for line in sys.stdin:
        say(**answer(verifier, watch, json.loads(line)))
    watch.stop()
    verifier.close()


if __name__ == "__main__":
    main()
