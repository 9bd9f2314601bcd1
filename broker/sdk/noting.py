"""What a verifier's verdicts leave behind where the policy demands receipts: notes of uses, denials and ends."""

from collections.abc import Callable
from dataclasses import dataclass

from broker.errors import Invalid, Rejected, Stale
from broker.sdk.following import Trusted
from broker.sdk.receipting import Receipts
from broker.sdk.sealing import subject_of
from broker.token.claims import Claims
from broker.token.identifiers import matches_model

HASH_BYTES = 32


@dataclass(frozen=True, slots=True)
class Noted:
    """The receipt of an accepted use: what it is of, and its number."""

    subject: str
    number: int


def must_be_hash(request_hash: bytes | None) -> None:
    """Raise Invalid unless it is a SHA-256, or none."""
    if request_hash is not None and len(request_hash) != HASH_BYTES:
        raise Invalid("request_hash", f"has {len(request_hash)} bytes", hint="pass the SHA-256 of the request")


class Noting:
    """Notes verdicts. `before` is what was in force before a verdict was made: it was judged by that, or by more.

    So a receipt never claims a head that was not applied, and proves no acceptance that was none.
    """

    def __init__(
        self,
        receipts: Receipts,
        latest: Callable[[], Trusted],
        known: Callable[[object], Claims | None],
        boottime_ns: Callable[[], int],
    ) -> None:
        self._receipts = receipts
        self._latest = latest
        self._known = known
        self._boottime_ns = boottime_ns

    def accepted(self, claims: Claims, model: str, before: Trusted, request_hash: bytes | None) -> Noted | None:
        """Note what is about to be accepted, if the policy demands it. Raises ReceiptsUnkept, Stale: then it is not."""
        if not before.receipts or before.time is None:
            return None
        subject = subject_of(claims, model)
        at_ms = before.time.earliest_ms(self._boottime_ns())
        noted = Noted(subject, self._receipts.accepted(subject, at_ms, before.head, request_hash))
        if self._boottime_ns() > self._latest().accept_until_ns:
            # A disk can be slow; what is accepted is accepted within the lease (P5).
            self.ended(noted, Stale.reason, 0, 0)
            raise Stale("the freshness lease ran out while a receipt was written", hint="look at the verifier's disk")
        return noted

    def denied(self, refused: Rejected, token: object, model: object, before: Trusted) -> None:
        """Count a denial, if the policy demands it. Never raises."""
        if not before.receipts or before.time is None:
            return
        at_ms = before.time.earliest_ms(self._boottime_ns())
        claims = self._known(token)
        if claims is None:
            # Of what nobody signed, nothing is believed.
            self._receipts.denied(refused, "", 0, "", at_ms, before.head)
            return
        named = model if isinstance(model, str) and matches_model(model) else ""
        self._receipts.denied(refused, claims.jti, claims.idx, named, at_ms, before.head)

    def ended(self, noted: Noted, why: str, calls: int, size: int) -> None:
        """Note how a use ended. Never raises."""
        state = self._latest()
        at_ms = state.time.earliest_ms(self._boottime_ns()) if state.time is not None else 0
        self._receipts.ended(noted.subject, at_ms, state.head, accepted=noted.number, why=why, calls=calls, size=size)
