"""What the broker does with receipts: the good ones are written once, and what cannot be so is an alarm."""

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from broker.errors import ReceiptsOutOfOrder, ReceiptsRefused, StoreUnavailable
from broker.ledger.entry import Entry, Kind, decode_entry, encode_entry
from broker.service.keep_receipts import Answer, KeepReceipts, Offered, Source
from broker.service.metering import Unmetered
from broker.service.ports import Write
from broker.token.receipts import MAX_BATCH_BYTES, MAX_LINES, Line, What, batch_of
from tests.fakes import Disk, FakeLedger
from tests.moved_clock import MovedClock
from tests.receipting import ReceiptKey, accepted

GATEWAY = Source("spiffe://lab.example/gateway", "evaluation")
OTHER = Source("spiffe://lab.example/other", "evaluation")
RESEARCH = Source("spiffe://lab.example/gateway-research", "research")


class Alarms(Unmetered):
    def __init__(self) -> None:
        self.alarms: list[str] = []
        self.counted: dict[str, int] = {}
        self.receipts_alarmed = lambda _realm, problem: self.alarms.append(problem)
        self.receipts = lambda _realm, what, count: self.counted.__setitem__(what, self.counted.get(what, 0) + count)

    def __getattribute__(self, name: str) -> object:
        if name in ("alarms", "counted", "receipts_alarmed", "receipts"):
            return object.__getattribute__(self, name)
        return super().__getattribute__(name)


class Book:
    """A ledger with two minted tokens, and the use case on it."""

    def __init__(self) -> None:
        self.clock = MovedClock()
        self.disk = Disk.new("an-incarnation", datetime.now(UTC))
        self.ledger = FakeLedger(self.disk, self.clock)
        self.meter = Alarms()
        self.keep = KeepReceipts(self.ledger, self.ledger, self.clock, self.meter)  # type: ignore[arg-type]
        self.token = self.minted("token-of-acme", "evaluation")
        self.foreign = self.minted("token-elsewhere", "research")
        self.key = ReceiptKey()
        assert self.enroll(self.key) == Answer(self.key.kid, 0)

    def minted(self, token: str, realm: str) -> tuple[str, int]:
        body = {"claims": {"jti": token, "realm": realm}}
        draft = lambda index: encode_entry(Entry(index, Kind.TOKEN_MINTED, self.clock.now(), "x", body))  # noqa: E731
        return token, self.ledger.append(Write([draft])).result().indices.start

    def enroll(self, key: ReceiptKey, source: Source = GATEWAY) -> Answer:
        return self.keep.enroll(source, key.point, key.proof())

    def offer(self, *batches: tuple[bytes, bytes], source: Source = GATEWAY) -> Sequence[Answer]:
        return self.keep.keep([Offered(source, body, signature) for body, signature in batches])

    def entries(self, kind: Kind) -> list[Entry]:
        return [entry for entry in map(decode_entry, self.disk.entries) if entry.kind is kind]

    def problems(self) -> list[str]:
        return [one["problem"] for entry in self.entries(Kind.RECEIPTS_ALARMED) for one in entry.body["problems"]]  # type: ignore[attr-defined]


@pytest.fixture
def book() -> Book:
    return Book()


def test_a_key_is_in_the_ledger_once_with_its_verifier(book):
    assert book.enroll(book.key) == Answer(book.key.kid, 0)
    [entry] = book.entries(Kind.RECEIPT_KEY_ENROLLED)
    assert (entry.by, entry.body["kid"], entry.body["realm"]) == (GATEWAY.verifier, book.key.kid, "evaluation")
    assert entry.body["key"]["kty"] == "EC"


