"""A verifier's receipt key and its batches, by hand."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from broker.ledger.entry import Kind, decode_entry
from broker.token.keys import public_jwk, raw_signature, thumbprint
from broker.token.receipts import BATCH_CONTEXT, Batch, Line, What, batch_of, enrolment, spell_batch
from tests.stores import Home

INCARNATION = "an-incarnation"
_ES256 = ec.ECDSA(hashes.SHA256())


def accepted(token: str, index: int, number: int = 1, **changes: object) -> Line:
    now_ms = int(time.time() * 1000)
    fields = {"model": "mythos", "first_at_ms": now_ms, "last_at_ms": now_ms, "head": 1, "count": 1, **changes}
    return Line(What.ACCEPTED, token, index, number=number, **fields)  # type: ignore[arg-type]


class ReceiptKey:
    """Makes one key; signs what it is told."""

    def __init__(self, realm: str = "evaluation") -> None:
        self.realm = realm
        self._key = ec.generate_private_key(ec.SECP256R1())
        public = self._key.public_key()
        self.point = public.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
        self.kid = thumbprint(public_jwk(public))

    def sign(self, message: bytes) -> bytes:
        return raw_signature(self._key.sign(message, _ES256))

    def proof(self, realm: str = "") -> bytes:
        return self.sign(enrolment(realm or self.realm, self.point))

    def batch(
        self,
        lines: Sequence[Line],
        *,
        after: int = 0,
        first: int | None = None,
        last: int | None = None,
        realm: str = "",
        kid: str = "",
    ) -> tuple[bytes, bytes]:
        """Return the bytes of a batch and their signature."""
        begin = after + 1 if first is None else first
        body = spell_batch(
            realm=realm or self.realm,
            kid=kid or self.kid,
            incarnation=INCARNATION,
            after=after,
            first=begin,
            last=begin + len(lines) - 1 if last is None else last,
            lines=lines,
        )
        return body, self.sign(BATCH_CONTEXT + body)


def batches_in(folder: Path) -> list[Batch]:
    """Return the batches in the ledger of the broker whose data is in `folder`, in their order."""
    home = Home("sqlite", f"sqlite:///{folder / 'data' / 'ledger.db'}")
    found = [decode_entry(bytes(row[0])) for row in home.sql("SELECT entry FROM ledger ORDER BY idx")]
    return [batch_of(entry.body["batch"]) for entry in found if entry.kind is Kind.RECEIPTS_KEPT]


def lines_in(folder: Path, what: What = What.ACCEPTED) -> list[Line]:
    """Return the receipts of one kind in that ledger."""
    return [line for batch in batches_in(folder) for line in batch.lines if line.what is what]


def alarms_in(folder: Path) -> list[str]:
    """Return the problems that were alarms, in that ledger."""
    home = Home("sqlite", f"sqlite:///{folder / 'data' / 'ledger.db'}")
    found = [decode_entry(bytes(row[0])) for row in home.sql("SELECT entry FROM ledger ORDER BY idx")]
    bodies: list[Any] = [entry.body for entry in found if entry.kind is Kind.RECEIPTS_ALARMED]
    return [str(one["problem"]) for body in bodies for one in body["problems"]]
