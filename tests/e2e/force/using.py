"""A using program as its test sees it: what it said was accepted, and why it refused."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.e2e.force.stage import Stage
from tests.e2e.force.verifying import ROOT
from tests.waiting import eventually

PACE = {"backoff_first_s": 0.05, "backoff_most_s": 0.3}
RECEIPT_PACE = {"send_every_s": 0.05, "answer_within_s": 1.0, "again_after_s": 0.2}


class Using:
    """One process of tests.e2e.force.using_program. Use as a context manager."""

    def __init__(
        self,
        stage: Stage,
        token: str,
        state_dir: Path,
        *,
        gateway: str = "alpha",
        endpoint: str = "",
        first: int = 1,
        rest_s: float = 0.0005,
        max_spool_bytes: int = 16 << 20,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._environment = dict(environment or {})
        papers = stage.papers[gateway]
        self._how: dict[str, Any] = {
            "endpoint": endpoint or stage.endpoint,
            "trust": str(stage.trust()),
            "certificate": str(papers.certificate),
            "key": str(papers.key),
            "ca": str(papers.ca),
            "state_dir": str(state_dir),
            "token": token,
            "first": first,
            "rest_s": rest_s,
            "pace": PACE,
            "receipt_pace": RECEIPT_PACE,
            "max_spool_bytes": max_spool_bytes,
        }
        self.accepted: list[int] = []
        self.refusals: list[str] = []
        self._since = 0
        self._log = stage.folder / f"using-{gateway}.log"
        self._process: subprocess.Popen[str]

    def __enter__(self) -> "Using":
        with self._log.open("a") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.e2e.force.using_program"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=ROOT,
                env={"PATH": os.environ["PATH"]} | self._environment,
            )
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(self._how) + "\n")
        self._process.stdin.flush()
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self.end()

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def until_accepted(self, more: int, within_s: float = 40.0) -> None:
        wanted = len(self.accepted) + more
        eventually(lambda: len(self.accepted) >= wanted, f"{more} more uses are accepted", within_s=within_s)
        self._since = len(self.refusals)

    def until_refused(self, reason: str, within_s: float = 40.0) -> None:
        """Return once one is, or was since `until_accepted` returned."""
        eventually(lambda: reason in self.refusals[self._since :], f"a use is refused, {reason}", within_s=within_s)

    def kill(self) -> None:
        """SIGKILL, and hear all that it said before."""
        self._process.kill()
        self._over()

    def end(self) -> None:
        """End it in good order."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._over()

    def _over(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)
        self._reading.join(10)
        self._process.stdout.close()
        if not self._process.stdin.closed:
            self._process.stdin.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            word = line.strip()
            if word.isdecimal():
                self.accepted.append(int(word))
            else:
                self.refusals.append(word)
