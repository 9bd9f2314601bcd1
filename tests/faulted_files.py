"""Files of the SDK and of a witness, kept by a process under failing calls: `python -m tests.faulted_files`.

Each line of JSON that comes in is an order: what to do, and with what. Each is answered by one line: what came of it,
or `refused` and why. What an order needs is made by the first one that names it, and lives as long as the process.
"""

import asyncio
import functools
import json
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from broker.adapters.witness_store import WitnessStore, hashed, logs_of
from broker.errors import Failure
from broker.ledger.note import KeyKind, VerifierKey, cosign_note, parse_vkey
from broker.ledger.witnessing import Turned, origin_of, parse_request
from broker.sdk.following import Mark
from broker.sdk.journal import Journal
from broker.sdk.remembered import Remembered
from broker.sdk.spool import new_spool
from broker.sdk.stream import Keeper, Pace
from tests.failing_calls import FailingCalls

ROOT = Path(__file__).parent.parent
AT = 1_790_000_000


class FaultedFiles:
    """The process, from the test's side. `of` names a file or folder, `what` is a function below."""

    def __init__(self, calls: FailingCalls) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faulted_files"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            text=True,
            env=calls.environment,
        )

    def do(self, what: str, of: Path, *words: Any) -> Any:
        """Return what came of it, or "refused: " and why."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([what, str(of), *words]) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    @contextmanager
    def without_handles(self) -> Iterator[None]:
        """Let it open nothing more meanwhile."""
        pid = self._process.pid
        taken = {int(one.name) for one in Path(f"/proc/{pid}/fd").iterdir()}
        free = next(number for number in range(len(taken) + 1) if number not in taken)
        _, most = before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (free, most))
        try:
            yield
        finally:
            resource.prlimit(pid, resource.RLIMIT_NOFILE, before)

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()


@functools.cache
def keeper(folder: str) -> Keeper:
    return Keeper(Remembered(folder, "evaluation"), Pace())


@functools.cache
def journal(folder: str) -> Journal:
    return Journal(Path(folder), max_bytes=1 << 20)


@functools.cache
def witness(folder: str, log: str) -> WitnessStore:
    private = Ed25519PrivateKey.from_private_bytes(bytes(32))
    key = VerifierKey("witness.example/w1", KeyKind.COSIGNATURE, private.public_key().public_bytes_raw())
    return WitnessStore(
        Path(folder), logs_of((parse_vkey(log),)), lambda text: cosign_note(text, key, private.sign, AT)
    )


def acknowledge(folder: str, head: int) -> bool:
    """Do what a stream does before it acknowledges a frame with revocations."""
    kept = keeper(folder)
    kept.owe()
    asyncio.run(kept.keep(Mark("an-incarnation", head, 1_000 + head)))
    return True


def append(folder: str, text: str) -> int:
    return journal(folder).append(text.encode())


def sync(folder: str) -> str:
    journal(folder).sync()
    return journal(folder).problem


def mend(folder: str) -> str:
    journal(folder).mend()
    return journal(folder).problem


def drop(folder: str, through: int) -> None:
    journal(folder).drop(through)


def size(folder: str) -> int:
    return journal(folder).size


def read(folder: str) -> list[str]:
    return [record.decode() for _, record in journal(folder).read(0, 10_000)]


def spool(state_dir: str) -> str:
    return new_spool(Path(state_dir), "evaluation", "an-incarnation", max_bytes=1 << 20).kid


def cosign(folder: str, log: str, request: str) -> str | list[int]:
    """Return the witness's signature, or the status and size with which it does not sign."""
    asked = parse_request(request.encode())
    verdict = witness(folder, log).add(asked, origin_of(asked))
    return [verdict.status, verdict.size] if isinstance(verdict, Turned) else str(verdict)


def shown(folder: str, log: str) -> str | None:
    note = witness(folder, log).last(hashed(parse_vkey(log).name))
    return None if note is None else note.decode()


ORDERS = {order.__name__: order for order in (acknowledge, append, sync, mend, drop, read, size, spool, cosign, shown)}


def main() -> None:
    for line in sys.stdin:
        what, *words = json.loads(line)
        try:
            answer = ORDERS[what](*words)  # type: ignore[operator]
        except (OSError, Failure) as bad:
            answer = f"refused: {bad}"
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
