"""Who listens to this broker, how far they are, and when a revocation is in force at all of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

NS_PER_MS = 1_000_000


@dataclass(slots=True)
class Listener:
    """One stream of one verifier. It may hold a lease until `holds_until_ns` on this process's clock."""

    stream: int
    verifier: str
    realm: str
    version: str
    address: str
    lease_ms: int
    joined_ns: int
    head: int = 0
    acknowledged_ns: int | None = None
    left_ns: int | None = None
    gave_up_ns: int | None = None
    last_nack: str = ""
    # By its own word, bounded by what can be: the uses that run, and until when it may accept on what it has.
    uses: int = 0
    fresh_until_ns: int | None = None

    def holds_until_ns(self, now_ns: int) -> int:
        """Return the last instant at which it can hold a lease: the latest frame it can have, and a lease."""
        if self.gave_up_ns is not None:
            return self.gave_up_ns
        last_frame_ns = now_ns if self.left_ns is None else self.left_ns
        return last_frame_ns + self.lease_ms * NS_PER_MS

    def state(self, now_ns: int) -> str:
        """Return `fresh`, `joining` or `lapsed`, as far as the broker can know."""
        if self.left_ns is not None:
            return "lapsed"
        if self.acknowledged_ns is None:
            return "joining"
        silent_ns = now_ns - self.acknowledged_ns
        return "fresh" if silent_ns <= self.lease_ms * NS_PER_MS else "lapsed"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one verifier stopped, `after_ns` the commit."""

    verifier: str
    realm: str
    is_acknowledged: bool
    after_ns: int


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a revocation is. Complete when `outcomes` covers all who listened and the unknown have lapsed."""

    listening: int
    outcomes: tuple[Outcome, ...]
    is_complete: bool
    next_look_ns: int


@dataclass(slots=True)
class Watch:
    """A revocation being waited for: each listener that may have held a lease at its commit."""

    index: int
    realms: frozenset[str]
    committed_ns: int
    unknown_until_ns: int
    waiting: dict[int, Listener]
    outcomes: list[Outcome] = field(default_factory=list)
    on_change: Callable[[], None] | None = None
    # Whether the feed has published the revocation: whoever joins after that gets it with the first frame.
    is_published: bool = False


class Listeners:
    """The streams of this process. Pure: instants are arguments. One event loop owns it.

    Verifiers that this process never saw may hold a lease: those of the process before it for one lease
    from `started_ns` (None: the ledger is new, there was none), and, unless this is the only broker,
    those of the others at any time.
    """

    def __init__(self, *, started_ns: int | None, is_sole: bool) -> None:
        self._started_ns = started_ns
        self._is_sole = is_sole
        self._listeners: dict[int, Listener] = {}
        self._watches: list[Watch] = []
        self._next_stream = 1

    def join(self, *, verifier: str, realm: str, version: str, address: str, lease_ms: int, now_ns: int) -> Listener:
        """Register a stream. Must come before its first frame is sent (P6)."""
        listener = Listener(self._next_stream, verifier, realm, version, address, lease_ms, now_ns)
        self._next_stream += 1
        self._listeners[listener.stream] = listener
        for watch in self._watches:
            # Its first frames may have been read before the commit that is being waited for.
            if realm in watch.realms and not watch.is_published:
                watch.waiting[listener.stream] = listener
        return listener

    def leave(self, listener: Listener, now_ns: int) -> None:
        """Note that a stream ended. It still counts until its lease must have run out."""
        listener.left_ns = now_ns
        self._notify()

    def give_up(self, listener: Listener, now_ns: int) -> None:
        """Note that a verifier accepts nothing any more, by its own word, which counts like an acknowledgement."""
        listener.gave_up_ns = now_ns
        self.leave(listener, now_ns)

    def acknowledge(self, listener: Listener, head: int, now_ns: int) -> None:
        """Note that a verifier has applied everything below `head`; it never goes back."""
        listener.acknowledged_ns = now_ns
        if head > listener.head:
            listener.head = head
            self._notify()

    def watch(self, index: int, *, realms: frozenset[str], committed_ns: int, lease_ms: int, now_ns: int) -> Watch:
        """Begin to wait for the revocation at `index`, for the verifiers of `realms`."""
        unknown_until_ns = committed_ns
        if not self._is_sole:
            unknown_until_ns = committed_ns + lease_ms * NS_PER_MS
        elif self._started_ns is not None:
            unknown_until_ns = self._started_ns + lease_ms * NS_PER_MS
        watch = Watch(
            index,
            realms,
            committed_ns,
            unknown_until_ns,
            {
                listener.stream: listener
                for listener in self._listeners.values()
                if listener.realm in realms and listener.holds_until_ns(now_ns) > committed_ns
            },
        )
        self._watches.append(watch)
        return watch

    def unwatch(self, watch: Watch) -> None:
        """Stop waiting."""
        self._watches.remove(watch)

    def progress(self, watch: Watch, now_ns: int, *, published_head: int) -> Progress:
        """Settle what can be settled at `now_ns`, the feed having published all below `published_head`.

        A verifier is settled by an acknowledgement that covers the index, or when a lease has passed
        since the commit: it can hold only frames read before the commit (P5), whatever it did since.
        Until the feed has published the index, a verifier may yet join on an older snapshot.
        """
        watch.is_published = watch.is_published or published_head > watch.index
        deadlines = [watch.unknown_until_ns]
        for stream, listener in list(watch.waiting.items()):
            lapses_ns = max(
                watch.committed_ns,
                min(watch.committed_ns + listener.lease_ms * NS_PER_MS, listener.holds_until_ns(now_ns)),
            )
            if listener.head > watch.index:
                after_ns = max(0, (listener.acknowledged_ns or now_ns) - watch.committed_ns)
                watch.outcomes.append(Outcome(listener.verifier, listener.realm, True, after_ns))
            elif now_ns >= lapses_ns:
                watch.outcomes.append(Outcome(listener.verifier, listener.realm, False, lapses_ns - watch.committed_ns))
            else:
                deadlines.append(lapses_ns)
                continue
            del watch.waiting[stream]
        outcomes = tuple(sorted(watch.outcomes, key=lambda outcome: -outcome.after_ns))
        is_complete = not watch.waiting and now_ns >= watch.unknown_until_ns and watch.is_published
        return Progress(len(outcomes) + len(watch.waiting), outcomes, is_complete, max(deadlines))

    def present(self, now_ns: int, realm: str | None = None) -> Sequence[Listener]:
        """Return the listeners, by name; forgets those whose lease ran out long ago."""
        for stream, listener in list(self._listeners.items()):
            if listener.left_ns is not None and listener.holds_until_ns(now_ns) + 3_600_000 * NS_PER_MS < now_ns:
                del self._listeners[stream]
        return sorted(
            (listener for listener in self._listeners.values() if realm in (None, listener.realm)),
            key=lambda listener: (listener.verifier, listener.stream),
        )

    def _notify(self) -> None:
        for watch in self._watches:
            if watch.on_change is not None:
                watch.on_change()
