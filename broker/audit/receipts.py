"""Rules of receipts: signed by an enrolled key, in order, and none of a use after a revocation that was applied."""

import json
from collections import OrderedDict
from collections.abc import Callable

from cryptography.hazmat.primitives.asymmetric import ec

from broker.audit.fields import members_of, number_of, text_of
from broker.audit.past import Past, ReceiptKey
from broker.audit.tokens import claims_of
from broker.audit.wrong import Rule, must, wrong_entry
from broker.errors import Malformed, NotProven, ReceiptsRefused
from broker.ledger.entry import Entry, Kind
from broker.token.claims import Claims
from broker.token.jws import unb64url
from broker.token.keys import load_jwk, thumbprint, verify_es256
from broker.token.receipts import BATCH_CONTEXT, Batch, Line, What, parse_batch
from broker.token.revocation import Dimension, facts_of

_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
_KNOWN_TOKENS = 65_536

Minted = tuple[Claims, str, Kind]
"""What a token says, the key that signs it, and whether it is a canary."""


class ReceiptRules:
    """Takes what verifiers say. `find` returns the entry at an index, or None: there is none before."""

    def __init__(self, past: Past, find: Callable[[int], Entry | None]) -> None:
        self._past = past
        self._find = find
        self._known: OrderedDict[int, Minted | None] = OrderedDict()
        self._must_be_alarmed: tuple[int, str] | None = None

    def before(self, entry: Entry) -> None:
        """Look at what follows a batch with something in it that cannot be so. Raises NotProven."""
        if self._must_be_alarmed is None:
            return
        index, token = self._must_be_alarmed
        self._must_be_alarmed = None
        is_told = entry.kind is Kind.RECEIPTS_ALARMED and entry.body.get("receipts") == index
        must(is_told, entry, Rule.RECEIPT, f"receipts at index {index} name token {token}, and no alarm follows")

    def take_key(self, entry: Entry) -> None:
        """Take an entry of kind receipt-key-enrolled."""
        kid, jwk = text_of(entry, "kid"), members_of(entry, "key")
        try:
            key: ec.EllipticCurvePublicKey = load_jwk(jwk)
        except Malformed as bad:
            raise wrong_entry(entry, Rule.RECEIPT, bad.message) from bad
        must(thumbprint(jwk) == kid, entry, Rule.RECEIPT, "the key that was enrolled has another name")
        must(kid not in self._past.receipt_keys, entry, Rule.RECEIPT, f"key {kid} was enrolled before")
        self._past.receipt_keys[kid] = ReceiptKey(entry.by, text_of(entry, "realm"), key)

    def take_batch(self, entry: Entry) -> None:
        """Take an entry of kind receipts-kept."""
        data = _ENCODER.encode(members_of(entry, "batch")).encode("ascii")
        try:
            batch = parse_batch(data)
            signature = unb64url(text_of(entry, "signature"))
        except (ReceiptsRefused, Malformed) as bad:
            raise wrong_entry(entry, Rule.RECEIPT, bad.message) from bad
        key = self._past.receipt_keys.get(batch.kid)
        if key is None or (key.verifier, key.realm) != (entry.by, batch.realm):
            raise wrong_entry(entry, Rule.RECEIPT, f"{entry.by} has enrolled no key {batch.kid} in this realm")
        must(
            verify_es256(key.public_key, signature, BATCH_CONTEXT + data),
            entry,
            Rule.RECEIPT,
            f"the signature of {entry.by} is wrong",
        )
        must(
            batch.after == key.through,
            entry,
            Rule.RECEIPT,
            f"it goes on from receipt {batch.after}, and the one before ended with {key.through}",
        )
        key.through = batch.last
        for line in batch.lines:
            self._judge(entry, batch, line)

    def _judge(self, entry: Entry, batch: Batch, line: Line) -> None:
        if not line.token:
            return
        minted = self._minted(entry, line.index)
        if minted is None or minted[0].jti != line.token or minted[0].realm != batch.realm:
            # The broker writes what a verifier signed, believes none of it, and must raise the alarm.
            if self._must_be_alarmed is None:
                self._must_be_alarmed = (entry.index, line.token)
            return
        if line.what not in (What.ACCEPTED, What.SUMMED) or batch.incarnation != self._past.incarnation:
            return
        must(line.head <= entry.index, entry, Rule.RECEIPT, "a verifier says that it applied what came only later")
        self._must_not_be_dead(entry, line, minted)

    def _must_not_be_dead(self, entry: Entry, line: Line, minted: Minted) -> None:
        claims, kid, _ = minted
        facts = list(facts_of(claims, kid, line.model))
        if claims.idx in self._past.resigned:
            # Which of its keys signed what was shown cannot be told from here.
            facts[Dimension.KEY] = ()
        killed = self._past.revocations.between(tuple(facts), claims.idx, line.head)
        if killed is not None:
            index, selector = killed
            raise wrong_entry(
                entry,
                Rule.USE,
                f"{entry.by} accepted token {line.token} with head {line.head}, which revocation {index} of "
                f"{selector} had killed",
            )

    def _minted(self, entry: Entry, index: int) -> Minted | None:
        if index in self._known:
            self._known.move_to_end(index)
            return self._known[index]
        found = self._find(index) if 0 < index < entry.index else None
        minted: Minted | None = None
        if found is not None and found.kind in (Kind.TOKEN_MINTED, Kind.CANARY_MINTED):
            try:
                minted = (claims_of(found)[0], text_of(found, "kid"), found.kind)
            except NotProven:
                minted = None
        self._known[index] = minted
        if len(self._known) > _KNOWN_TOKENS:
            self._known.popitem(last=False)
        return minted


def take_alarm(entry: Entry) -> None:
    """Take an entry of kind receipts-alarmed."""
    problems = entry.body.get("problems")
    must(isinstance(problems, list) and problems, entry, Rule.FORM, "an alarm must name problems")
    if "receipts" in entry.body:
        must(number_of(entry, "receipts") == entry.index - 1, entry, Rule.RECEIPT, "it is about other receipts")
