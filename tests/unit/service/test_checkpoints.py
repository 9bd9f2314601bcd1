"""P10: a checkpoint is published of what there is, goes on from those before, and is never signed otherwise."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from broker.errors import Invalid, LedgerForked, NotFound, SignerUnavailable
from broker.ledger.checkpoint import Checkpoint, open_checkpoint
from broker.ledger.entry import Entry, Kind, encode_entry
from broker.ledger.merkle import check_consistency
from broker.ledger.note import KeyKind, VerifierKey
from broker.ledger.proof import check_proof, parse_proof
from broker.service.checkpoints import ProveEntries, PublishCheckpoints, must_go_on_from, read_kept
from broker.service.ports import Write
from tests.fakes import Disk, FakeLedger
from tests.moved_clock import MovedClock
from tests.stores import BY, append, draft
from tests.unit.ledger.test_merkle import naive_root

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)


class Key:
    """A CheckpointSigner that may be away, or lie."""

    def __init__(self, seed=1):
        self.private = Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32)
        self.signs_with = self.private
        self.signed = []
        self.is_away = False

    def public_keys(self):
        if self.is_away:
            raise SignerUnavailable("away")
        return (self.private.public_key().public_bytes_raw(),)

    def sign(self, message):
        if self.is_away:
            raise SignerUnavailable("away")
        self.signed.append(message)
        return self.signs_with.sign(message)


class World:
    def __init__(self):
        self.disk = Disk.new("a" * 32, NOW)
        self.key = Key()
        self.take(self.disk)

    def take(self, disk):
        """Go on with this disk, as a broker that is started again."""
        self.ledger = FakeLedger(disk, MovedClock())
        self.publish = PublishCheckpoints(
            self.ledger.tree, self.ledger.checkpoints, self.key, MovedClock(), name="ledger.example/eval"
        )
        self.prove = ProveEntries(self.ledger, self.ledger.tree, self.publish)

    def opened(self, record):
        return open_checkpoint(record.note.encode(), self.publish.keys()).checkpoint


@pytest.fixture
def world():
    return World()


def test_a_checkpoint_covers_all_entries_and_is_signed_by_the_log(world):
    append(world.ledger, 6)
    found = world.opened(world.publish.publish())
    assert found == Checkpoint("ledger.example/eval/" + "a" * 32, 7, naive_root(world.disk.entries))


def test_nothing_is_signed_while_nothing_comes(world):
    first = world.publish.publish()
    assert world.publish.publish() == first
    assert len(world.key.signed) == 1
    append(world.ledger, 1)
    assert world.publish.publish().size == first.size + 1


def test_several_brokers_publish_one_log(world):
    another = World()
    another.take(world.disk)
    with ThreadPoolExecutor(4) as pool:
        for turn in range(60):
            pool.submit(append, world.ledger, 1)
            pool.submit((world, another)[turn % 2].publish.publish)
    append(world.ledger, 1)
    assert another.publish.publish() == world.publish.publish()
    sizes = sorted(world.disk.checkpoints)
    for size in sizes:
        assert world.opened(world.disk.checkpoints[size]).root == naive_root(world.disk.entries[:size])


def test_a_broker_that_is_overtaken_while_it_publishes_raises_no_false_alarm(world):
    another = World()
    another.take(world.disk)
    inner = world.ledger.tree

    class Overtaken:
        tile = inner.tile

        def head(self):
            head = inner.head()
            append(another.ledger, 3)
            another.publish.publish()
            return head

    world.publish.publish()
    append(world.ledger, 1)
    world.publish._tree = Overtaken()
    assert world.publish.publish().size == 2
    assert world.publish.served().size == 5


def test_p10_a_truncated_ledger_gets_no_checkpoint(world):
    append(world.ledger, 5)
    world.publish.publish()
    del world.disk.entries[4:]
    signed = len(world.key.signed)
    with pytest.raises(LedgerForked, match="rolled back or truncated"):
        world.publish.publish()
    assert len(world.key.signed) == signed


@pytest.mark.parametrize("grows_by", [0, 1, 9])
@pytest.mark.parametrize("at", [0, 3, 5])
def test_p10_a_ledger_whose_past_was_changed_gets_no_checkpoint(world, at, grows_by):
    append(world.ledger, 5)
    world.publish.publish()
    world.disk.entries[at] = encode_entry(Entry(at, Kind.TOKEN_MINTED, NOW, BY, {"forged": True}))
    if grows_by:
        append(world.ledger, grows_by)
    signed = len(world.key.signed)
    with pytest.raises(LedgerForked, match="does not agree with the ledger's first 6 entries"):
        world.publish.publish()
    assert len(world.key.signed) == signed


def test_p10_a_backup_that_went_on_is_a_fork(world):
    append(world.ledger, 5)
    backup = world.disk.backup()
    append(world.ledger, 5)
    published = read_kept(world.publish.publish())
    world.take(backup)
    world.ledger.append(Write([draft({"another": "story"})] * 7)).result(20)
    tree = world.ledger.tree
    with pytest.raises(LedgerForked):
        must_go_on_from(published, tree, tree.head(), where="the file")


def test_an_old_checkpoint_is_gone_on_from(world):
    published = [read_kept(world.publish.publish())]
    for count in (1, 3, 300):
        append(world.ledger, count)
        published.append(read_kept(world.publish.publish()))
    tree = world.ledger.tree
    for one in published:
        must_go_on_from(one, tree, tree.head(), where="the file")


def test_a_key_that_is_away_stops_publishing_and_nothing_else(world):
    before = world.publish.publish()
    world.key.is_away = True
    append(world.ledger, 2)
    with pytest.raises(SignerUnavailable):
        world.publish.publish()
    assert world.publish.served() == before
    world.key.is_away = False
    assert world.publish.publish().size == before.size + 2


def test_a_wrong_signature_is_never_published(world):
    world.key.signs_with = Key(9).private
    with pytest.raises(SignerUnavailable, match="wrong"):
        world.publish.publish()
    assert world.publish.served() is None


def test_with_witnesses_only_what_they_were_asked_about_is_served(world):
    witness = VerifierKey("witness.example", KeyKind.COSIGNATURE, Key(3).public_keys()[0])
    world.publish.witnesses = (witness,)
    record = world.publish.publish()
    assert world.publish.served() is None
    assert world.publish.keys().witnesses == (witness,)
    world.ledger.checkpoints.settle(record.size, ())
    assert world.publish.served().size == record.size


def test_each_entry_is_proven_by_a_file_that_holds_it(world):
    append(world.ledger, 20)
    for index in range(21):
        proof, entry, size = world.prove.inclusion(index)
        assert entry == world.disk.entries[index] == proof.extra
        signed = check_proof(parse_proof(proof.to_bytes()), entry, world.publish.keys())
        assert signed.checkpoint.size == size == 21


def test_an_entry_newer_than_the_checkpoint_gets_a_new_one(world):
    world.publish.publish()
    append(world.ledger, 3)
    assert world.prove.inclusion(0)[2] == 1
    assert world.prove.inclusion(3)[2] == 4
    with pytest.raises(NotFound, match="none with index 4"):
        world.prove.inclusion(4)


def test_consistency_is_proven_to_a_size_or_to_a_checkpoint(world):
    append(world.ledger, 9)
    to_checkpoint = world.prove.consistency(3, None)
    assert to_checkpoint.record is not None
    assert to_checkpoint.new_size == 10
    check_consistency(
        3, naive_root(world.disk.entries[:3]), 10, world.opened(to_checkpoint.record).root, to_checkpoint.hashes
    )
    to_size = world.prove.consistency(3, 7)
    assert (to_size.record, to_size.new_size) == (None, 7)
    check_consistency(3, naive_root(world.disk.entries[:3]), 7, naive_root(world.disk.entries[:7]), to_size.hashes)
    assert world.prove.consistency(0, 7).hashes == ()
    for old, new in ((3, 11), (11, None)):
        with pytest.raises(NotFound):
            world.prove.consistency(old, new)
    with pytest.raises(Invalid):
        world.prove.consistency(5, 4)
