"""Have checkpoints cosigned: each witness is asked to go on from what it saw last, and none can hold anything up."""

import logging
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import assert_never

from broker.errors import NotProven, SignerUnavailable
from broker.ledger.checkpoint import open_checkpoint, with_cosignatures
from broker.ledger.merkle import prove_consistency
from broker.ledger.note import Note, NoteSignature, parse_note
from broker.ledger.tiles import TileNodes
from broker.ledger.witnessing import AddCheckpoint
from broker.service.checkpoints import PublishCheckpoints, must_go_on_from
from broker.service.ports import Clock
from broker.service.tree_ports import Behind, CheckpointRecord, Checkpoints, Cosigned, NoAnswer, Parted, Tree, Witness

log = logging.getLogger("broker.witnesses")

# One that did not answer is left in peace so long, so that it delays the others' signatures only now and then.
REST_NS = 10 * 1_000_000_000
ROUND_S = 6.0
# The first size is a guess, and another broker may have been faster than the second.
TRIES = 3


@dataclass(slots=True)
class _Known:
    """What is known of a witness: what it saw last, when it may be asked again, what is wrong with it."""

    size: int = 0
    rests_until_ns: int = 0
    problem: str = ""
    waiting: "Future[NoteSignature | None] | None" = field(default=None, repr=False)
    waiting_for: int = 0


class CollectCosignatures:
    """Asks all witnesses at once. Call from one thread at a time."""

    def __init__(
        self,
        tree: Tree,
        checkpoints: Checkpoints,
        publish: PublishCheckpoints,
        witnesses: Sequence[Witness],
        clock: Clock,
        *,
        round_s: float = ROUND_S,
    ) -> None:
        self._round_s = round_s
        self._tree = tree
        self._checkpoints = checkpoints
        self._publish = publish
        self._witnesses = tuple(witnesses)
        self._clock = clock
        self._known = [_Known() for _ in witnesses]
        self._threads = ThreadPoolExecutor(max(1, len(witnesses)), thread_name_prefix="witness")

    def collect(self) -> str:
        """Have the newest checkpoint cosigned by those who did not; return what is wrong with witnesses, or nothing.

        One who was away is asked again, also when nothing new has come since.

        Raises:
            LedgerForked: A witness has a checkpoint of ours that this ledger does not go on from.
        """
        record = self._checkpoints.newest()
        if record is not None:
            found = self._ask_all(record)
            if found or not record.is_settled:
                self._checkpoints.settle(record.size, found)
        return "; ".join(known.problem for known in self._known if known.problem)

    def must_agree(self) -> None:
        """Compare the ledger with what the witnesses saw of it last, as far as they answer.

        Raises:
            LedgerForked: As `collect`.
        """
        asked = [self._threads.submit(self._compare, witness) for witness in self._witnesses]
        done, _ = wait(asked, self._round_s)
        for one in done:
            one.result()

    def close(self) -> None:
        """Wait for nobody any more."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _ask_all(self, record: CheckpointRecord) -> list[NoteSignature]:
        note, now_ns = parse_note(record.note.encode()), self._clock.boottime_ns()
        asked = [
            (witness, known)
            for witness, known in zip(self._witnesses, self._known, strict=True)
            if now_ns >= known.rests_until_ns and not any(one.is_of(witness.key) for one in note.signatures)
        ]
        for witness, known in asked:
            # One that still hangs in an earlier call is not given a second thread.
            if known.waiting is None or known.waiting.done():
                known.waiting = self._threads.submit(self._ask, witness, known, record, note)
                known.waiting_for = record.size
        found: list[NoteSignature] = []
        deadline_ns = now_ns + int(self._round_s * 1e9)
        for witness, known in asked:
            assert known.waiting is not None  # noqa: S101 - just given
            left_s = max(0.0, (deadline_ns - self._clock.boottime_ns()) / 1e9)
            try:
                signature = known.waiting.result(left_s)
            except TimeoutError:
                self._rest(known, f"the witness {witness.key.name} does not answer")
                continue
            # What it signed in the end, after an earlier round was over, is another checkpoint's.
            if signature is not None and known.waiting_for == record.size:
                found.append(signature)
        return found

    def _ask(self, witness: Witness, known: _Known, record: CheckpointRecord, note: Note) -> NoteSignature | None:
        """Return the witness's signature, or None; `known.problem` says why."""
        for _ in range(TRIES):
            known.size = min(known.size, record.size)
            path = prove_consistency(known.size, record.size, TileNodes(self._tree.tile))
            answer = witness.add_checkpoint(AddCheckpoint(known.size, path, record.note.encode()))
            match answer:
                case Cosigned(signatures):
                    return self._checked(witness, known, note, record.size, signatures)
                case Behind(size) if size > record.size:
                    # Another broker's newer checkpoint; or one of a past that is gone.
                    self._compare(witness)
                    known.problem = "" if size <= self._tree.head().size else _has_seen_more(witness, size)
                    return None
                case Behind(size) if size != known.size:
                    known.size = size
                case Behind() | Parted():
                    self._compare(witness)
                    self._rest(known, f"for the witness {witness.key.name} the ledger does not go on from what it saw")
                    return None
                case NoAnswer(why):
                    self._rest(known, f"the witness {witness.key.name} did not sign: {why}")
                    return None
                case _:
                    assert_never(answer)
        known.problem = ""
        return None

    def _checked(
        self, witness: Witness, known: _Known, note: Note, size: int, signatures: Sequence[NoteSignature]
    ) -> NoteSignature | None:
        try:
            signed = with_cosignatures(note, signatures, witness.key)
        except NotProven as wrong:
            self._rest(known, f"the witness {witness.key.name} answered nonsense: {wrong.message}")
            return None
        known.size, known.problem = size, ""
        return signed.signatures[-1]

    def _compare(self, witness: Witness) -> None:
        """Raise LedgerForked if the witness shows a checkpoint, signed by us, that the ledger does not go on from."""
        data = witness.last(self._publish.origin)
        if data is None:
            return
        try:
            published = open_checkpoint(data, self._publish.keys()).checkpoint
        except (NotProven, SignerUnavailable) as unknown:
            # What we did not sign proves nothing: a witness alone must not stop a broker.
            log.warning("a witness's checkpoint proves nothing", extra={"fields": {"detail": unknown.message}})
            return
        must_go_on_from(
            published, self._tree, self._tree.head(), where=f"the last checkpoint at the witness {witness.key.name}"
        )

    def _rest(self, known: _Known, problem: str) -> None:
        known.problem = problem
        known.rests_until_ns = self._clock.boottime_ns() + REST_NS


def _has_seen_more(witness: Witness, size: int) -> str:
    return f"the witness {witness.key.name} says that it saw {size} entries, more than there are"
