"""Who listens to this broker, how far they are, and when a revocation is in force at all of them."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

NS_PER_MS = 1_000_000
# Cuts are kept for revocations that are not watched yet: an acknowledgement can be faster than the one who commits.
MAX_EARLY_CUTS = 16_384
# For how long one who has left is known after its lease: as the last of its name, and where it came back.
LISTED_MS, REPLACED_MS = 3_600_000, 60_000


class Stop(StrEnum):
    """How a verifier stopped accepting."""

    ACKNOWLEDGED = "acknowledged"
    LAPSED = "lapsed"
    LEFT = "left"


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
    how: Stop
    after_ns: int
    uses_cut: int = 0


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a revocation is. Complete when `outcomes` covers all who listened and the unknown have lapsed.

    `outcomes` come the slowest first once it is complete, before that as they became known; `waiting` are the
    names of those that may still accept, in no order. Verifiers that nobody here knows of are waited for
    `unknown_ns` from the commit, 0 if there can be none.
    """

    outcomes: tuple[Outcome, ...]
    waiting: tuple[str, ...]
    unknown_ns: int
    is_published: bool
    is_complete: bool
    next_look_ns: int

    @property
    def listening(self) -> int:
        """How many verifiers are waited for, or were."""
        return len(self.outcomes) + len(self.waiting)


@dataclass(slots=True)
class Census:
    """The streams of one realm: how many in each state, and the smallest head of those that are open."""

    states: dict[str, int] = field(default_factory=dict)
    least_head: int | None = None


