"""Takes receipts off the feed's streams, has them written in groups, and answers. Never holds up a stream."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

from broker.domain.policy import Realm, Receipts
from broker.errors import Defect, Failure, Forbidden, ReceiptsRefused
from broker.service import frames
from broker.service.keep_receipts import Answer, KeepReceipts, Offered, Source
from broker.service.ports import Clock, Head, Signer
from broker.token.keys import Purpose
from broker.token.receipts import MAX_BATCH_BYTES
from broker.v1 import feed_pb2

log = logging.getLogger("broker.feed")

# One transaction's worth: revocations wait no longer than it takes.
GROUP_BYTES = 512 << 10
# Of all streams together; what comes beyond it is dropped, and sent again by whoever gets no answer.
MAX_WAITING_BYTES = 16 << 20
# Of one stream: two batches of its own key, and those of processes before it.
MAX_WAITING = 8
# On one stream: each key, and again when an answer does not come.
MAX_ENROLMENTS = 1024
MAX_DETAIL_CHARS = 200


class Reader(Protocol):
    """A stream, as far as answers go."""

    def tell(self, kid: str, message: bytes) -> None:
        """Send the newest answer about a key, soon."""


@dataclass(slots=True, eq=False)
class Sending:
    """One stream that sends receipts."""

    source: Source
    reader: Reader
    waiting: int = 0
    enrolments: int = 0


@dataclass(frozen=True, slots=True)
class _Job:
    sending: Sending
    request: feed_pb2.EnrollKey | feed_pb2.SignedReceipts
    size: int


class Receiving:
    """Owned by one event loop; the work is done in one thread of its own."""

    def __init__(
        self,
        keep: KeepReceipts,
        signer: Signer,
        clock: Clock,
        head: Callable[[], Head | None],
        dropped: Callable[[str], None],
    ) -> None:
        self._keep = keep
        self._signer = signer
        self._clock = clock
        self._head = head
        self._dropped = dropped
        self._jobs: deque[_Job] = deque()
        self._waiting_bytes = 0
        self._has_work = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="receipts")

    def took(self, sending: Sending, message: feed_pb2.ListenRequest) -> bool:
        """Take a message if it is of receipts. Raises ReceiptsRefused for what no verifier of ours sends."""
        match message.WhichOneof("message"):
            case "enroll":
                sending.enrolments += 1
                if sending.enrolments > MAX_ENROLMENTS:
                    raise ReceiptsRefused("too many keys on one stream")
                self._queue(sending, message.enroll)
            case "receipts":
                if len(message.receipts.body) > MAX_BATCH_BYTES:
                    size = len(message.receipts.body)
                    raise ReceiptsRefused(f"a batch of {size} bytes", hint=f"at most {MAX_BATCH_BYTES}")
                self._queue(sending, message.receipts)
            case _:
                return False
        return True

    def _queue(self, sending: Sending, request: feed_pb2.EnrollKey | feed_pb2.SignedReceipts) -> None:
        size = request.ByteSize()
        if sending.waiting >= MAX_WAITING or self._waiting_bytes + size > MAX_WAITING_BYTES:
            self._dropped(sending.source.realm)
            return
        sending.waiting += 1
        self._waiting_bytes += size
        self._jobs.append(_Job(sending, request, size))
        self._has_work.set()

    async def run(self) -> None:
        """Work for as long as the task lives."""
        loop = asyncio.get_running_loop()
        while True:
            await self._has_work.wait()
            group = self._group()
            if not group:
                self._has_work.clear()
                continue
            answered = await loop.run_in_executor(self._thread, self._answers, group)
            for job, (kid, message) in zip(group, answered, strict=True):
                job.sending.waiting -= 1
                self._waiting_bytes -= job.size
                if message:
                    job.sending.reader.tell(kid, message)

    def _group(self) -> list[_Job]:
        """Take what is next: enrolments, or batches up to a transaction's worth."""
        group: list[_Job] = []
        size = 0
        while self._jobs and (not group or size + self._jobs[0].size <= GROUP_BYTES):
            job = self._jobs.popleft()
            size += job.size
            group.append(job)
        return group

    def _answers(self, group: list[_Job]) -> list[tuple[str, bytes]]:
        """In the thread: do the work and sign the answers. A defect costs its group the answer, and no more."""
        try:
            answers = self._done(group)
            return [
                (answer.kid, self._signed(job.sending.source.realm, answer))
                for job, answer in zip(group, answers, strict=True)
            ]
        except Exception:  # whatever it is, receipts are sent again and revocations must go on
            log.exception("a defect in the receipts")
            return [("", b"")] * len(group)

    def _done(self, group: list[_Job]) -> list[Answer]:
        """Batches together; an enrolment between them is waited for, so that what it enrolls is known."""
        answers: list[Answer] = []
        offered: list[Offered] = []
        for job in group:
            if isinstance(job.request, feed_pb2.SignedReceipts):
                offered.append(Offered(job.sending.source, job.request.body, job.request.signature))
                continue
            answers += self._keep.keep(offered)
            offered = []
            answers.append(self._enrolled(job.sending.source, job.request))
        return answers + list(self._keep.keep(offered))

    def _enrolled(self, source: Source, request: feed_pb2.EnrollKey) -> Answer:
        try:
            return self._keep.enroll(source, request.public_key, request.signature)
        except Failure as failure:
            return Answer("", 0, failure)

    def _signed(self, realm: str, answer: Answer) -> bytes:
        head = self._head()
        refused = answer.refused
        if isinstance(refused, Defect):
            log.error("receipts were not written", exc_info=refused)
        if head is None:
            return b""
        try:
            key = self._signer.current(realm, Purpose.FEED)
            return frames.receipts_kept(
                realm=realm,
                incarnation=head.incarnation,
                wall=self._clock.now(),
                kid=answer.kid,
                through=answer.through,
                refusal=refused.reason if refused is not None else "",
                detail=refused.message[:MAX_DETAIL_CHARS] if refused is not None else "",
                key=key,
            )
        except Failure:
            # Without a key there is no answer, and who gets none asks again.
            return b""


def must_keep_receipts(realm: Realm | None, speaks: Collection[str]) -> None:
    """Refuse one who would accept without a receipt, because it never heard of them (P7)."""
    if realm is not None and realm.receipts is not Receipts.NONE and "receipts" not in speaks:
        raise Forbidden(f"realm {realm.name} demands receipts, which this verifier cannot keep", hint="update its SDK")
