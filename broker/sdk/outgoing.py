"""One spool's way to the broker: its key enrolled, its batches sent again until they are acknowledged."""

import logging
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from broker.sdk.sealing import MAX_SEALED_LINES, seal
from broker.sdk.spool import Spool
from broker.token.receipts import BATCH_CONTEXT
from broker.v1 import feed_pb2

if TYPE_CHECKING:
    from broker.sdk.receipting import ReceiptPace

log = logging.getLogger("broker.sdk")

# As the contract says: so many batches of one key wait for an answer.
WINDOW = 2
# Of sums, so many records may wait before their time is over; then there are more sums of that minute.
MAX_UNSUMMED = 20_000
OUT_OF_ORDER = "RECEIPTS_OUT_OF_ORDER"

Send = Callable[[feed_pb2.ListenRequest], None]


class Outgoing:
    """Sends what is in a spool. One thread owns it."""

    def __init__(self, spool: Spool, pace: "ReceiptPace") -> None:
        self.spool = spool
        self._pace = pace
        self._stream = 0
        # Up to where the broker has it; None: it has not said so on this stream.
        self._kept: int | None = None
        self._acknowledged = 0
        self._sent = 0
        self._in_flight: deque[int] = deque()
        self._asked_s = 0.0
        self._ask_at_s = 0.0
        self._sealed_s = time.monotonic()

    @property
    def waiting(self) -> int:
        """How many records the broker has not acknowledged."""
        return max(0, self.spool.journal.next - 1 - self._acknowledged)

    @property
    def is_done(self) -> bool:
        """Whether the broker has all of it, by its own word."""
        return self.waiting == 0

    def take(self, kept: feed_pb2.ReceiptsKept) -> None:
        """Take the broker's answer."""
        now_s = time.monotonic()
        self._asked_s = now_s
        if kept.refusal and kept.refusal != OUT_OF_ORDER:
            log.warning("the broker refused receipts, %s: %s", kept.refusal, kept.detail)
            self._forget(now_s + self._pace.again_after_s)
            return
        if self._kept is None or kept.refusal:
            # The broker's word on where it is; what is under way came too late or too early.
            self._in_flight.clear()
            self._sent = kept.through
        while self._in_flight and self._in_flight[0] <= kept.through:
            self._in_flight.popleft()
        self._kept = kept.through
        self._acknowledged = max(self._acknowledged, kept.through)
        self.spool.journal.drop(self._acknowledged)

    def send_due(self, stream: int, send: Send, demand: int, *, is_draining: bool) -> None:
        """Send what is due on this stream: its key first, then batches, as many as may be under way."""
        now_s = time.monotonic()
        if stream != self._stream:
            self._stream = stream
            self._forget(now_s)
        is_unanswered = bool(self._in_flight) and now_s - self._asked_s > self._pace.answer_within_s
        if is_unanswered or (self._kept is None and now_s >= self._ask_at_s):
            # Nothing was sent yet, or no answer came: ask where the broker is.
            self._forget(now_s + self._pace.answer_within_s)
            send(self.spool.enrolment())
        if self._kept is None:
            return
        summed = demand == feed_pb2.RECEIPT_DEMAND_SUMMED
        while len(self._in_flight) < WINDOW and (is_draining or self._is_due(now_s, summed=summed)):
            records = self.spool.journal.read(self._sent, MAX_UNSUMMED if summed else MAX_SEALED_LINES)
            if not records:
                return
            sealed = seal(
                records,
                realm=self.spool.realm,
                kid=self.spool.kid,
                incarnation=self.spool.incarnation,
                after=self._sent,
                summed=summed,
            )
            signature = self.spool.sign(BATCH_CONTEXT + sealed.body)
            send(feed_pb2.ListenRequest(receipts=feed_pb2.SignedReceipts(body=sealed.body, signature=signature)))
            if not self._in_flight:
                self._asked_s = now_s
            self._in_flight.append(sealed.last)
            self._sent = sealed.last
            self._sealed_s = now_s

    def _is_due(self, now_s: float, *, summed: bool) -> bool:
        unsent = self.spool.journal.next - 1 - self._sent
        if unsent <= 0:
            self._sealed_s = now_s
            return False
        many, every_s = (
            (MAX_UNSUMMED, self._pace.sums_every_s) if summed else (MAX_SEALED_LINES, self._pace.send_every_s)
        )
        return unsent >= many or now_s - self._sealed_s >= every_s

    def _forget(self, ask_at_s: float) -> None:
        """Forget what is under way; it is asked for anew."""
        self._kept = None
        self._in_flight.clear()
        self._ask_at_s = ask_at_s