@dataclass(slots=True)
class Watch:
    """A revocation being waited for: each listener that may have held a lease at its commit.

    `absent` are verifiers, by name and realm, that may hold a lease from another broker process. `earlier_ns`
    is the time from the recorded instant of the revocation to `committed_ns`: what is told counts from that.
    """

    index: int
    first: int
    realms: frozenset[str]
    committed_ns: int
    earlier_ns: int
    unknown_until_ns: int
    waiting: dict[int, Listener]
    absent: set[tuple[str, str]]
    cuts: dict[tuple[str, str], int] = field(default_factory=dict)
    outcomes: list[Outcome] = field(default_factory=list)
    on_change: Callable[[], None] | None = None
    """Called when it may be settled; what lapses makes no noise."""
    # How many have acknowledged something since `progress` looked last.
    heard: int = 0
    # Whether the feed has published the revocation: whoever joins after that gets it with the first frame.
    is_published: bool = False

    def add(self, index: int, name: tuple[str, str], uses: int) -> None:
        """Count uses that the revocation at `index` cut at a verifier, given by name and realm, if it is this one."""
        if self.first <= index <= self.index and name[1] in self.realms:
            self.cuts[name] = self.cuts.get(name, 0) + uses


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
        # By verifier and realm, in the order of joining.
        self._named: dict[tuple[str, str], list[Listener]] = {}
        self._watches: list[Watch] = []
        # The newest cuts: how many uses, by the revocation's index and by verifier and realm.
        self._cuts: dict[tuple[int, tuple[str, str]], int] = {}
        self._next_stream = 1

    def join(self, *, verifier: str, realm: str, version: str, address: str, lease_ms: int, now_ns: int) -> Listener:
        """Register a stream. Must come before its first frame is sent (P6)."""
        listener = Listener(self._next_stream, verifier, realm, version, address, lease_ms, now_ns)
        self._next_stream += 1
        self._listeners[listener.stream] = listener
        self._named.setdefault((verifier, realm), []).append(listener)
        for watch in self._watches:
            # Its first frames may have been read before the commit that is being waited for.
            if realm in watch.realms and not watch.is_published:
                watch.waiting[listener.stream] = listener
                watch.absent.discard((verifier, realm))
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
            for watch in self._watches:
                watch.heard += 1
                # A look costs as much as there are verifiers, so none before it can be the last one.
                if watch.heard >= len(watch.waiting) and watch.on_change is not None:
                    watch.on_change()

    def cut(self, listener: Listener, index: int, uses: int) -> None:
        """Note that a revocation cut running uses at a verifier. Comes before the acknowledgement that covers it."""
        name = (listener.verifier, listener.realm)
        self._cuts[index, name] = self._cuts.pop((index, name), 0) + uses
        if len(self._cuts) > MAX_EARLY_CUTS:
            del self._cuts[next(iter(self._cuts))]
        for watch in self._watches:
            watch.add(index, name, uses)

    def watch(
        self,
        index: int,
        *,
        realms: frozenset[str],
        committed_ns: int,
        lease_ms: int,
        now_ns: int,
        entries: int = 1,
        earlier_ns: int = 0,
        absent: Collection[tuple[str, str]] = (),
    ) -> Watch:
        """Begin to wait for the revocation at `index`, for the verifiers of `realms`.

        Args:
            index: Of its last entry.
            realms: Those that it concerns.
            committed_ns: An instant of this process's clock that the commit was not after.
            lease_ms: The longest lease that somebody unknown may hold.
            now_ns: Now.
            entries: How many it has.
            earlier_ns: The time from the instant that the ledger records to `committed_ns`.
            absent: Verifiers, by name and realm, that are known to have listened to another process.
        """
        unknown_until_ns = committed_ns
        if not self._is_sole:
            unknown_until_ns = committed_ns + lease_ms * NS_PER_MS
        elif self._started_ns is not None:
            unknown_until_ns = self._started_ns + lease_ms * NS_PER_MS
        waiting = {
            listener.stream: listener
            for listener in self._listeners.values()
            if listener.realm in realms and listener.holds_until_ns(now_ns) > committed_ns
        }
        here = {(listener.verifier, listener.realm) for listener in waiting.values()}
        # Nobody elsewhere can hold a lease once the unknown cannot.
        elsewhere = {name for name in absent if name[1] in realms} - here if unknown_until_ns > committed_ns else set()
        watch = Watch(
            index, index - entries + 1, realms, committed_ns, earlier_ns, unknown_until_ns, waiting, elsewhere
        )
        for (cut, name), uses in self._cuts.items():
            watch.add(cut, name, uses)
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
        watch.heard = 0
        watch.is_published = watch.is_published or published_head > watch.index
        next_look_ns = watch.unknown_until_ns
        for stream, listener in list(watch.waiting.items()):
            # One that listens on lapses a lease after the commit; of ten thousand nearly all do.
            lapses_ns = watch.committed_ns + listener.lease_ms * NS_PER_MS
            if listener.left_ns is not None:
                lapses_ns = max(watch.committed_ns, min(lapses_ns, listener.holds_until_ns(now_ns)))
            if listener.head > watch.index:
                self._settle(watch, listener, Stop.ACKNOWLEDGED, listener.acknowledged_ns or now_ns)
            elif now_ns >= lapses_ns:
                has_left = listener.gave_up_ns is not None and listener.gave_up_ns <= lapses_ns
                self._settle(watch, listener, Stop.LEFT if has_left else Stop.LAPSED, lapses_ns)
            else:
                next_look_ns = max(next_look_ns, lapses_ns)
                continue
            del watch.waiting[stream]
        self._settle_absent(watch, now_ns)
        is_complete = not watch.waiting and now_ns >= watch.unknown_until_ns and watch.is_published
        if is_complete:
            # Not at each look: ten thousand are looked at often.
            watch.outcomes.sort(key=lambda outcome: (-outcome.after_ns, outcome.verifier))
        return Progress(
            tuple(watch.outcomes),
            (
                *(listener.verifier for listener in watch.waiting.values()),
                *(verifier for verifier, _ in watch.absent),
            ),
            watch.earlier_ns + watch.unknown_until_ns - watch.committed_ns
            if watch.unknown_until_ns > watch.committed_ns
            else 0,
            watch.is_published,
            is_complete,
            next_look_ns,
        )

    def _settle(self, watch: Watch, listener: Listener, how: Stop, at_ns: int) -> None:
        name = (listener.verifier, listener.realm)
        after_ns = max(0, watch.earlier_ns + at_ns - watch.committed_ns)
        # Two streams of one name report under it together; the first of them to settle tells of all cuts.
        watch.outcomes.append(Outcome(*name, how, after_ns, watch.cuts.pop(name, 0)))

    def _settle_absent(self, watch: Watch, now_ns: int) -> None:
        """Settle who listened elsewhere: by coming here and acknowledging, or when nobody unknown holds a lease."""
        if not watch.absent:
            return
        for listener in self._listeners.values():
            name = (listener.verifier, listener.realm)
            if name in watch.absent and listener.head > watch.index:
                watch.absent.discard(name)
                self._settle(watch, listener, Stop.ACKNOWLEDGED, listener.acknowledged_ns or now_ns)
        if now_ns >= watch.unknown_until_ns:
            after_ns = watch.earlier_ns + watch.unknown_until_ns - watch.committed_ns
            watch.outcomes += [Outcome(*name, Stop.LAPSED, after_ns) for name in watch.absent]
            watch.absent.clear()

    def census(self, now_ns: int) -> Mapping[str, Census]:
        """Return by realm how many streams are in which state, and the head of the one furthest behind.

        Forgets those whose lease ran out long ago.
        """
        self._forget_old(now_ns)
        found: dict[str, Census] = {}
        for one in self._listeners.values():
            census = found.get(one.realm)
            if census is None:
                census = found[one.realm] = Census()
            state = one.state(now_ns)
            census.states[state] = census.states.get(state, 0) + 1
            if one.left_ns is None and (census.least_head is None or one.head < census.least_head):
                census.least_head = one.head
        return found

    def by_name(self) -> Mapping[tuple[str, str], Sequence[Listener]]:
        """Return the streams of each verifier and realm, those of who left lately included, in the order of joining."""
        return self._named

    def everyone(self) -> Collection[Listener]:
        """Return the listeners, those who left lately included, in the order of joining."""
        return self._listeners.values()

    def present(self, now_ns: int, realm: str | None = None) -> Sequence[Listener]:
        """Return the listeners, by name; forgets those whose lease ran out long ago."""
        self._forget_old(now_ns)
        return sorted(
            (listener for listener in self._listeners.values() if realm in (None, listener.realm)),
            key=lambda listener: (listener.verifier, listener.stream),
        )

    def _forget_old(self, now_ns: int) -> None:
        for stream, one in list(self._listeners.items()):
            if one.left_ns is None:
                continue
            name = (one.verifier, one.realm)
            streams = self._named[name]
            # Of one that comes and goes all the time, a minute is enough: more would gather without end.
            kept_ms = LISTED_MS if streams[-1] is one else REPLACED_MS
            if one.holds_until_ns(now_ns) + kept_ms * NS_PER_MS < now_ns:
                del self._listeners[stream]
                streams.remove(one)
                if not streams:
                    del self._named[name]

    def _notify(self) -> None:
        for watch in self._watches:
            if watch.on_change is not None:
                watch.on_change()
