"""Keep receipts: enroll the keys that verifiers sign them with, check what they send, and write it once."""

import json
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import datetime

from cryptography.hazmat.primitives.asymmetric import ec

from broker.errors import Failure, ReceiptsOutOfOrder, ReceiptsRefused, RequestReused
from broker.ledger.entry import Entry, Kind, encode_entry
from broker.service.metering import Meter
from broker.service.ports import Appended, Clock, Draft, Ledger, Write
from broker.service.receipt_ports import (
    ReceiptBook,
    ReceiptKeyEnrolled,
    ReceiptKeyIsNew,
    ReceiptKeyRecord,
    ReceiptsFollow,
    ReceiptsWritten,
)
from broker.token.jws import b64url
from broker.token.keys import public_jwk, thumbprint, verify_es256
from broker.token.receipts import BATCH_CONTEXT, Batch, enrolment, parse_batch

POINT_BYTES = 65
# Several brokers' clocks may part by so much before one of them stops minting.
FUTURE_MS = 60_000
# So many things that are wrong with one batch are written down one by one.
MAX_SUSPICIONS = 32
KNOWN_TOKENS = 16_384
KNOWN_KEYS = 16_384
# One verifier that does one thing wrong again and again fills neither ledger nor log.
ALARM_AGAIN_MS = 60_000
MAX_ALARMS = 4096
# Alarms stay among the problems of the status for so long.
TOLD_FOR_MS = 3_600_000


@dataclass(frozen=True, slots=True)
class Source:
    """The verifier on whose stream something came, by its certificate."""

    verifier: str
    realm: str


@dataclass(frozen=True, slots=True)
class Offered:
    """A batch as it came. Nothing in it is believed."""

    source: Source
    unverified_body: bytes
    signature: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """Up to where the key's receipts are in the ledger, and why no further. `kid` is empty where none is known."""

    kid: str
    through: int
    refused: Failure | None = None


@dataclass(frozen=True, slots=True)
class Suspicion:
    """Something in a good batch that cannot be so. The batch is written all the same, and this beside it."""

    problem: str
    token: str = ""
    index: int = 0
    detail: str = ""

    def body(self) -> dict[str, object]:
        """Return it as the ledger tells it."""
        return {"problem": self.problem, "token": self.token, "index": self.index, "detail": self.detail}


@dataclass(slots=True)
class _Good:
    """A batch that is this verifier's, signed by its key; what is written."""

    source: Source
    batch: Batch
    signature: bytes
    suspicions: Sequence[Suspicion] = ()


