"""What a subscriber is given first: kept snapshots let nobody accept, and go with the key that signed them (P6)."""

from datetime import UTC, datetime, timedelta

from broker.adapters.policy_file import load_policy
from broker.service.policies import Policies
from broker.service.ports import PolicyReplaced, RevocationAdded, Write
from broker.service.publish import NO_LEASE_MS, Publisher
from broker.token.keys import Purpose
from broker.token.revocation import Selector
from broker.v1 import feed_pb2
from tests.fakes import Disk, FakeLedger
from tests.moved_clock import MovedClock
from tests.simulation.outside import SimSigner, keys_of, policy_document
from tests.stores import BY, draft

REALM = "evaluation"
NOW = datetime.now(UTC)


def publisher(signer: SimSigner) -> tuple[Publisher, FakeLedger]:
    clock = MovedClock()
    ledger = FakeLedger(Disk.new("ledger-1", NOW), clock)
    document = policy_document(((REALM, 5, 1),))
    ledger.append(Write([draft()], effects=(PolicyReplaced(document, BY, NOW),)))
    made = Publisher(ledger, Policies(ledger, load_policy, clock), signer, clock, boot="boot-1")
    made.poll()
    return made, ledger


def revoke(ledger: FakeLedger) -> None:
    selector = Selector.of(token="t" * 22)
    effect = RevocationAdded(selector, "a test", BY, NOW, NOW + timedelta(hours=1), blocks=False)
    ledger.append(Write([draft()], effects=(effect,)))


def frames(made: Publisher) -> list[tuple[feed_pb2.FrameBody, str]]:
    messages, _head = made.snapshot(REALM)
    signed = [feed_pb2.ListenResponse.FromString(message).frame for message in messages]
    return [(feed_pb2.FrameBody.FromString(one.body), one.certificate) for one in signed]


def test_p6_a_snapshot_brings_no_lease_and_the_bridge_after_it_does() -> None:
    made, ledger = publisher(SimSigner())
    [(snapshot, _), (bridge, _)] = frames(made)
    assert (snapshot.kind, snapshot.lease_ms) == (feed_pb2.FRAME_KIND_SNAPSHOT, NO_LEASE_MS)
    assert (bridge.kind, bridge.previous_head, bridge.head) == (feed_pb2.FRAME_KIND_DELTA, 2, 2)
    assert bridge.lease_ms == 5000
    revoke(ledger)
    made.poll()
    [(kept, _), (bridge, _)] = frames(made)
    assert kept == snapshot
    assert (bridge.previous_head, bridge.head, [one.index for one in bridge.revocations]) == (2, 3, [2])


def test_a_kept_snapshot_is_made_anew_when_another_key_signs() -> None:
    signer = SimSigner()
    made, _ = publisher(signer)
    first, second = (key.certificate for key in keys_of(REALM, Purpose.FEED))
    assert {certificate for _, certificate in frames(made)} == {first}
    signer.rotate()
    assert {certificate for _, certificate in frames(made)} == {second}
