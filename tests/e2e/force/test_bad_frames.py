"""P4, P7, P8: whatever a broker sends, a verifier keeps its last good state, says so, and never crashes."""

import random
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from broker.token.keys import render_trust
from broker.v1 import feed_pb2
from tests.authority import Authority
from tests.e2e.force.verifying import Verifying, now_ns
from tests.feed_server import FeedServer
from tests.realm_keys import RealmKeys, entry
from tests.waiting import eventually

MUTATIONS = 1000
LEASE_MS = 3000
LEASE_NS = LEASE_MS * 1_000_000
PACE = {"backoff_first_s": 0.005, "backoff_most_s": 0.01}
# Beyond this gRPC itself ends the stream, before the verifier sees anything.
FIVE_MIB = 5 << 20


@pytest.fixture
def keys() -> RealmKeys:
    return RealmKeys.of_today()


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "ca")


@pytest.fixture
def broker(authority: Authority, keys: RealmKeys) -> Iterator[FeedServer]:
    """A broker with the right papers and keys, that sends what no broker may send."""
    with FeedServer(keys, authority.server(), lease_ms=LEASE_MS) as broker:
        yield broker


def verifying(tmp_path: Path, authority: Authority, keys: RealmKeys, broker: FeedServer, **pace: float) -> Verifying:
    papers = authority.client("spiffe://lab.example/alpha")
    trust = tmp_path / "trust.json"
    trust.write_text(render_trust([keys.trust]))
    how = {
        "endpoint": broker.endpoint,
        "realm": "evaluation",
        "trust": str(trust),
        "certificate": str(papers.certificate),
        "key": str(papers.key),
        "ca": str(papers.ca),
        "state_dir": str(tmp_path / "state"),
        "pace": {**PACE, **pace},
    }
    return Verifying(how, tmp_path / "alpha.log")


@pytest.fixture
def verifier(tmp_path: Path, authority: Authority, keys: RealmKeys, broker: FeedServer) -> Iterator[Verifying]:
    with verifying(tmp_path, authority, keys, broker) as verifier:
        yield verifier


class Mill:
    """Makes frames that a verifier must refuse. Each would revoke partner acme, were it taken."""

    def __init__(self, broker: FeedServer, chance: random.Random) -> None:
        self._broker = broker
        self._chance = chance
        self._other_realm = RealmKeys.of_today("research")
        self._stranger = RealmKeys.of_today()
        self.kinds: tuple[Callable[[], bytes], ...] = (
            self.random_bytes,
            self.flipped_bits,
            self.flipped_bits,
            self.cut_short,
            self.spliced,
            self.of_another_realm,
            self.by_another_root,
            self.of_another_incarnation,
            self.behind,
            self.with_a_gap,
            self.out_of_range,
            self.impossible_part,
            self.impossible_lease,
            self.unknown_dimension,
            self.empty_selector,
        )

    def frame(self) -> bytes:
        return self._chance.choice(self.kinds)()

    def body(self, **fields: object) -> feed_pb2.FrameBody:
        broker = self._broker
        head = broker.head
        filled = {"previous_head": head, "head": head + 1, "revocations": [entry(head, partner="acme")], **fields}
        return broker.body(**filled)

    def good(self) -> bytes:
        return self._broker.keys.signed_frame(self.body())

    def random_bytes(self) -> bytes:
        # Without a first tag that would make it one of the answers that may be ignored.
        return b"\x0a" + self._chance.randbytes(self._chance.randrange(1, 2000))

    def flipped_bits(self) -> bytes:
        data = bytearray(self.good())
        for _ in range(self._chance.choice((1, 1, 1, 2, 8))):
            data[self._chance.randrange(len(data))] ^= 1 << self._chance.randrange(8)
        return bytes(data)

    def cut_short(self) -> bytes:
        data = self.good()
        return data[: self._chance.randrange(1, len(data))]

    def spliced(self) -> bytes:
        data = self.good()
        at = self._chance.randrange(len(data))
        return data[:at] + self._chance.randbytes(self._chance.randrange(1, 64)) + data[at:]

    def of_another_realm(self) -> bytes:
        return self._broker.keys.signed_frame(self.body(realm="research"))

    def by_another_root(self) -> bytes:
        keys = self._chance.choice((self._stranger, self._other_realm))
        return keys.signed_frame(self.body())

    def of_another_incarnation(self) -> bytes:
        return self._broker.keys.signed_frame(self.body(incarnation=secrets.token_hex(16)))

    def behind(self) -> bytes:
        head = self._broker.head
        return self._broker.keys.signed_frame(self.body(previous_head=head - 2, head=head - 1, revocations=[]))

    def with_a_gap(self) -> bytes:
        head = self._broker.head
        future = head + self._chance.choice((1, 1000, 1 << 40))
        return self._broker.keys.signed_frame(self.body(previous_head=future, head=future + 1, revocations=[]))

    def out_of_range(self) -> bytes:
        beyond = self._broker.head + self._chance.choice((1, 7, 1 << 50))
        return self._broker.keys.signed_frame(self.body(revocations=[entry(beyond, partner="acme")]))

    def impossible_part(self) -> bytes:
        part, parts = self._chance.choice(((0, 0), (3, 3), (7, 2), (0, 1 << 20)))
        kind = feed_pb2.FRAME_KIND_SNAPSHOT
        return self._broker.keys.signed_frame(self.body(kind=kind, previous_head=0, part=part, parts=parts))

    def impossible_lease(self) -> bytes:
        return self._broker.keys.signed_frame(self.body(lease_ms=self._chance.choice((0, 60_001, (1 << 32) - 1))))

    def unknown_dimension(self) -> bytes:
        strange = feed_pb2.FeedRevocation(index=self._broker.head, dimensions=[77], values=["acme"], keep_s=60)
        return self._broker.keys.signed_frame(self.body(revocations=[strange]))

    def empty_selector(self) -> bytes:
        strange = feed_pb2.FeedRevocation(index=self._broker.head, keep_s=60)
        return self._broker.keys.signed_frame(self.body(revocations=[strange]))