class KeepReceipts:
    """Checks and writes receipts. One thread owns it; each of its calls may wait for the store."""

    def __init__(self, ledger: Ledger, book: ReceiptBook, clock: Clock, meter: Meter) -> None:
        self._ledger = ledger
        self._book = book
        self._clock = clock
        self._meter = meter
        self._keys: OrderedDict[str, tuple[ReceiptKeyRecord, ec.EllipticCurvePublicKey]] = OrderedDict()
        # Index to id and realm of tokens that are in the ledger.
        self._tokens: OrderedDict[int, tuple[str, str]] = OrderedDict()
        self._alarmed: OrderedDict[tuple[Source, str], int] = OrderedDict()
        # Replaced as a whole, for those who ask in other threads.
        self._newest: tuple[Source, str, int] | None = None

    @property
    def problems(self) -> tuple[str, ...]:
        """What receipts were alarming lately, for people. Callable from any thread."""
        newest = self._newest
        if newest is None or newest[2] < self._now_ms() - TOLD_FOR_MS:
            return ()
        source, problem, _ = newest
        last = f"receipts are alarming: last from {source.verifier} ({problem})"
        return (f"{last}; see the ledger entries of kind receipts-alarmed",)

    def enroll(self, source: Source, point: bytes, signature: bytes) -> Answer:
        """Take the key as this verifier's, once; return up to where its receipts are written.

        Raises:
            ReceiptsRefused: No P-256 key, no proof that the verifier has it, or another verifier's.
            Whatever `Ledger.append` raises.
        """
        key = _public_key(point)
        jwk = public_jwk(key)
        kid = thumbprint(jwk)
        if not verify_es256(key, signature, enrolment(source.realm, point)):
            raise self._alarm(source, "key not proven", kid)
        record = self._book.receipt_key(kid)
        if record is None:
            at = self._clock.now()
            body = {"kid": kid, "realm": source.realm, "key": jwk}
            entry: Draft = lambda index: encode_entry(  # noqa: E731 - a draft is a function of the index
                Entry(index, Kind.RECEIPT_KEY_ENROLLED, at, source.verifier, body)
            )
            effect = ReceiptKeyEnrolled(kid, source.realm, source.verifier, point)
            try:
                self._ledger.append(Write([entry], guards=(ReceiptKeyIsNew(kid),), effects=(effect,))).result()
            except RequestReused:
                # By another stream of this verifier, or on another broker, at the same time.
                record = self._book.receipt_key(kid)
            else:
                return Answer(kid, 0)
        if record is None or (record.realm, record.verifier) != (source.realm, source.verifier):
            raise self._alarm(source, "key of another verifier", kid)
        return Answer(kid, record.through)

    def keep(self, offered: Sequence[Offered]) -> Sequence[Answer]:
        """Write what is good of `offered`, in one group; return an answer to each, after the commit. Never raises.

        A batch that is refused takes no other with it; those of one key are written in their order.
        """
        checked = [self._checked(one) for one in offered]
        now = self._clock.now()
        try:
            self._learn([one.batch for one in checked if isinstance(one, _Good)])
        except Failure as failure:
            # What cannot be looked up is no alarm. It is sent again.
            return [Answer(one.batch.kid, 0, failure) if isinstance(one, _Good) else one for one in checked]
        writing: list[tuple[_Good, Future[Appended]] | Answer] = []
        for one in checked:
            if isinstance(one, _Good):
                one.suspicions = list(self._suspicions(one.batch, now))
                writing.append((one, self._ledger.append(_write(one, now))))
            else:
                writing.append(one)
        while len(self._tokens) > KNOWN_TOKENS:
            self._tokens.popitem(last=False)
        return [one if isinstance(one, Answer) else self._written(*one) for one in writing]

    def _checked(self, offered: Offered) -> "_Good | Answer":
        source, kid = offered.source, ""
        try:
            batch = parse_batch(offered.unverified_body)
            kid = batch.kid
            if batch.realm != source.realm:
                raise self._alarm(source, "receipts of another realm", kid)
            record, key = self._key(kid)
            if (record.realm, record.verifier) != (source.realm, source.verifier):
                raise self._alarm(source, "receipts of another verifier", kid)
            if not verify_es256(key, offered.signature, BATCH_CONTEXT + offered.unverified_body):
                raise self._alarm(source, "wrong signature", kid)
        except Failure as failure:
            self._meter.receipts_refused(source.realm, failure.reason)
            if not kid:
                # In the same few words whatever it was: they name a metric, too.
                self._alarm(source, "unreadable batch", kid)
            return Answer(kid, 0, failure)
        return _Good(source, batch, offered.signature)

    def _key(self, kid: str) -> tuple[ReceiptKeyRecord, ec.EllipticCurvePublicKey]:
        known = self._keys.get(kid)
        if known is None:
            record = self._book.receipt_key(kid)
            if record is None:
                raise ReceiptsRefused("a batch by a key that is not enrolled", hint="enroll it first")
            known = self._keys[kid] = (record, _public_key(record.point))
            if len(self._keys) > KNOWN_KEYS:
                self._keys.popitem(last=False)
        return known

    def _written(self, good: "_Good", writing: "Future[Appended]") -> Answer:
        batch = good.batch
        try:
            writing.result()
        except Failure as failure:
            self._meter.receipts_refused(batch.realm, failure.reason)
            through = self._through(batch.kid) if isinstance(failure, ReceiptsOutOfOrder) else 0
            return Answer(batch.kid, through, failure)
        for what in {line.what for line in batch.lines}:
            self._meter.receipts(batch.realm, what.value, sum(line.count for line in batch.lines if line.what is what))
        for problem in {one.problem for one in good.suspicions}:
            self._note(good.source, problem)
        return Answer(batch.kid, batch.last)

    def _through(self, kid: str) -> int:
        try:
            record = self._book.receipt_key(kid)
        except Failure:
            return 0
        return record.through if record is not None else 0

    def _suspicions(self, batch: Batch, now: datetime) -> Iterator[Suspicion]:
        """Yield what cannot be so, the first of each token and kind."""
        told = 0
        latest_ms = int(now.timestamp() * 1000) + FUTURE_MS
        seen: set[tuple[str, str]] = set()
        if batch.lost:
            yield Suspicion("receipts lost", detail=f"{batch.lost} before number {batch.first}")
        for line in batch.lines:
            problem = self._problem(batch, line.token, line.index)
            if not problem and line.last_at_ms > latest_ms:
                problem = "receipt from the future"
            if not problem or (line.token, problem) in seen or told >= MAX_SUSPICIONS:
                continue
            seen.add((line.token, problem))
            told += 1
            yield Suspicion(problem, line.token, line.index)

    def _problem(self, batch: Batch, token: str, index: int) -> str:
        if not token:
            return ""
        known = self._tokens.get(index)
        if known is None or known[0] != token:
            return "token not in the ledger"
        return "" if known[1] == batch.realm else "token of another realm"

    def _learn(self, batches: Sequence[Batch]) -> None:
        """Look up in the ledger the tokens that are not known yet."""
        wanted = sorted({line.index for batch in batches for line in batch.lines if line.token} - self._tokens.keys())
        for at in range(0, len(wanted), 500):
            for index, data in self._book.entries_at(wanted[at : at + 500]).items():
                minted = _minted(data)
                if minted is not None:
                    self._tokens[index] = minted

    def _alarm(self, source: Source, problem: str, kid: str) -> ReceiptsRefused:
        """Count, log and write down what is refused; return what to raise."""
        if self._note(source, problem):
            at = self._clock.now()
            suspicions = [Suspicion(problem)]
            # Not waited for: whoever sends nonsense shall not decide how long others wait.
            self._ledger.append(Write([lambda index: _alarm_entry(index, at, source, kid, suspicions, of=None)]))
        return ReceiptsRefused(problem)

    def _note(self, source: Source, problem: str) -> bool:
        """Count an alarm; return whether it is some time since the same one."""
        self._meter.receipts_alarmed(source.realm, problem)
        now_ms = self._now_ms()
        self._newest = (source, problem, now_ms)
        before_ms = self._alarmed.pop((source, problem), None)
        is_news = before_ms is None or now_ms - before_ms > ALARM_AGAIN_MS
        self._alarmed[source, problem] = now_ms if before_ms is None or is_news else before_ms
        if len(self._alarmed) > MAX_ALARMS:
            self._alarmed.popitem(last=False)
        return is_news

    def _now_ms(self) -> int:
        return int(self._clock.now().timestamp() * 1000)


