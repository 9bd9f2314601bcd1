"""Gathers the signing of many threads into few calls to Vault, and answers each within its time."""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field

from broker.adapters.vault_session import Refused
from broker.adapters.vault_transit import MAX_ITEMS, KeyVersion, NoSignature, TransitKeys
from broker.errors import Failure, SignerUnavailable
from broker.service.ports import Clock

NS_PER_S = 1_000_000_000
# A caller must be answered within 2 s of Vault's falling silent (threats.md, section 9).
ANSWER_WITHIN_S = 1.8
READ_TIMEOUT_S = 1.5
GATHER_S = 0.002
MAX_OPEN = 20_000
WORKERS = 4


@dataclass(slots=True, eq=False)
class _Job:
    """One `sign`: all of its signatures or none."""

    name: str
    version: KeyVersion
    messages: Sequence[bytes]
    on_refused: Callable[[], None]
    since_ns: int
    until_ns: int
    future: "Future[Sequence[bytes]]" = field(default_factory=Future)
    signatures: dict[int, bytes] = field(default_factory=dict)
    taken: int = 0

    @property
    def key(self) -> tuple[str, str]:
        """What messages of one call must share."""
        return self.name, self.version.kid

    @property
    def left(self) -> int:
        """How many of its messages are in no call yet."""
        return 0 if self.future.done() else len(self.messages) - self.taken

    def fail(self, failure: Failure) -> None:
        """Answer with a failure, unless it was answered."""
        with suppress(InvalidStateError):
            self.future.set_exception(failure)

    def settle(self, start: int, signatures: Sequence[bytes | NoSignature]) -> None:
        """Take in the signatures of messages from `start` on; answer when it is decided."""
        for position, signature in enumerate(signatures, start):
            if isinstance(signature, NoSignature):
                if signature is NoSignature.REFUSED:
                    self.on_refused()
                self.fail(SignerUnavailable(f"{signature}: {self.name}"))
                return
            self.signatures[position] = signature
        if len(self.signatures) == len(self.messages):
            with suppress(InvalidStateError):
                self.future.set_result([self.signatures[position] for position in range(len(self.messages))])


@dataclass(frozen=True, slots=True)
class _Part:
    """Messages `start` to `stop` of a job, in one call."""

    job: _Job
    start: int
    stop: int


class Batches:
    """Safe for use by several threads; has threads of its own: a dispatcher decides, workers call Vault."""

    def __init__(
        self,
        keys: TransitKeys,
        clock: Clock,
        *,
        gather_s: float = GATHER_S,
        answer_within_s: float = ANSWER_WITHIN_S,
        read_timeout_s: float = READ_TIMEOUT_S,
    ) -> None:
        self._keys = keys
        self._clock = clock
        self._gather_ns = int(gather_s * NS_PER_S)
        self._answer_within_ns = int(answer_within_s * NS_PER_S)
        self._read_timeout_s = read_timeout_s
        self._changed = threading.Condition()
        # In the order of their deadlines, because all have the same time.
        self._open: deque[_Job] = deque()
        self._waiting: deque[_Job] = deque()
        self._open_messages = 0
        self._busy = 0
        self._is_closed = False
        self._workers = ThreadPoolExecutor(WORKERS, thread_name_prefix="transit-sign")
        self._dispatcher = threading.Thread(target=self._dispatch, name="transit-gather", daemon=True)
        self._dispatcher.start()

    def sign(
        self, name: str, version: KeyVersion, messages: Sequence[bytes], *, on_refused: Callable[[], None]
    ) -> "Future[Sequence[bytes]]":
        """Sign all or none. `on_refused` is called if Vault is there and refuses to sign with this version.

        Raises (through the future):
            SignerUnavailable: Not signed within the time, or Vault is away, or too much waits.
        """
        now_ns = self._clock.boottime_ns()
        job = _Job(name, version, messages, on_refused, now_ns, now_ns + self._answer_within_ns)
        # It cannot be cancelled by whoever holds it: the signing goes on anyway.
        job.future.set_running_or_notify_cancel()
        with self._changed:
            problem = self._refusal(len(messages))
            if messages and not problem:
                self._open.append(job)
                self._waiting.append(job)
                self._open_messages += len(messages)
                self._changed.notify()
        if problem:
            job.fail(SignerUnavailable(problem))
        elif not messages:
            job.future.set_result([])
        return job.future

    def close(self) -> None:
        """Fail what is open and stop; a call that hangs is left behind."""
        with self._changed:
            self._is_closed = True
            abandoned = list(self._open)
            self._changed.notify()
        self._dispatcher.join(timeout=10)
        self._workers.shutdown(wait=False, cancel_futures=True)
        for job in abandoned:
            job.fail(SignerUnavailable("signing in Vault has ended"))

    def _refusal(self, count: int) -> str:
        if self._is_closed:
            return "signing in Vault has ended"
        return "too many signatures wait for Vault" if self._open_messages + count > MAX_OPEN else ""

    def _dispatch(self) -> None:
        while True:
            with self._changed:
                if self._is_closed:
                    return
                now_ns = self._clock.boottime_ns()
                late = self._taken_off(now_ns)
                parts = self._gathered(now_ns)
                if parts:
                    self._busy += 1
                    self._workers.submit(self._call, parts)
                elif not late:
                    self._changed.wait(timeout=self._pause_s(now_ns))
            # Outside the lock: whoever waits for a future may do anything in its callback.
            for job in late:
                job.fail(SignerUnavailable("Vault did not sign in time"))

    def _taken_off(self, now_ns: int) -> list[_Job]:
        """Take off what is answered or too late, whatever the workers hang in."""
        gone = []
        while self._open and (self._open[0].future.done() or self._open[0].until_ns <= now_ns):
            gone.append(self._open.popleft())
            self._open_messages -= len(gone[-1].messages)
        return [job for job in gone if not job.future.done()]

    def _gathered(self, now_ns: int) -> list[_Part]:
        """Return the parts of the next call, or none if it is better to wait or no worker is free."""
        while self._waiting and not self._waiting[0].left:
            self._waiting.popleft()
        if not self._waiting or self._busy >= WORKERS:
            return []
        first = self._waiting[0]
        same_key = [job for job in self._waiting if job.left and job.key == first.key]
        if sum(job.left for job in same_key) < MAX_ITEMS and now_ns < first.since_ns + self._gather_ns:
            return []
        parts: list[_Part] = []
        room = MAX_ITEMS
        for job in same_key:
            count = min(room, job.left)
            if not count:
                break
            parts.append(_Part(job, job.taken, job.taken + count))
            job.taken += count
            room -= count
        return parts

    def _pause_s(self, now_ns: int) -> float | None:
        ends = [self._open[0].until_ns] if self._open else []
        if self._waiting and self._busy < WORKERS:
            ends.append(self._waiting[0].since_ns + self._gather_ns)
        return max(min(ends) - now_ns, 0) / NS_PER_S if ends else None

    def _call(self, parts: Sequence[_Part]) -> None:
        first = parts[0].job
        messages = [message for part in parts for message in part.job.messages[part.start : part.stop]]
        try:
            signed = self._keys.sign(first.name, first.version, messages, read_timeout_s=self._read_timeout_s)
            for part in parts:
                count = part.stop - part.start
                part.job.settle(part.start, signed[:count])
                signed = signed[count:]
        except Failure as failure:
            for part in parts:
                if isinstance(failure, Refused):
                    part.job.on_refused()
                part.job.fail(failure)
        finally:
            with self._changed:
                self._busy -= 1
                self._changed.notify()
