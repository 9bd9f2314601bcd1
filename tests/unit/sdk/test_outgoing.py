"""What is spooled goes out until the broker has it, whatever it answers, or does not."""

from itertools import pairwise
from pathlib import Path

import pytest

from broker.sdk.outgoing import WINDOW, Outgoing
from broker.sdk.receipting import ReceiptPace
from broker.sdk.sealing import accepted_record
from broker.sdk.spool import Spool, adopted, has_left, new_spool
from broker.token.receipts import Batch, parse_batch
from broker.v1 import feed_pb2

EACH, SUMMED = feed_pb2.RECEIPT_DEMAND_EACH, feed_pb2.RECEIPT_DEMAND_SUMMED
AT_ONCE = ReceiptPace(send_every_s=0.0, sums_every_s=0.0, answer_within_s=3600.0, again_after_s=0.0)


class Wire:
    """One outgoing spool, and what it sent."""

    def __init__(self, spool: Spool, pace: ReceiptPace = AT_ONCE) -> None:
        self.spool = spool
        self.outgoing = Outgoing(spool, pace)
        self.enrolled = 0
        self.batches: list[Batch] = []
        self.stream = 1

    def use(self, count: int, head: int = 7) -> None:
        for _ in range(count):
            self.spool.journal.append(accepted_record('41,"token-id-0","mythos"', 1_700_000_000_000, head, None))

    def tick(self, demand: int = EACH, *, is_draining: bool = False) -> list[Batch]:
        before = len(self.batches)
        self.outgoing.send_due(self.stream, self._take, demand, is_draining=is_draining)
        return self.batches[before:]

    def answer(self, through: int, refusal: str = "") -> None:
        self.outgoing.take(feed_pb2.ReceiptsKept(key=self.spool.kid, through=through, refusal=refusal))

    def _take(self, request: feed_pb2.ListenRequest) -> None:
        if request.HasField("enroll"):
            self.enrolled += 1
        else:
            self.batches.append(parse_batch(request.receipts.body))


@pytest.fixture
def wire(tmp_path: Path) -> Wire:
    return Wire(new_spool(tmp_path, "evaluation", "an-incarnation", max_bytes=1 << 22))


def covers(batches: list[Batch]) -> list[tuple[int, int, int]]:
    return [(batch.after, batch.first, batch.last) for batch in batches]


def test_nothing_is_sent_before_the_broker_has_said_where_it_is(wire):
    wire.use(10)
    assert wire.tick() == []
    assert wire.enrolled == 1
    wire.answer(0)
    assert covers(wire.tick()) == [(0, 1, 10)]
    assert wire.enrolled == 1


def test_batches_follow_each_other_within_a_window(wire):
    wire.use(5000)
    wire.tick()
    wire.answer(0)
    assert len(wire.tick()) == WINDOW
    assert wire.tick() == []
    wire.answer(wire.batches[0].last)
    assert wire.outgoing.waiting == 5000 - wire.batches[0].last
    assert len(wire.tick()) == 1
    while wire.outgoing.waiting:
        wire.answer(wire.batches[-1].last)
        wire.tick()
    spans = covers(wire.batches)
    assert spans[0][0] == 0
    assert spans[-1][2] == 5000
    for (_, _, last), (after, first, _) in pairwise(spans):
        assert (after, first) == (last, last + 1)


@pytest.mark.parametrize("refusal", ["STORE_FULL", "STORE_UNAVAILABLE", "RECEIPTS_REFUSED", "OVERLOADED"])
def test_p11_what_is_refused_is_sent_again_from_where_the_broker_is(wire, refusal):
    wire.use(100)
    wire.tick()
    wire.answer(0)
    first = wire.tick()
    wire.answer(0, refusal)
    assert wire.outgoing.waiting == 100
    wire.tick()
    assert wire.enrolled == 2
    wire.answer(0)
    assert covers(wire.tick()) == covers(first)
    wire.answer(100)
    assert wire.outgoing.is_done


def test_b3_what_the_broker_has_already_is_not_sent_again(wire):
    wire.use(100)
    wire.tick()
    wire.answer(0)
    wire.tick()
    # Written, and the answer lost with the connection.
    wire.use(20)
    wire.stream = 2
    assert wire.tick() == []
    wire.answer(100)
    assert covers(wire.tick()) == [(100, 101, 120)]