def test_good_receipts_are_in_the_ledger_letter_by_letter_with_their_signature(book):
    lines = [accepted(*book.token, number) for number in (1, 2, 3)]
    body, signature = book.key.batch(lines)
    assert book.offer((body, signature)) == [Answer(book.key.kid, 3)]
    [entry] = book.entries(Kind.RECEIPTS_KEPT)
    assert entry.by == GATEWAY.verifier
    assert batch_of(entry.body["batch"]).lines == tuple(lines)
    # What was signed can be made again from the entry, by anybody.
    spelled = json.dumps(entry.body["batch"], sort_keys=True, separators=(",", ":")).encode()
    assert spelled == body
    assert book.meter.counted == {"accepted": 3}
    assert not book.problems()
    assert not book.keep.problems


def test_the_largest_batch_fits_an_entry(book):
    lines = [accepted(*book.token, number + 1, request_hash="h" * 43) for number in range(780)]
    body, signature = book.key.batch(lines)
    assert 45_000 < len(body) <= MAX_BATCH_BYTES
    assert book.offer((body, signature)) == [Answer(book.key.kid, 780)]
    assert len(lines) < MAX_LINES


def test_b3_receipts_that_come_twice_are_written_once(book):
    batch = book.key.batch([accepted(*book.token)])
    assert book.offer(batch, batch)[0] == Answer(book.key.kid, 1)
    [again] = book.offer(batch)
    assert (again.kid, again.through) == (book.key.kid, 1)
    assert isinstance(again.refused, ReceiptsOutOfOrder)
    assert len(book.entries(Kind.RECEIPTS_KEPT)) == 1
    assert book.meter.counted == {"accepted": 1}


def test_receipts_that_come_too_early_wait_for_those_before_them(book):
    late = book.key.batch([accepted(*book.token, 2)], after=1)
    [answer] = book.offer(late)
    assert (answer.through, type(answer.refused)) == (0, ReceiptsOutOfOrder)
    answers = book.offer(book.key.batch([accepted(*book.token, 1)]), late)
    assert answers == [Answer(book.key.kid, 1), Answer(book.key.kid, 2)]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (lambda book: accepted("never-minted", book.token[1]), "token not in the ledger"),
        (lambda book: accepted(book.token[0], book.token[1] + 1), "token not in the ledger"),
        (lambda book: accepted(book.token[0], 999_999), "token not in the ledger"),
        (lambda book: accepted(book.token[0], 0), "token not in the ledger"),
        (lambda book: accepted(*book.foreign), "token of another realm"),
        (
            lambda book: replace(accepted(*book.token), first_at_ms=4_000_000_000_000, last_at_ms=4_000_000_000_000),
            "receipt from the future",
        ),
    ],
    ids=["forged", "wrong index", "index to come", "no index", "realm", "future"],
)
def test_a_receipt_that_cannot_be_is_an_alarm_and_the_good_ones_beside_it_are_kept(book, line, problem):
    lines = [accepted(*book.token, 1), replace(line(book), number=2), accepted(*book.token, 3)]
    assert book.offer(book.key.batch(lines)) == [Answer(book.key.kid, 3)]
    [kept] = book.entries(Kind.RECEIPTS_KEPT)
    [alarm] = book.entries(Kind.RECEIPTS_ALARMED)
    assert len(batch_of(kept.body["batch"]).lines) == 3
    assert book.problems() == [problem]
    assert alarm.body["receipts"] == kept.index
    assert alarm.by == GATEWAY.verifier
    assert book.meter.alarms == [problem]
    assert problem in book.keep.problems[0]


def test_receipts_that_a_verifier_says_it_lost_are_an_alarm(book):
    lines = [accepted(*book.token, 10)]
    assert book.offer(book.key.batch(lines, first=10)) == [Answer(book.key.kid, 10)]
    assert book.problems() == ["receipts lost"]


