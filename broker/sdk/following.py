"""The state machine that follows one realm's feed: bytes and instants in, the next trusted state out. Pure."""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace

from broker.errors import FrameBehind, FrameForked, FrameGap, FrameRefused, FrameUntrusted
from broker.sdk.opening import (
    MAX_PARTS,
    MS_PER_S,
    OpenedEcho,
    OpenedKept,
    Opener,
    later,
    revocations_of,
)
from broker.token.keys import RealmTrust, TrustedKey
from broker.token.lease import BrokerTime, EchoPoint, accept_until_ns, earliest_ns
from broker.token.restoration import leads_to
from broker.token.revocation import Matcher
from broker.v1 import feed_pb2

NS_PER_MS = 1_000_000
NEVER_NS = -1
# The best of the last few echoes counts: one that was delayed does not shorten the lease for long.
KEPT_ECHOES = 8
# Ended keys refuse by themselves; they are forgotten so much later, whatever a broker's clock did meanwhile.
KEY_MARGIN_MS = 2 * 3600 * MS_PER_S


@dataclass(frozen=True, slots=True)
class Mark:
    """How far a verifier ever was: what it keeps on disk so that it never goes back."""

    incarnation: str
    head: int
    highest_wall_ms: int
    left: tuple[str, ...] = ()
    """Incarnations that it came from, because the ledger was restored. Not kept."""


@dataclass(frozen=True, slots=True)
class Trusted:
    """What a verifier goes by. Everything with an index below `head` is in `matcher` and `keys`.

    The matcher may meanwhile hold more, never less. `epoch` grows whenever it is replaced, so
    (`epoch`, `matcher.generation`) says what a token was compared with.
    """

    incarnation: str
    head: int
    epoch: int
    matcher: Matcher
    keys: Mapping[str, TrustedKey]
    boot: str
    lease_ms: int
    heartbeat_ms: int
    time: BrokerTime | None
    accept_until_ns: int
    receipts: int = feed_pb2.RECEIPT_DEMAND_UNSPECIFIED
    """Which receipts the policy demands: a ReceiptDemand."""


def nothing_trusted() -> Trusted:
    """Return the state in which nothing is accepted (P7)."""
    return Trusted("", 0, 0, Matcher(), {}, "", 0, 0, None, NEVER_NS)


@dataclass(frozen=True, slots=True)
class Step:
    """What a message did. Only a step `in_force` is acknowledged; `is_part`: of a snapshot not yet complete.

    `kept`: the broker's answer to receipts, which changes nothing here.
    """

    in_force: bool = False
    has_contents: bool = False
    is_part: bool = False
    kept: feed_pb2.ReceiptsKept | None = None


@dataclass(slots=True)
class _Contents:
    """Complete up to `head`, but perhaps behind the mark and then not in force."""

    matcher: Matcher
    keys: dict[str, TrustedKey]
    head: int


@dataclass(slots=True)
class _Staged:
    """A snapshot of which parts are missing."""

    key: tuple[object, ...]
    missing: set[int]
    contents: _Contents


@dataclass(frozen=True, slots=True)
class _Echo:
    point: EchoPoint
    key: TrustedKey


@dataclass(frozen=True, slots=True)
class _Beat:
    """What the newest frame in force says about time."""

    boot: str
    as_of_ns: int
    wall_ms: int
    lease_ms: int
    arrived_ns: int