def test_p4_p7_p8_a_thousand_bad_frames_change_nothing_and_are_each_refused(
    broker: FeedServer, verifier: Verifying, keys: RealmKeys
) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    mill = Mill(broker, random.Random(seed))
    live, dead = keys.mint(partner="acme", idx=5), keys.mint(partner="globex", sub="globex/user/bob", idx=5)
    broker.revoke(partner="globex")
    verifier.until(live, "accepted")
    verifier.until(dead, "REVOKED")
    before_mib = verifier.rss_mib()
    ignored = 0
    for number in range(MUTATIONS):
        eventually(lambda: broker.listening == 1, "it listens", within_s=30)
        streams, refused = len(broker.streams), len(broker.nack_reasons())
        frame = mill.frame()
        broker.send(frame)
        # Refused on the stream, or such that gRPC ends it; a change that says nothing may be passed over.
        done = eventually_or_not(lambda: len(broker.nack_reasons()) > refused or len(broker.streams) > streams)  # noqa: B023 - of this turn
        if not done:
            ignored += 1
        if number % 20 == 0:
            eventually(lambda: broker.listening == 1, "it listens", within_s=30)
            assert verifier.verdict(live) in ("accepted", "STALE")
            assert verifier.verdict(dead) in ("REVOKED", "STALE")
    eventually(lambda: broker.listening == 1, "it listens", within_s=30)
    verifier.until(live, "accepted")
    verifier.until(dead, "REVOKED")
    reasons = broker.nack_reasons()
    counted = {reason: reasons.count(reason) for reason in sorted(set(reasons))}
    growth_mib = verifier.rss_mib() - before_mib
    # A refusal is said on the stream that it ends, and may be lost with it.
    unheard = MUTATIONS - ignored - len(reasons)
    print(f"{len(reasons)} NACKs {counted}; {unheard} unheard; {ignored} without effect; {growth_mib:+.0f} MiB")
    assert len(reasons) > MUTATIONS // 2
    # A flip in what nobody reads, as an unknown field.
    assert ignored <= MUTATIONS // 50
    assert verifier.state()["head"] == broker.head
    assert verifier.is_alive()
    assert growth_mib < 64
    assert "defect" not in verifier.log.read_text()


def eventually_or_not(condition: Callable[[], object]) -> bool:
    try:
        eventually(condition, "an effect", within_s=2)
    except AssertionError:
        return False
    return True


def test_p4_p7_oversize_frames_and_unfinished_snapshots_leave_the_last_good_state_until_its_lease_ends(
    broker: FeedServer, verifier: Verifying, keys: RealmKeys
) -> None:
    live = keys.mint(partner="acme", idx=5)
    verifier.watch(live=live)
    for size in (FIVE_MIB, FIVE_MIB - (1 << 19)):
        refused, streams = len(broker.nack_reasons()), len(broker.streams)
        eventually(lambda: broker.listening == 1, "it listens", within_s=30)
        huge = broker.body(head=broker.head + 1, boot="b" * size)
        broker.send(keys.signed_frame(huge))
        eventually(
            lambda: len(broker.nack_reasons()) > refused or len(broker.streams) > streams,  # noqa: B023 - of this turn
            "it is refused",
            within_s=30,
        )
        verifier.until(live, "accepted")
    assert "FRAME_TOO_LARGE" in broker.nack_reasons(), broker.nack_reasons()
    # From now on only a snapshot of which a part never comes, which would revoke everything of acme.
    eventually(lambda: broker.listening == 1, "it listens", within_s=30)
    broker.heartbeats = broker.sends_snapshot = False
    last_ns = now_ns()
    for part in (0, 2):
        body = broker.body(
            kind=feed_pb2.FRAME_KIND_SNAPSHOT,
            previous_head=0,
            head=broker.head + 5,
            part=part,
            parts=3,
            revocations=[entry(broker.head + part, partner="acme")],
            as_of_ns=last_ns,
        )
        broker.send(keys.signed_frame(body))
    eventually(lambda: verifier.runs()["live"][-1].verdict == "STALE", "the lease runs out", within_s=30)
    assert {run.verdict for run in verifier.runs()["live"]} == {"accepted", "STALE"}
    # A heartbeat that was made before the silence was set may have come just after.
    assert verifier.last_accepted_ns("live") <= last_ns + LEASE_NS + 100_000_000
    broker.heartbeats = broker.sends_snapshot = True
    broker.stop()
    broker.start()
    verifier.until(live, "accepted", within_s=40)


def test_p5_an_echo_that_was_answered_too_late_to_help_is_asked_for_again_at_once(
    tmp_path: Path, authority: Authority, keys: RealmKeys, broker: FeedServer
) -> None:
    """As behind a snapshot that takes longer than a lease. No other echo, and no new stream, shall come to its aid."""
    live = keys.mint(partner="acme", idx=5)
    broker.echo_delay_s = LEASE_MS / 1000 + 1
    with verifying(tmp_path, authority, keys, broker, echo_every_s=600.0, first_frame_s=600.0) as verifier:
        eventually(lambda: broker.streams and broker.streams[0].echoes, "it asks", within_s=30)
        broker.echo_delay_s = 0.0
        verifier.until(live, "accepted", within_s=20)
        assert len(broker.streams) == 1
        assert len(broker.streams[0].echoes) >= 2
