"""A verifier's receipts: noted when a use is accepted, synced, signed and sent by a thread of their own.

What `accepted` returned for survives the death of the process (see journal.py); a power cut takes at most what came
in the last `sync_every_s`. What cannot be noted is not accepted. Denials are counted and written every so often, as
sums: strangers cause them, and shall fill no disk; those of the last seconds are lost with the process.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from broker.errors import ReceiptsUnkept, Rejected
from broker.sdk.following import Trusted
from broker.sdk.outgoing import Outgoing, Send
from broker.sdk.sealing import accepted_record, denied_record, ended_record
from broker.sdk.spool import Spool, adopted, has_left, new_spool
from broker.token.receipts import Line, What
from broker.v1 import feed_pb2

log = logging.getLogger("broker.sdk")

DEFAULT_SPOOL_BYTES = 64 << 20
# Different tokens, models and reasons at once; the others are counted as of nobody.
MAX_DENIED = 256
MAX_UNTOLD_ENDS = 1024
TICK_S = 0.02
MEND_EVERY_S = 0.25


@dataclass(frozen=True, slots=True)
class ReceiptPace:
    """How often what is done, in seconds."""

    sync_every_s: float = 0.1
    send_every_s: float = 0.5
    sums_every_s: float = 60.0
    denials_every_s: float = 5.0
    answer_within_s: float = 5.0
    again_after_s: float = 1.0


class Receipts:
    """One verifier's. Nothing is done, and no thread there, before the policy demands receipts."""

    def __init__(
        self,
        state_dir: Path | None,
        realm: str,
        on_change: Callable[[], None],
        *,
        pace: ReceiptPace | None = None,
        max_bytes: int = DEFAULT_SPOOL_BYTES,
    ) -> None:
        self._state_dir = state_dir
        self._realm = realm
        self._on_change = on_change
        self._pace = pace or ReceiptPace()
        self._max_bytes = max_bytes
        # Something of processes before this one is sent whatever the policy demands now.
        self._has_left = state_dir is not None and has_left(state_dir, realm)
        self._has_adopted = False
        self._synced_s = self._denials_told_s = 0.0
        self._own: Spool | None = None
        self._outgoing: dict[str, Outgoing] = {}
        self._state: Trusted | None = None
        self._problem = "the place for receipts is being opened"
        self._denied: dict[tuple[str, int, str, str], list[int]] = {}
        self._counting = threading.Lock()
        self._ends: deque[bytes] = deque(maxlen=MAX_UNTOLD_ENDS)
        self._answers: deque[feed_pb2.ReceiptsKept] = deque()
        self._send: Send | None = None
        self._stream = 0
        self._wake = threading.Event()
        self._is_over = threading.Event()
        self._is_draining = False
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None

    @property
    def problem(self) -> str:
        """Why nothing can be kept though the policy demands it; empty while all is well."""
        if self._state is None or not self._state.receipts:
            return ""
        own = self._own
        return self._problem if own is None else own.journal.problem

    @property
    def waiting(self) -> int:
        """How many records the broker has not acknowledged."""
        return sum(one.waiting for one in tuple(self._outgoing.values()))

    def follow(self, state: Trusted) -> None:
        """Begin, once the policy demands receipts. Called after each frame; does not wait."""
        if not state.receipts and self._state is None and not self._has_left:
            return
        self._state = state
        if self._thread is None and not self._is_over.is_set():
            with self._starting:
                if self._thread is None:
                    self._thread = threading.Thread(target=self._run, name="broker-receipts", daemon=True)
                    self._thread.start()

    def accepted(self, subject: str, at_ms: int, head: int, request_hash: bytes | None) -> int:
        """Note a use before it is accepted; return its number. Raises ReceiptsUnkept: it must not be accepted."""
        own = self._own
        if own is None:
            raise ReceiptsUnkept(self._problem)
        return own.journal.append(accepted_record(subject, at_ms, head, request_hash))

    def ended(self, subject: str, at_ms: int, head: int, *, accepted: int, why: str, calls: int, size: int) -> None:
        """Note how a use that lasted ended. Never raises; what cannot be noted now is tried again for a while."""
        self._ends.append(ended_record(subject, at_ms, head, accepted=accepted, why=why, calls=calls, size=size))
        self._tell_ends()

    def denied(self, refused: Rejected, token: str, index: int, model: str, at_ms: int, head: int) -> None:
        """Count a denial; `token` is empty where nothing of it can be believed. Never raises."""
        with self._counting:
            key = (token, index, model, refused.reason)
            if key not in self._denied and len(self._denied) >= MAX_DENIED:
                key = ("", 0, "", refused.reason)
            sum_ = self._denied.setdefault(key, [at_ms, at_ms, head, 0])
            sum_[1] = max(sum_[1], at_ms)
            sum_[2] = max(sum_[2], head)
            sum_[3] += 1

    def begin_stream(self, send: Send) -> None:
        """Send on this stream from now on. `send` may be called from any thread, and does not wait."""
        self._stream += 1
        self._send = send
        self._wake.set()

    def end_stream(self) -> None:
        """Send nothing until the next stream begins."""
        self._send = None

    def take(self, kept: feed_pb2.ReceiptsKept) -> None:
        """Take the broker's answer, which is verified."""
        self._answers.append(kept)
        self._wake.set()

    def close(self, *, drain_s: float) -> None:
        """End; first send what there is, for so long, if somebody listens. What is not sent stays on disk."""
        self._is_draining = True
        self._wake.set()
        deadline_s = time.monotonic() + drain_s
        thread = self._thread
        while thread is not None and self._send is not None and self.waiting and time.monotonic() < deadline_s:
            self._is_over.wait(TICK_S)
        self._is_over.set()
        self._wake.set()
        if thread is not None and thread is not threading.current_thread():
            thread.join(drain_s + 1)

    def forget_after_fork(self) -> None:
        """In a child: all of it is the parent's. It is of no use any more."""
        own = self._own
        for spool in {one.spool for one in self._outgoing.values()} | ({own} if own is not None else set()):
            spool.forget_after_fork()
        self._own, self._outgoing = None, {}

    def _run(self) -> None:
        try:
            while not self._is_over.is_set():
                self._wake.wait(TICK_S if self._own is None or self._busy() else self._pace.sync_every_s)
                self._wake.clear()
                self._once()
        finally:
            self._shut()

    def _busy(self) -> bool:
        return self._is_draining or bool(self.problem)

    def _once(self) -> None:
        """Do what is due. Whatever happens, the thread lives: without it, nothing is accepted."""
        try:
            if self._own is None:
                self._open()
            self._look_after()
            self._send_due()
        except OSError as bad:
            self._problem = f"receipts cannot be kept: {bad.strerror or bad}"
            self._is_over.wait(MEND_EVERY_S)
        except Exception as defect:
            log.exception("a defect in the receipts")
            self._problem = f"receipts cannot be kept: a defect, {type(defect).__name__}"
            self._is_over.wait(MEND_EVERY_S)

    def _open(self) -> None:
        state = self._state
        if state is None:
            return
        if self._state_dir is None:
            self._problem = "there is no folder to keep receipts in; give the verifier a state_dir"
            return
        if not self._has_adopted:
            # Once more after a failure: what is adopted already is passed over, as its lock is ours.
            for spool in adopted(self._state_dir, self._realm):
                self._outgoing[spool.kid] = Outgoing(spool, self._pace)
            self._has_adopted = True
        if not state.receipts:
            return
        left = sum(one.spool.journal.size for one in self._outgoing.values())
        # So that a verifier that is started again and again without a broker does not fill the disk.
        room = max(self._max_bytes - left, self._max_bytes // 4)
        own = new_spool(self._state_dir, self._realm, state.incarnation, max_bytes=room)
        self._outgoing[own.kid] = Outgoing(own, self._pace)
        self._own = own
        self._on_change()

    def _look_after(self) -> None:
        own = self._own
        if own is None:
            return
        if self._state is not None and own.incarnation != self._state.incarnation:
            # The ledger was restored: heads of now are not those of then. What is in there is sent as what it is.
            self._own = None
            return
        if own.journal.problem:
            own.journal.mend()
            if own.journal.problem:
                self._is_over.wait(MEND_EVERY_S)
            else:
                self._on_change()
            return
        now_s = time.monotonic()
        if now_s - self._synced_s >= self._pace.sync_every_s:
            self._synced_s = now_s
            own.journal.sync()
        self._tell_ends()
        self._tell_denials()

    def _tell_ends(self) -> None:
        own = self._own
        while own is not None:
            try:
                record = self._ends.popleft()
            except IndexError:
                return
            try:
                own.journal.append(record)
            except ReceiptsUnkept:
                self._ends.append(record)
                return

    def _tell_denials(self) -> None:
        own, now_s = self._own, time.monotonic()
        is_due = now_s - self._denials_told_s >= self._pace.denials_every_s or self._is_draining
        if own is None or not self._denied or not is_due:
            return
        self._denials_told_s = now_s
        with self._counting:
            told, self._denied = self._denied, {}
        for (token, index, model, reason), (first, last, head, count) in told.items():
            line = Line(What.DENIED, token, index, model, first, last, head, count, reason=reason)
            try:
                own.journal.append(denied_record(line))
            except ReceiptsUnkept:
                # A full disk forgets denials before it forgets what was accepted.
                return

    def _send_due(self) -> None:
        while self._answers:
            kept = self._answers.popleft()
            one = self._outgoing.get(kept.key)
            if one is not None:
                one.take(kept)
        send, state = self._send, self._state
        if send is None or state is None:
            return
        for kid, one in tuple(self._outgoing.items()):
            one.send_due(self._stream, send, state.receipts, is_draining=self._is_draining)
            if one.spool is not self._own and one.is_done:
                one.spool.close(remove=True)
                del self._outgoing[kid]

    def _shut(self) -> None:
        for one in self._outgoing.values():
            one.spool.close(remove=one.is_done)
        self._outgoing = {}
        self._own = None
        self._problem = "the verifier is closed"
