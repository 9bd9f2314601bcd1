"""P10: cosignatures are collected from witnesses that are well; those that are not hold up nobody and stop nothing."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from broker.adapters.witness_store import WitnessStore, hashed, logs_of
from broker.errors import LedgerForked, StoreCorrupt, StoreUnavailable
from broker.ledger.checkpoint import LogKeys, open_checkpoint, parse_checkpoint
from broker.ledger.merkle import prove_consistency
from broker.ledger.note import KeyKind, VerifierKey, cosign_note, parse_note
from broker.ledger.tiles import TileNodes
from broker.ledger.witnessing import AddCheckpoint, Turned, origin_of
from broker.service.ports import Write
from broker.service.tree_ports import Behind, Cosigned, NoAnswer, Parted
from broker.service.witnessing import REST_NS, CollectCosignatures
from tests.moved_clock import MovedClock
from tests.stores import append, draft
from tests.unit.service.test_checkpoints import World

AT = 1_790_000_000


class Watching:
    """A witness in this process, with the real store. `answers`: what it says instead, in turn."""

    def __init__(self, folder, log, name="witness.example/w1", seed=50):
        self.private = Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32)
        self.key = VerifierKey(name, KeyKind.COSIGNATURE, self.private.public_key().public_bytes_raw())
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.log = log
        self.asked = []
        self.answers = []
        self.shows = True
        self.reopen()

    def reopen(self):
        self.store = WitnessStore(self.folder, logs_of(self.log.keys), self._cosign)

    def _cosign(self, text):
        return cosign_note(text, self.key, self.private.sign, AT)

    def add_checkpoint(self, request):
        self.asked.append(request.old_size)
        if self.answers:
            return self.answers.pop(0)
        verdict = self.store.add(request, origin_of(request))
        if isinstance(verdict, Turned):
            if verdict.status == 422:
                return Parted()
            return Behind(verdict.size) if verdict.status == 409 else NoAnswer(verdict.why)
        return Cosigned((verdict,))

    def last(self, origin):
        return self.store.last(hashed(origin)) if self.shows else None


class Watched(World):
    """A log with witnesses."""

    def __init__(self, folder, count=1):
        super().__init__()
        log = self.publish.keys()
        self.witnesses = [Watching(folder / f"w{n}", log, f"witness.example/w{n}", 50 + n) for n in range(count)]
        self.clock = MovedClock()
        self.watch()

    def watch(self, **options):
        self.publish.witnesses = tuple(one.key for one in self.witnesses)
        self.collect = CollectCosignatures(
            self.ledger.tree, self.ledger.checkpoints, self.publish, self.witnesses, self.clock, **options
        )

    def cosigners(self):
        record = self.publish.served()
        return {key.name for key in open_checkpoint(record.note.encode(), self.publish.keys()).cosigners}

    def go_on(self, count=1):
        append(self.ledger, count)
        record = self.publish.publish()
        return record, self.collect.collect()


@pytest.fixture
def watched(tmp_path):
    watched = Watched(tmp_path)
    yield watched
    watched.collect.close()


@pytest.fixture
def watched_by_two(tmp_path):
    watched = Watched(tmp_path, 2)
    yield watched
    watched.collect.close()


def test_cosignatures_of_all_witnesses_are_in_the_served_checkpoint(watched_by_two):
    record, problem = watched_by_two.go_on(3)
    assert problem == ""
    assert watched_by_two.publish.served().size == record.size
    assert watched_by_two.cosigners() == {"witness.example/w0", "witness.example/w1"}


def test_a_witness_is_asked_to_go_on_from_what_it_saw_last(watched):
    for _ in range(3):
        watched.go_on(2)
    assert watched.witnesses[0].asked == [0, 3, 5]


def test_a_broker_that_is_new_to_a_witness_learns_its_size(watched):
    watched.go_on(4)
    watched.watch()
    _, problem = watched.go_on(4)
    assert problem == ""
    # The 409 says where to go on from.
    assert watched.witnesses[0].asked == [0, 0, 5]
    assert watched.cosigners() == {"witness.example/w0"}


@pytest.mark.parametrize(
    "answer", [NoAnswer("no answer in time"), Cosigned(()), Behind(2**40), Behind(0), Parted()], ids=str
)
def test_a_witness_that_is_down_or_mad_keeps_the_others_signatures_from_nobody(watched_by_two, answer):
    bad, _ = watched_by_two.witnesses
    bad.answers = [answer] * 10
    bad.shows = False
    record, problem = watched_by_two.go_on(2)
    assert "witness.example/w0" in problem
    assert watched_by_two.publish.served().size == record.size
    assert watched_by_two.cosigners() == {"witness.example/w1"}


def test_a_wrong_signature_is_never_published(watched):
    witness = watched.witnesses[0]
    stranger = Ed25519PrivateKey.from_private_bytes(b"\x63" * 32)
    append(watched.ledger, 1)
    record = watched.publish.publish()
    text = parse_note(record.note.encode()).text
    impostor = VerifierKey(witness.key.name, KeyKind.COSIGNATURE, stranger.public_key().public_bytes_raw())
    good = cosign_note(text, impostor, stranger.sign, AT)
    forged = type(good)(witness.key.name, witness.key.key_id, good.blob)
    for answer in (good, forged):
        witness.answers = [Cosigned((answer,))]
        assert "nonsense" in watched.collect.collect()
        assert watched.cosigners() == set()
        watched.clock.advance(REST_NS / 1e9 + 1)
        append(watched.ledger, 1)
        watched.publish.publish()


def test_a_witness_that_did_not_answer_is_left_in_peace_and_asked_again(watched):
    witness = watched.witnesses[0]
    witness.answers = [NoAnswer("away")]
    watched.go_on()
    watched.go_on()
    assert len(witness.asked) == 1
    watched.clock.advance(REST_NS / 1e9 + 1)
    _, problem = watched.go_on()
    assert problem == ""
    assert watched.cosigners() == {"witness.example/w0"}


def test_a_witness_that_hangs_holds_up_a_round_and_no_more(watched_by_two):
    watched_by_two.watch(round_s=0.5)
    slow, _ = watched_by_two.witnesses
    over = threading.Event()
    slow.add_checkpoint = lambda _request: NoAnswer(str(over.wait(30)))
    try:
        record, problem = watched_by_two.go_on(2)
        assert "w0 does not answer" in problem
        assert watched_by_two.publish.served().size == record.size
        assert watched_by_two.cosigners() == {"witness.example/w1"}
    finally:
        over.set()


def test_a_signature_that_comes_too_late_is_not_put_under_another_checkpoint(watched):
    watched.watch(round_s=0.2)
    witness = watched.witnesses[0]
    over, answer = threading.Event(), witness.add_checkpoint

    def late(request):
        assert over.wait(30)
        return answer(request)

    witness.add_checkpoint = late
    watched.go_on(1)
    append(watched.ledger, 1)
    watched.publish.publish()
    watched.clock.advance(REST_NS / 1e9 + 1)
    threading.Timer(0.05, over.set).start()
    watched.collect.collect()
    # A wrong signature by a pinned key would spoil the whole note for everybody.
    watched.cosigners()
    watched.clock.advance(REST_NS / 1e9 + 1)
    watched.collect.collect()
    assert watched.cosigners() == {"witness.example/w0"}


def test_p10_a_rolled_back_ledger_is_found_by_its_witness(watched):
    append(watched.ledger, 3)
    backup = watched.disk.backup()
    watched.go_on(5)
    watched.take(backup)
    watched.watch()
    with pytest.raises(LedgerForked, match="at the witness"):
        watched.collect.must_agree()
    # Also while it runs.
    append(watched.ledger, 1)
    watched.publish.publish()
    with pytest.raises(LedgerForked, match="at the witness"):
        watched.collect.collect()


def test_p10_a_forked_ledger_is_found_by_its_witness_and_never_cosigned(watched):
    append(watched.ledger, 3)
    backup = watched.disk.backup()
    watched.go_on(5)
    watched.take(backup)
    watched.watch()
    watched.ledger.append(Write([draft({"another": "story"})] * 20)).result(20)
    record = watched.publish.publish()
    with pytest.raises(LedgerForked, match="at the witness"):
        watched.collect.collect()
    assert not any(one.is_settled for one in watched.disk.checkpoints.values() if one.size == record.size)
    watched.witnesses[0].shows = False
    watched.watch()
    assert "does not go on from what it saw" in watched.collect.collect()
    assert watched.cosigners() == set()


def test_a_witness_alone_cannot_stop_a_broker(watched):
    watched.go_on(3)
    witness = watched.witnesses[0]
    liar = World()
    liar.key = type(liar.key)(77)
    liar.take(liar.disk)
    append(liar.ledger, 50)
    forged = liar.publish.publish().note.encode()
    witness.last = lambda _origin: forged
    watched.collect.must_agree()
    witness.last = lambda _origin: b"garbage"
    watched.collect.must_agree()


def test_p10_two_requests_at_once_never_take_a_witness_back(tmp_path):
    """The race that the specification prints: check, check, keep the larger, keep the smaller."""
    world = World()
    records = []
    for _ in range(24):
        append(world.ledger, 1)
        records.append(world.publish.publish())
    witness = Watching(tmp_path / "w", world.publish.keys())
    sizes = []

    def add(record):
        old = 0
        while True:
            path = prove_consistency(min(old, record.size), record.size, TileNodes(world.ledger.tree.tile))
            answer = witness.add_checkpoint(AddCheckpoint(min(old, record.size), path, record.note.encode()))
            if isinstance(answer, Cosigned):
                sizes.append(record.size)
                return
            if answer.size > record.size:
                return
            old = answer.size

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, records))
    kept = parse_checkpoint(parse_note(witness.last(world.publish.origin)).text)
    assert kept.size == max(sizes) == records[-1].size


def test_p10_a_request_that_comes_while_another_is_signed_waits_for_it(tmp_path):
    """The same race, step by step."""
    world = World()
    small, large = (world.publish.publish(), append(world.ledger, 4), world.publish.publish())[::2]
    witness = Watching(tmp_path / "w", world.publish.keys())
    overtaken = threading.Event()
    answers = []

    def overtake():
        answers.append(witness.add_checkpoint(AddCheckpoint(0, (), large.note.encode())))
        overtaken.set()

    thread = threading.Thread(target=overtake)
    sign = witness.store._cosign

    def slowly(text):
        if text in small.note:
            thread.start()
            overtaken.wait(0.5)
        return sign(text)

    witness.store._cosign = slowly
    assert isinstance(witness.add_checkpoint(AddCheckpoint(0, (), small.note.encode())), Cosigned)
    thread.join(10)
    assert answers == [Behind(small.size)]
    assert parse_checkpoint(parse_note(witness.last(world.publish.origin)).text).size == small.size


def test_p11_a_witness_remembers_what_it_signed_when_it_starts_again(watched):
    record, _ = watched.go_on(3)
    witness = watched.witnesses[0]
    witness.reopen()
    request = AddCheckpoint(0, (), record.note.encode())
    assert witness.add_checkpoint(request) == Behind(record.size)
    witness.store._path(hashed(watched.publish.origin)).write_bytes(b"damaged")
    with pytest.raises(StoreCorrupt, match="damaged"):
        witness.reopen()


def test_p11_what_cannot_be_kept_is_not_signed(watched):
    witness = watched.witnesses[0]
    witness.store._folder = witness.folder / "gone"
    append(watched.ledger, 1)
    record = watched.publish.publish()
    with pytest.raises(StoreUnavailable):
        witness.store.add(AddCheckpoint(0, (), record.note.encode()), watched.publish.origin)
    witness.store._folder = witness.folder
    assert witness.last(watched.publish.origin) is None
    assert isinstance(witness.add_checkpoint(AddCheckpoint(0, (), record.note.encode())), Cosigned)


def test_an_unknown_log_is_not_found(watched, tmp_path):
    other = Watching(
        tmp_path / "other", LogKeys("else", (VerifierKey("else", KeyKind.NOTE, watched.key.public_keys()[0]),))
    )
    record, _ = watched.go_on(1)
    verdict = other.store.add(AddCheckpoint(0, (), record.note.encode()), watched.publish.origin)
    assert isinstance(verdict, Turned)
    assert verdict.status == 404