def refused(book: Book, case: str) -> tuple[Source, bytes, bytes]:
    good, signature = book.key.batch([accepted(*book.token)])
    stranger = ReceiptKey()
    match case:
        case "wrong signature":
            return GATEWAY, good, stranger.sign(good)
        case "changed":
            return GATEWAY, good.replace(b'"last":1', b'"last":2'), signature
        case "no signature":
            return GATEWAY, good, b""
        case "key of nobody":
            return GATEWAY, *stranger.batch([accepted(*book.token)])
        case "stolen by another verifier":
            return OTHER, good, signature
        case "stolen by a verifier of another realm":
            return RESEARCH, good, signature
        case "for another realm":
            return GATEWAY, *book.key.batch([accepted(*book.token)], realm="research")
        case "in another's name":
            return GATEWAY, *stranger.batch([accepted(*book.token)], kid=book.key.kid)
        case _:
            return GATEWAY, b"not a batch", signature


CASES = [
    "wrong signature", "changed", "no signature", "key of nobody", "stolen by another verifier",
    "stolen by a verifier of another realm", "for another realm", "in another's name", "garbage",
]  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_bad_batch_is_refused_and_takes_no_good_one_with_it(book, case):
    source, body, signature = refused(book, case)
    good = book.key.batch([accepted(*book.token)])
    answers = book.keep.keep(
        [Offered(source, body, signature), Offered(GATEWAY, *good), Offered(source, body, signature)]
    )
    assert isinstance(answers[0].refused, ReceiptsRefused)
    assert answers[1] == Answer(book.key.kid, 1)
    assert answers[2].refused is not None
    assert len(book.entries(Kind.RECEIPTS_KEPT)) == 1
    # Once in the ledger, however often it is tried.
    assert len(book.entries(Kind.RECEIPTS_ALARMED)) == (case != "key of nobody")


def test_what_a_bad_batch_was_is_told_again_after_a_while(book):
    for minutes in (0, 0, 2):
        book.clock.advance(60 * minutes)
        # In other words each time: neither the ledger nor a metric grows by them.
        book.offer((b"garbage" * (minutes + len(book.meter.alarms)), b""))
    assert set(book.meter.alarms) == {"unreadable batch"}
    assert len(book.entries(Kind.RECEIPTS_ALARMED)) == 2
    assert len(book.meter.alarms) == 3
    book.clock.advance(90 * 60)
    assert not book.keep.problems


def test_b20_a_key_of_another_verifier_is_not_enrolled_again(book):
    for thief in (OTHER, RESEARCH):
        with pytest.raises(ReceiptsRefused):
            book.keep.enroll(thief, book.key.point, ReceiptKey(thief.realm).proof())
    with pytest.raises(ReceiptsRefused):
        # With the very proof that its owner showed.
        book.keep.enroll(OTHER, book.key.point, book.key.proof())
    assert book.problems() == ["key not proven", "key not proven", "key of another verifier"]
    assert len(book.entries(Kind.RECEIPT_KEY_ENROLLED)) == 1


@pytest.mark.parametrize("point", [b"", b"\x04" + bytes(64), b"\x02" + bytes(32), b"\x04" + b"\xff" * 64, bytes(65)])
def test_what_is_no_key_is_refused(book, point):
    with pytest.raises(ReceiptsRefused):
        book.keep.enroll(GATEWAY, point, bytes(64))


def test_a_store_that_is_away_makes_no_alarm_and_loses_nothing(book):
    batch = book.key.batch([accepted(*book.token)])
    entries_at = book.ledger.entries_at

    def away(indices):
        raise StoreUnavailable("away")

    book.ledger.entries_at = away
    [answer] = book.offer(batch)
    assert isinstance(answer.refused, StoreUnavailable)
    book.ledger.entries_at = entries_at
    assert book.offer(batch) == [Answer(book.key.kid, 1)]
    assert not book.problems()


def test_denials_of_what_cannot_be_believed_name_no_token_and_alarm_nobody(book):
    now_ms = int(book.clock.now().timestamp() * 1000)
    line = Line(What.DENIED, "", 0, "", now_ms, now_ms, 1, 17, reason="MALFORMED")
    assert book.offer(book.key.batch([line], last=1)) == [Answer(book.key.kid, 1)]
    assert not book.problems()
    assert book.meter.counted == {"denied": 17}
