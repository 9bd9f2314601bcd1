"""The follower against a network that delays, repeats, reorders and replays whatever was ever sent, and garbles it."""

import random
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from broker.errors import FrameRefused
from broker.sdk.following import Follower, Mark
from broker.token.revocation import facts_of
from broker.v1 import feed_pb2
from tests.realm_keys import NOW_S, RealmKeys, entry, indexed

S = 1_000_000_000
MS = 1_000_000
KEYS = RealmKeys()
LEASE_MS = 5000
PPM = 1_000_000


@dataclass
class World:
    """A broker, a verifier and all that was ever on the wire between them.

    The verifier's clock parts from the broker's by `skew_ppm`, less than what is allowed for.
    """

    skew_ppm: int
    now_ns: int = 10 * S
    boots: int = 1
    broker_offset_ns: int = 0
    head: int = 10
    entries: list[feed_pb2.FeedRevocation] = field(default_factory=list)
    committed_ns: dict[int, int] = field(default_factory=dict)
    asks: list[tuple[bytes, int]] = field(default_factory=list)
    wire: list[bytes] = field(default_factory=list)
    follower: Follower = field(default_factory=lambda: Follower(KEYS.trust))
    best: Mark = Mark("", 0, 0)

    def verifier_ns(self) -> int:
        return self.now_ns + self.now_ns * self.skew_ppm // PPM + 777 * S

    def true_ns(self, verifier_ns: int) -> int:
        """When the verifier's clock shows this; rounded so that a breach is not rounded away."""
        return -(-(verifier_ns - 777 * S) * PPM // (PPM + self.skew_ppm)) - 2

    def revoke(self) -> None:
        self.entries.append(entry(self.head, 2**31, user=f"user-{self.head}"))
        self.committed_ns[self.head] = self.now_ns
        self.head += 1

    def frame(self, previous_head: int | None, parts: int) -> None:
        fields = {
            "boot": f"boot-{self.boots}",
            "head": self.head,
            "as_of_ns": self.now_ns + self.broker_offset_ns,
            "wall_ms": NOW_S * 1000 + self.now_ns // MS,
            "lease_ms": LEASE_MS,
        }
        if previous_head is not None:
            self.wire.append(
                KEYS.delta(
                    previous_head=previous_head,
                    revocations=indexed(self.entries, previous_head, self.head),
                    **fields,
                )
            )
            return
        for part in range(parts):
            self.wire.append(KEYS.snapshot(part=part, parts=parts, revocations=self.entries[part::parts], **fields))

    def ask(self) -> None:
        nonce = len(self.asks).to_bytes(16, "big")
        self.asks.append((nonce, self.verifier_ns()))
        self.follower.ask_echo(*self.asks[-1])

    def answer(self, which: int) -> None:
        if self.asks:
            nonce, asked_ns = self.asks[which % len(self.asks)]
            self.wire.append(
                KEYS.echo(
                    boot=f"boot-{self.boots}",
                    nonce=nonce,
                    verifier_clock_ns=asked_ns,
                    broker_clock_ns=self.now_ns + self.broker_offset_ns,
                )
            )

    def deliver(self, which: int) -> None:
        if self.wire:
            before = self.follower.state
            try:
                self.follower.take(self.wire[which % len(self.wire)], self.verifier_ns())
            except FrameRefused:
                assert self.follower.state is before

    def check(self) -> None:
        state, mark = self.follower.state, self.follower.mark
        assert mark.head >= self.best.head, "it went back"
        assert mark.highest_wall_ms >= self.best.highest_wall_ms
        self.best = mark
        for one in self.entries:
            facts = facts_of(
                KEYS.claims(user=one.values[0], sub=f"acme/user/{one.values[0]}"), KEYS.token.kid, "mythos"
            )
            is_dead = state.matcher.find(facts, 5) is not None
            # P4: what the head covers is dead.
            assert is_dead or one.index >= state.head
            # P5: what is not applied yet is accepted for a lease from its commit, and no longer.
            if not is_dead:
                assert self.true_ns(state.accept_until_ns) <= self.committed_ns[one.index] + LEASE_MS * MS


numbers = st.integers(0, 200)
actions = st.one_of(
    st.tuples(st.just("revoke")),
    st.tuples(st.just("pass"), st.sampled_from([1 * MS, 30 * MS, 400 * MS, 3 * S, 20 * S, 3600 * S])),
    st.tuples(st.just("delta"), st.integers(0, 4)),
    st.tuples(st.just("snapshot"), st.integers(1, 3)),
    st.tuples(st.just("ask")),
    st.tuples(st.just("answer"), numbers),
    st.tuples(st.just("deliver"), numbers),
    st.tuples(st.just("deliver-newest"), st.integers(1, 3)),
    st.tuples(st.just("restart-broker"), st.one_of(st.integers(0, 10 * S), st.integers(0, 10**15))),
    st.tuples(st.just("restart-verifier")),
    st.tuples(st.just("reconnect")),
)


def act(world: World, action: tuple[object, ...]) -> None:
    match action:
        case ("revoke",):
            world.revoke()
        case ("pass", int(by_ns)):
            world.now_ns += by_ns
        case ("delta", int(back)):
            world.frame(max(0, world.head - back), 1)
        case ("snapshot", int(parts)):
            world.frame(None, parts)
        case ("ask",):
            world.ask()
        case ("answer", int(which)):
            world.answer(-1 - which)
        case ("deliver", int(which)):
            world.deliver(which)
        case ("deliver-newest", int(count)):
            for back in range(count, 0, -1):
                world.deliver(-back)
        case ("restart-broker", int(offset_ns)):
            world.boots += 1
            world.broker_offset_ns = offset_ns
        case ("restart-verifier",):
            world.follower = Follower(KEYS.trust, mark=world.follower.mark)
            world.asks.clear()
        case ("reconnect",):
            world.follower.begin_stream()


@settings(max_examples=300, deadline=None)
@given(
    st.integers(-499, 499),
    st.lists(actions, max_size=60),
)
def test_p4_p5_no_order_of_messages_makes_it_go_back_or_accept_beyond_the_lease(skew_ppm, todo):
    world = World(skew_ppm)
    for action in [("ask",), ("answer", 0), ("snapshot", 1), ("deliver-newest", 2), *todo]:
        act(world, action)
        world.check()


def step(world: World, dice: random.Random) -> None:
    match dice.randrange(14):
        case 0:
            act(world, ("revoke",))
        case 1 | 2:
            act(world, ("pass", dice.choice([MS, 300 * MS, 4 * S, 30 * S])))
        case 3:
            act(world, ("snapshot", dice.randint(1, 3)))
        case 4:
            act(world, ("ask",))
        case 5:
            act(world, ("answer", dice.randrange(3)))
        case 6 if dice.random() < 0.2:
            act(world, ("restart-broker", dice.choice([dice.randrange(10**15), dice.randrange(10 * S)])))
        case 7 if dice.random() < 0.3:
            act(world, ("restart-verifier",))
        case 8:
            act(world, ("deliver", dice.randrange(100)))
        case 9 | 10:
            act(world, ("delta", dice.randrange(3)))
        case _:
            act(world, ("deliver-newest", dice.randint(1, 4)))


def test_p4_p5_long_walks_in_which_leases_are_earned_and_lapse_and_are_earned_again():
    dice = random.Random(7)
    leases: set[int] = set()
    for _ in range(60):
        world = World(dice.choice([-499, 499]))
        for _ in range(150):
            step(world, dice)
            world.check()
            leases.add(world.follower.state.accept_until_ns)
    assert len(leases) > 100


def garbled(message: bytes, dice: random.Random) -> bytes:
    data = bytearray(message)
    for _ in range(dice.randint(1, 4)):
        at = dice.randrange(len(data) + 1)
        match dice.randrange(4):
            case 0:
                del data[at : at + dice.randint(1, 20)]
            case 1:
                data[at:at] = dice.randbytes(dice.randint(1, 8))
            case 2:
                data[at:at] = data[: dice.randint(1, 30)]
            case _ if at < len(data):
                data[at] ^= 1 << dice.randrange(8)
    return bytes(data)


def test_p7_garbage_frames_are_refused_and_nothing_else_happens():
    dice = random.Random(11)
    one = Follower(KEYS.trust)
    one.ask_echo(b"n" * 16, 100 * S)
    one.take(KEYS.snapshot(), 100 * S)
    good = [
        KEYS.delta(previous_head=10, head=11, revocations=[entry(10, user="bob")]),
        KEYS.snapshot(head=20, parts=2, revocations=[entry(3, partner="acme", model="mythos")]),
        KEYS.echo(nonce=b"n" * 16, verifier_clock_ns=100 * S, broker_clock_ns=1 * S),
    ]
    before = one.state
    taken = 0
    for _ in range(4000):
        original = dice.choice(good)
        message = garbled(original, dice)
        try:
            one.take(message, 101 * S)
        except FrameRefused:
            assert one.state is before
        else:
            # Only what says the same with other bytes around it: the signed body is untouched.
            taken += 1
            assert _signed(message) in [_signed(one_good) for one_good in good]
            one = Follower(KEYS.trust)
            one.ask_echo(b"n" * 16, 100 * S)
            one.take(KEYS.snapshot(), 100 * S)
            before = one.state
    assert taken < 400


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_p7_random_bodies_that_are_well_signed_are_refused_or_harmless(data):
    from tests.realm_keys import FRAME_CONTEXT, sign

    one = Follower(KEYS.trust)
    one.take(KEYS.snapshot(), 100 * S)
    frame = feed_pb2.SignedFrame(
        body=data, signature=sign(KEYS.feed.private, FRAME_CONTEXT + data), certificate=KEYS.feed.certificate
    )
    before = one.state
    try:
        one.take(feed_pb2.ListenResponse(frame=frame).SerializeToString(), 101 * S)
    except FrameRefused:
        assert one.state is before


def _signed(message: bytes) -> bytes:
    opened = feed_pb2.ListenResponse.FromString(message)
    return opened.frame.body or opened.echo.body