def test_out_of_order_means_to_go_on_where_the_broker_is(wire):
    wire.use(100)
    wire.tick()
    wire.answer(0)
    wire.tick()
    wire.answer(60, "RECEIPTS_OUT_OF_ORDER")
    assert covers(wire.tick()) == [(60, 61, 100)]
    assert wire.enrolled == 1


def test_a_broker_that_does_not_answer_is_asked_where_it_is(tmp_path):
    impatient = ReceiptPace(send_every_s=0.0, answer_within_s=0.0)
    wire = Wire(new_spool(tmp_path, "evaluation", "an-incarnation", max_bytes=1 << 22), impatient)
    wire.use(3)
    for _ in range(3):
        wire.tick()
    assert wire.enrolled == 3
    wire.answer(0)
    wire.tick()
    wire.tick()
    assert wire.enrolled == 4


def test_sums_add_up_and_tell_the_highest_head(wire):
    wire.use(300, head=7)
    wire.use(200, head=9)
    wire.tick(SUMMED)
    wire.answer(0)
    [batch] = wire.tick(SUMMED)
    [line] = batch.lines
    assert (line.count, line.head, line.token, line.model) == (500, 9, "token-id-0", "mythos")
    assert (batch.first, batch.last) == (1, 500)


def test_long_names_make_smaller_batches_and_lose_none(wire):
    for number in range(400):
        subject = f'{number},"{"t" * 60}{number:04d}","{"m" * 120}.{number:04d}@{"i" * 120}"'
        wire.spool.journal.append(accepted_record(subject, 1_700_000_000_000, 7, bytes(32)))
    wire.tick()
    wire.answer(0)
    while wire.outgoing.waiting:
        wire.tick()
        wire.answer(wire.batches[-1].last)
    assert sum(len(batch.lines) for batch in wire.batches) == 400
    assert len(wire.batches) > 2


def test_p11_a_spool_that_is_left_is_adopted_once_its_process_is_gone(tmp_path, wire):
    wire.use(5)
    assert has_left(tmp_path, "evaluation")
    assert list(adopted(tmp_path, "evaluation")) == []
    assert list(adopted(tmp_path, "research")) == []
    kid = wire.spool.kid
    wire.spool.close(remove=False)
    [found] = adopted(tmp_path, "evaluation")
    assert (found.kid, found.incarnation) == (kid, "an-incarnation")
    again = Wire(found)
    again.tick()
    again.answer(2)
    assert covers(again.tick()) == [(2, 3, 5)]
    again.answer(5)
    assert again.outgoing.is_done
    found.close(remove=True)
    assert not has_left(tmp_path, "evaluation")


def test_what_cannot_be_read_at_the_end_is_kept_for_people(tmp_path, wire):
    wire.use(5)
    wire.spool.close(remove=False)
    [segment] = (tmp_path / "receipts" / "evaluation" / wire.spool.kid).glob("*.seg")
    segment.write_bytes(segment.read_bytes()[:-3])
    [found] = adopted(tmp_path, "evaluation")
    again = Wire(found)
    again.tick()
    again.answer(0)
    assert covers(again.tick()) == [(0, 1, 4)]
    again.answer(4)
    found.close(remove=again.outgoing.is_done)
    assert (tmp_path / "receipts" / "evaluation" / f".torn-{found.kid}" / segment.name).exists()
    assert list(adopted(tmp_path, "evaluation")) == []


def test_a_folder_with_a_damaged_key_is_left_alone_and_named(tmp_path, wire, caplog):
    wire.use(5)
    wire.spool.close(remove=False)
    key = tmp_path / "receipts" / "evaluation" / wire.spool.kid / "key"
    for damaged in (b"", b"{}", b"[]", key.read_bytes()[:-40], key.read_bytes().replace(b"evaluation", b"research!!")):
        key.write_bytes(damaged)
        caplog.clear()
        assert list(adopted(tmp_path, "evaluation")) == []
        assert f"receipts may be left in {key.parent}" in caplog.text
    assert key.exists()


def test_what_a_process_died_making_is_removed(tmp_path):
    (tmp_path / "receipts" / "evaluation" / ".new-1234").mkdir(parents=True)
    assert list(adopted(tmp_path, "evaluation")) == []
    assert not has_left(tmp_path, "evaluation")
