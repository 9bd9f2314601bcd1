"""What is still to be sent on one stream of the feed."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from broker.service.listening import Listener
from broker.service.publish import Published
from broker.v1 import feed_pb2

# What one slow subscriber can cost; beyond it, the queue is dropped and a snapshot takes its place.
MAX_QUEUED = 64
# Questions that wait for one subscriber, beyond its frames.
MAX_QUESTIONS = 8


def _nothing() -> None:
    """Nobody asked to be told."""


@dataclass(slots=True, eq=False)
class Subscriber:
    """One stream: what is still to be sent on it."""

    realm: str
    listener: Listener
    speaks: frozenset[str] = frozenset()
    # Frames, and questions in their order among them: a canary is judged by what was known when it was sent.
    queue: deque[Published | bytes] = field(default_factory=deque)
    questions: int = 0
    echoes: deque[feed_pb2.Echo] = field(default_factory=deque)
    # The newest answer about each key of receipts.
    kept: dict[str, bytes] = field(default_factory=dict)
    # The head that the verifier is at when it has read all that was sent; None: it needs a snapshot.
    position: int | None = None
    # Snapshots' parts that come before all frames of the queue.
    backlog: deque[bytes] = field(default_factory=deque)
    wake: Callable[[], None] = _nothing
    """Called when there is more to send."""

    def offer(self, published: Published) -> bool:
        """Queue a frame; return False when the queue was dropped instead."""
        self.wake()
        if len(self.queue) - self.questions >= MAX_QUEUED:
            self.drop_frames()
            self.position = None
            return False
        self.queue.append(published)
        return True

    def ask(self, message: bytes) -> bool:
        """Queue a question behind the frames; return False when too many wait."""
        if self.questions >= MAX_QUESTIONS:
            return False
        self.questions += 1
        self.queue.append(message)
        self.wake()
        return True

    def tell(self, kid: str, message: bytes) -> None:
        """Send the newest answer about a key of receipts, soon."""
        self.kept[kid] = message
        self.wake()

    def drop_frames(self) -> None:
        """Drop the frames that a snapshot will replace. Questions stay."""
        self.queue = deque(message for message in self.queue if isinstance(message, bytes))

    def next_message(self) -> bytes | None:
        """Take the first of the queue; return what to send of it, if anything."""
        queued = self.queue.popleft()
        if isinstance(queued, bytes):
            self.questions -= 1
            return queued
        if self.position is None or queued.previous_head > self.position:
            self.position = None
            return None
        if queued.previous_head < self.position:
            return None
        self.position = queued.head
        return queued.message