class Follower:
    """Moves from one trusted state to the next, or raises and stays where it was.

    One thread feeds it; any thread may read `state`. Instants are CLOCK_BOOTTIME in nanoseconds.
    """

    def __init__(self, trust: RealmTrust, *, mark: Mark | None = None, max_lease_ms: int | None = None) -> None:
        self.state = nothing_trusted()
        """The last good state; replaced as a whole."""
        self._opener = Opener(trust)
        self._mark = mark or Mark("", 0, 0)
        self._max_lease_ms = max_lease_ms
        self._contents: _Contents | None = None
        self._staged: _Staged | None = None
        self._asked: tuple[bytes, int] | None = None
        self._echoes: deque[_Echo] = deque(maxlen=KEPT_ECHOES)
        self._newest: _Beat | None = None

    @property
    def mark(self) -> Mark:
        """How far it is; on disk before a frame is acknowledged."""
        return self._mark

    @property
    def needs_echo(self) -> bool:
        """Whether there is no echo of the broker process that the newest frame is from."""
        beat = self._newest
        return beat is not None and all(echo.point.boot != beat.boot for echo in self._echoes)

    @property
    def is_echo_under_way(self) -> bool:
        """Whether an answer is still to come."""
        return self._asked is not None

    def begin_stream(self) -> None:
        """Forget what was under way on the last stream."""
        self._staged = None
        self._asked = None

    def ask_echo(self, nonce: bytes, now_ns: int) -> None:
        """Note that an echo is asked for with this nonce, the clock read before it is sent."""
        self._asked = (nonce, now_ns)

    def take(self, message: bytes, arrived_ns: int) -> Step:
        """Take a serialized ListenResponse that arrived at `arrived_ns`.

        Raises:
            FrameRefused: Or one of its subclasses; `state` is as it was.
        """
        opened = self._opener.open(message)
        if isinstance(opened, OpenedEcho):
            return self._take_echo(opened)
        body = opened.body
        self._must_be_current(opened.key, body.wall_ms)
        is_other = self._mark.incarnation not in ("", body.incarnation)
        if isinstance(opened, OpenedKept):
            if is_other:
                raise FrameForked("an answer of another incarnation of the ledger")
            return Step(kept=opened.body)
        body = opened.body
        if is_other:
            self._go_over_to(body)
        match body.kind:
            case feed_pb2.FRAME_KIND_SNAPSHOT:
                step = self._take_snapshot(body, arrived_ns)
            case feed_pb2.FRAME_KIND_DELTA:
                step = self._take_delta(body, arrived_ns)
            case _:
                raise FrameRefused("a frame that is neither snapshot nor delta")
        mark = self._mark
        if body.wall_ms > mark.highest_wall_ms:
            self._mark = Mark(mark.incarnation, mark.head, body.wall_ms, mark.left)
        return step

    def _go_over_to(self, body: feed_pb2.FrameBody) -> None:
        """Begin anew with a ledger that was restored, by the word of the realm's root. Raises FrameForked without.

        What is in force stays until the snapshot is complete; its lease is not extended meanwhile.
        """
        way: tuple[str, ...] = ()
        if body.kind == feed_pb2.FRAME_KIND_SNAPSHOT:
            found = self._opener.restorations(list(body.restorations))
            way = leads_to(found, self._mark.incarnation, body.incarnation)
        if not way:
            raise FrameForked("a frame of another incarnation of the ledger")
        # The wall clock stays: what was ended then is so still.
        self._mark = Mark(body.incarnation, 0, self._mark.highest_wall_ms, (*self._mark.left, *way))
        self._contents = self._staged = self._newest = None

    def _must_be_current(self, key: TrustedKey, wall_ms: int) -> None:
        """Refuse a feed key that was not, or is no longer, certified.

        An old key's thief could sign any wall clock: so the highest that was ever seen counts too.
        """
        wall_s = wall_ms // MS_PER_S
        if not key.not_before <= wall_s <= key.signs_until:
            raise FrameUntrusted("a frame from outside the feed key's time")
        self._must_be_alive(key, max(wall_ms, self._mark.highest_wall_ms))

    def _must_be_alive(self, key: TrustedKey, wall_ms: int) -> None:
        if wall_ms >= key.expires * MS_PER_S:
            raise FrameUntrusted("the feed key's certificate has ended")
        if self.state.matcher.is_key_revoked(key.kid):
            raise FrameUntrusted("the feed key is revoked")

    def _take_echo(self, opened: OpenedEcho) -> Step:
        body = opened.body
        if self._asked is None or (body.nonce, body.verifier_clock_ns) != self._asked:
            raise FrameUntrusted("an echo that was not asked for")
        self._must_be_alive(opened.key, self._mark.highest_wall_ms)
        self._asked = None
        point = EchoPoint(body.boot, body.verifier_clock_ns, body.broker_clock_ns)
        self._echoes.append(_Echo(point, opened.key))
        state = self.state
        time, until_ns = self._earned(state.matcher, state.time, state.accept_until_ns)
        self.state = replace(state, time=time, accept_until_ns=until_ns)
        return Step()

    def _take_snapshot(self, body: feed_pb2.FrameBody, arrived_ns: int) -> Step:
        if not 0 < body.parts <= MAX_PARTS or body.part >= body.parts:
            raise FrameRefused("a snapshot with an impossible part number")
        if self._contents is not None and body.head <= self._contents.head:
            # All of it is here already. Behind the mark it extends nothing; a delta must follow that reaches it.
            self._staged = None
            return self._put_in_force(body, arrived_ns, Step(True)) if body.head == self._contents.head else Step()
        key = (body.boot, body.head, body.as_of_ns, body.wall_ms, body.lease_ms, body.parts)
        staged = self._staged
        if staged is None or staged.key != key:
            staged = _Staged(key, set(range(body.parts)), _Contents(Matcher(), {}, body.head))
        # Refused in one part is refused as a whole: it is put back only when this part was good.
        self._staged = None
        if body.part in staged.missing:
            self._add(staged.contents, body, first=0, arrived_ns=arrived_ns)
            staged.missing.discard(body.part)
        if staged.missing:
            self._staged = staged
            return Step(is_part=True)
        self._contents = staged.contents
        return self._put_in_force(body, arrived_ns, Step(True, True))

    def _take_delta(self, body: feed_pb2.FrameBody, arrived_ns: int) -> Step:
        contents = self._contents
        if contents is None:
            raise FrameGap("a delta before a snapshot")
        if body.head < body.previous_head:
            raise FrameRefused("a delta that goes back")
        if body.head < contents.head:
            raise FrameBehind(f"a delta up to {body.head}, with {contents.head} applied")
        # It may begin before our head, as after a kept snapshot: it still holds all from our head on.
        if body.previous_head > contents.head:
            raise FrameGap(f"a delta from {body.previous_head}, with {contents.head} applied")
        self._add(contents, body, first=body.previous_head, arrived_ns=arrived_ns)
        contents.head = body.head
        if contents.head < self._mark.head:
            raise FrameBehind(f"the feed is at {body.head}, and {self._mark.head} was applied before")
        return self._put_in_force(body, arrived_ns, Step(True, bool(body.revocations or body.keys)))

    def _add(self, contents: _Contents, body: feed_pb2.FrameBody, *, first: int, arrived_ns: int) -> None:
        """Add what the frame holds, all or nothing."""
        keys = self._opener.token_keys(list(body.keys))
        added = revocations_of(body, first=first, stop=body.head, arrived_ns=arrived_ns)
        if added:
            contents.matcher.put_all(added)
        if keys:
            merged = {kid: later(contents.keys.get(kid), key) for kid, key in keys.items()}
            # A new mapping: readers may be walking the old one.
            contents.keys = {**contents.keys, **merged}

    def _put_in_force(self, body: feed_pb2.FrameBody, arrived_ns: int, step: Step) -> Step:
        """Contents are applied; now the head, then the lease. The caller acknowledges last."""
        contents = self._contents
        if contents is None or contents.head < self._mark.head:
            return Step()
        contents.matcher.prune(arrived_ns)
        oldest_s = (body.wall_ms - KEY_MARGIN_MS) // MS_PER_S
        if any(key.expires <= oldest_s for key in contents.keys.values()):
            contents.keys = {kid: key for kid, key in contents.keys.items() if key.expires > oldest_s}
        beat = _Beat(body.boot, body.as_of_ns, body.wall_ms, self._lease_ms(body), arrived_ns)
        newest = self._newest
        if newest is None or newest.boot != beat.boot or newest.as_of_ns < beat.as_of_ns:
            self._newest = beat
        before, mark = self.state, self._mark
        if mark.head != contents.head or mark.incarnation != body.incarnation:
            self._mark = Mark(body.incarnation, contents.head, mark.highest_wall_ms, mark.left)
        # Made in one go, and not copied with one thing changed after another: it is made for each heartbeat.
        time, until_ns = self._earned(contents.matcher, before.time, before.accept_until_ns)
        self.state = Trusted(
            incarnation=body.incarnation,
            head=contents.head,
            epoch=before.epoch + (contents.matcher is not before.matcher),
            matcher=contents.matcher,
            keys=contents.keys,
            boot=body.boot,
            lease_ms=beat.lease_ms,
            heartbeat_ms=body.heartbeat_ms,
            time=time,
            accept_until_ns=until_ns,
            receipts=body.receipts,
        )
        return step

    def _earned(
        self, matcher: Matcher, time: BrokerTime | None, accept_until_ns_before: int
    ) -> tuple[BrokerTime | None, int]:
        """Return the time and the lease that the newest frame and the best echo of its boot give.

        Without an echo of that boot both stay what was earned before: it was true, and remains so.
        """
        beat = self._newest
        if beat is None:
            return time, accept_until_ns_before
        best: EchoPoint | None = None
        best_ns = 0
        for echo in self._echoes:
            if echo.point.boot == beat.boot and self._is_good(echo.key, beat.wall_ms, matcher):
                at_ns = earliest_ns(echo.point, beat.as_of_ns)
                if best is None or at_ns > best_ns:
                    best, best_ns = echo.point, at_ns
        if best is None:
            return time, accept_until_ns_before
        # A frame cannot be newer than its arrival: clocks that say so are wrong, and gain nothing.
        excess_ns = max(0, best_ns - beat.arrived_ns)
        until_ns = accept_until_ns(best, beat.as_of_ns, beat.lease_ms * NS_PER_MS) - excess_ns
        return BrokerTime(beat.wall_ms, best_ns - excess_ns, beat.arrived_ns), max(accept_until_ns_before, until_ns)

    def _is_good(self, key: TrustedKey, wall_ms: int, matcher: Matcher) -> bool:
        latest_ms = max(wall_ms, self._mark.highest_wall_ms)
        return latest_ms < key.expires * MS_PER_S and not matcher.is_key_revoked(key.kid)

    def _lease_ms(self, body: feed_pb2.FrameBody) -> int:
        return body.lease_ms if self._max_lease_ms is None else min(body.lease_ms, self._max_lease_ms)
