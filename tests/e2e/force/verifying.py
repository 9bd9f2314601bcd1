"""A verifying program as its test sees it: commands, signals, memory, and what it must never have done."""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.waiting import eventually

ROOT = Path(__file__).parent.parent.parent.parent
ANSWER_S = 30.0
MS = 1_000_000
S = 1_000_000_000


def now_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


@dataclass(frozen=True, slots=True)
class Run:
    """Verdicts about one token that were the same, one after another; the first and last instant of them."""

    verdict: str
    began_ns: int
    ended_ns: int
    count: int
    head: int


class Verifying:
    """One process of tests.e2e.force.verifying_program. Use as a context manager."""

    def __init__(
        self,
        how: Mapping[str, Any],
        log: Path,
        *,
        prefix: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name = log.stem
        self.log = log
        self._how = how
        self._prefix = prefix
        self._environment = {"PATH": os.environ["PATH"], **(environment or {})}
        self._lines: queue.Queue[str] = queue.Queue()
        self._process: subprocess.Popen[str]

    def __enter__(self) -> "Verifying":
        with self.log.open("a") as log:
            self._process = subprocess.Popen(
                [*self._prefix, sys.executable, "-m", "tests.e2e.force.verifying_program"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=ROOT,
                env=self._environment,
            )
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()
        self._say(self._how)
        assert self._heard(within_s=60) == {"ready": True}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if self._process.poll() is None:
            self.go_on()
            self._process.stdin.close()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(10)
        self._reading.join(10)
        self._process.stdout.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(10)

    def stop(self) -> int:
        """SIGSTOP; return an instant at which it certainly stood still."""
        return stop(self._process)

    def go_on(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def ask(self, do: str, **words: Any) -> dict[str, Any]:
        self._say({"do": do, **words})
        return self._heard(within_s=ANSWER_S)

    def verdict(self, token: str) -> str:
        return str(self.ask("verify", token=token)["verdict"])

    def state(self) -> dict[str, Any]:
        return self.ask("state")

    def is_fresh(self) -> bool:
        return bool(self.state()["fresh_for_s"] > 0)

    def until_fresh(self, within_s: float = 30.0) -> float:
        return eventually(self.is_fresh, f"{self.name} is fresh", within_s=within_s)

    def until(self, token: str, verdict: str, within_s: float = 30.0) -> float:
        what = f"{self.name} says {verdict} of a token"
        return eventually(lambda: self.verdict(token) == verdict, what, within_s=within_s)

    def watch(self, **tokens: str) -> None:
        """Have a verdict about each from now on, every few milliseconds; return when each was accepted once."""
        for token in tokens.values():
            self.until(token, "accepted")
        self.ask("watch", tokens=tokens)
        eventually(lambda: tokens.keys() <= self.ask("watched")["runs"].keys(), "the tokens are watched")

    def drop(self, *names: str) -> None:
        self.ask("drop", names=names)

    def runs(self) -> dict[str, list[Run]]:
        """Return all verdicts so far, and fail if one was about what the verifier had forgotten (P4)."""
        watched = self.ask("watched")
        assert watched["heads_back"] == []
        found = {name: [Run(**run) for run in runs] for name, runs in watched["runs"].items()}
        for name, runs in found.items():
            verdicts = [run.verdict for run in runs]
            if "REVOKED" in verdicts:
                after = set(verdicts[verdicts.index("REVOKED") :])
                assert after <= {"REVOKED", "STALE"}, f"{self.name} revived {name}: {runs}"
        return found

    def last_accepted_ns(self, name: str) -> int:
        """Return the last instant at which the token was accepted; 0 if never."""
        return max((run.ended_ns for run in self.runs()[name] if run.verdict == "accepted"), default=0)

    def rss_mib(self) -> float:
        return rss_mib(self.pid)

    def _say(self, words: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(words) + "\n")
        self._process.stdin.flush()

    def _heard(self, *, within_s: float) -> dict[str, Any]:
        try:
            line = self._lines.get(timeout=within_s)
        except queue.Empty:
            raise AssertionError(f"{self.name} said nothing in {within_s} s: {self.log.read_text()[-3000:]}") from None
        assert line, f"{self.name} has ended: {self.log.read_text()[-3000:]}"
        return dict(json.loads(line))

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put("")


def until_instant(at_ns: int) -> None:
    """Return at an instant to come, within half a millisecond."""
    waiting = threading.Event()
    while now_ns() < at_ns:
        waiting.wait(0.0005)


def stop(process: "subprocess.Popen[str]") -> int:
    """SIGSTOP a process; return an instant at which it certainly stood still."""
    process.send_signal(signal.SIGSTOP)
    threads = Path(f"/proc/{process.pid}/task")
    eventually(
        lambda: all((thread / "stat").read_text().rpartition(") ")[2][0] == "T" for thread in threads.iterdir()),
        "the process stands still",
    )
    return now_ns()


def rss_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024
