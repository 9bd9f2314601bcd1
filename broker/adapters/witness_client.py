"""A witness over HTTPS (c2sp.org/tlog-witness)."""

import hashlib

from broker.errors import IssuerUnavailable, NotProven
from broker.https import Answer, Reach, ask
from broker.ledger.checkpoint import parse_size
from broker.ledger.note import MAX_NOTE_BYTES, VerifierKey, parse_signatures
from broker.ledger.witnessing import AddCheckpoint
from broker.service.tree_ports import Behind, Cosigned, NoAnswer, Parted

# Nobody waits for it; but its answer is served with the checkpoint.
TIMEOUT_S = 3.0
OK, NOT_FOUND, CONFLICT, UNPROCESSABLE = 200, 404, 409, 422


class WitnessClient:
    """The Witness port on HTTPS."""

    def __init__(self, url: str, key: VerifierKey, reach: Reach, *, timeout_s: float = TIMEOUT_S) -> None:
        self.key = key
        self._url = url.rstrip("/")
        self._reach = reach
        self._timeout_s = timeout_s

    def add_checkpoint(self, request: AddCheckpoint) -> Cosigned | Behind | Parted | NoAnswer:
        """As the port says."""
        answer = self._ask("add-checkpoint", request.to_bytes())
        if isinstance(answer, NoAnswer):
            return answer
        try:
            text = answer.body.decode("utf-8")
            if answer.status == OK:
                return Cosigned(parse_signatures(text))
            if answer.status == CONFLICT:
                return Behind(parse_size(text.removesuffix("\n")))
        except (NotProven, UnicodeDecodeError) as odd:
            return NoAnswer(f"it answered {answer.status} with what makes no sense ({type(odd).__name__})")
        if answer.status == UNPROCESSABLE:
            return Parted()
        if answer.status == NOT_FOUND:
            return NoAnswer("it does not know this log: give it the log's key from the trust file")
        return NoAnswer(f"it answered {answer.status}")

    def last(self, origin: str) -> bytes | None:
        """As the port says."""
        answer = self._ask(f"{hashlib.sha256(origin.encode()).hexdigest()}/checkpoint", None)
        return answer.body if isinstance(answer, Answer) and answer.status == OK else None

    def _ask(self, path: str, body: bytes | None) -> Answer | NoAnswer:
        try:
            return ask(
                f"{self._url}/{path}",
                self._reach,
                body=body,
                headers={"Accept": "*/*", **({"Content-Type": "text/plain; charset=utf-8"} if body else {})},
                timeout_s=self._timeout_s,
                max_bytes=MAX_NOTE_BYTES,
            )
        except IssuerUnavailable as away:
            return NoAnswer(away.message)