def _write(good: "_Good", now: datetime) -> Write:
    source, batch = good.source, good.batch
    body = {"signature": b64url(good.signature)}
    # Letter by letter as it was signed.
    spelled = {"batch": batch.text}
    drafts: list[Draft] = [
        lambda index: encode_entry(Entry(index, Kind.RECEIPTS_KEPT, now, source.verifier, body), spelled=spelled)
    ]
    if good.suspicions:
        drafts.append(lambda index: _alarm_entry(index, now, source, batch.kid, good.suspicions, of=index - 1))
    return Write(
        drafts,
        guards=(ReceiptsFollow(batch.kid, batch.after),),
        effects=(ReceiptsWritten(batch.kid, batch.last),),
    )


def _alarm_entry(
    index: int, at: datetime, source: Source, kid: str, suspicions: Sequence[Suspicion], *, of: int | None
) -> bytes:
    body: dict[str, object] = {"realm": source.realm, "kid": kid, "problems": [one.body() for one in suspicions]}
    if of is not None:
        body["receipts"] = of
    return encode_entry(Entry(index, Kind.RECEIPTS_ALARMED, at, source.verifier, body))


def _minted(data: bytes) -> tuple[str, str] | None:
    """Return id and realm of the token that an entry records, or None: it records no mint."""
    entry = json.loads(data)
    claims = entry["body"].get("claims")
    if entry["kind"] != Kind.TOKEN_MINTED or not isinstance(claims, Mapping):
        return None
    return str(claims.get("jti")), str(claims.get("realm"))


def _public_key(point: bytes) -> ec.EllipticCurvePublicKey:
    # Uncompressed, so that a key has one spelling here; the library refuses what is not on the curve.
    if len(point) != POINT_BYTES or point[0] != 4:  # noqa: PLR2004 - SEC 1 §2.3.3
        raise ReceiptsRefused("a receipt key must be an uncompressed point of P-256")
    try:
        return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point)
    except ValueError as bad:
        raise ReceiptsRefused("a receipt key that is no point of P-256") from bad
