"""What a log and a witness say to each other (c2sp.org/tlog-witness), and how a witness judges."""

import base64
from dataclasses import dataclass

from broker.errors import NotProven
from broker.ledger.checkpoint import Checkpoint, LogKeys, open_checkpoint, parse_checkpoint, parse_size
from broker.ledger.merkle import EMPTY_ROOT, check_consistency
from broker.ledger.note import MAX_NOTE_BYTES, Note, parse_note, unbase64_hashes

MAX_PROOF_LINES = 63
MAX_REQUEST_BYTES = MAX_NOTE_BYTES + 4096
SIZE_TYPE = "text/x.tlog.size"


@dataclass(frozen=True, slots=True)
class AddCheckpoint:
    """Asks a witness to go on from the tree of `old_size` entries to a checkpoint, a signed note in its bytes."""

    old_size: int
    proof: tuple[bytes, ...]
    checkpoint: bytes

    def to_bytes(self) -> bytes:
        """Return the body of the request."""
        lines = [f"old {self.old_size}", *(base64.b64encode(one).decode("ascii") for one in self.proof)]
        return "".join(f"{line}\n" for line in lines).encode("ascii") + b"\n" + self.checkpoint


@dataclass(frozen=True, slots=True)
class Accepted:
    """The witness goes on to this checkpoint, and must keep it before it signs."""

    checkpoint: Checkpoint
    note: Note


@dataclass(frozen=True, slots=True)
class Turned:
    """The witness does not; `status` is the answer's, `why` for people. With 409, `size` is what it saw last."""

    status: int
    why: str
    size: int = 0


def parse_request(data: bytes) -> AddCheckpoint:
    """Read a request's body. Raises NotProven for anything else."""
    if len(data) > MAX_REQUEST_BYTES:
        raise NotProven(f"a request has at most {MAX_REQUEST_BYTES} bytes")
    head, gap, checkpoint = data.partition(b"\n\n")
    if not gap or not checkpoint:
        raise NotProven("a request has no checkpoint below an empty line")
    try:
        lines = head.decode("ascii").split("\n")
    except UnicodeDecodeError as bad:
        raise NotProven("a request is not ASCII above its checkpoint") from bad
    if not lines[0].startswith("old "):
        raise NotProven("a request begins with the old size")
    if len(lines) - 1 > MAX_PROOF_LINES:
        raise NotProven(f"a request has at most {MAX_PROOF_LINES} lines of proof")
    return AddCheckpoint(parse_size(lines[0].removeprefix("old ")), unbase64_hashes(lines[1:]), checkpoint)


def origin_of(request: AddCheckpoint) -> str:
    """Return the log that the request says to be of. Raises NotProven if its checkpoint is none."""
    return parse_checkpoint(parse_note(request.checkpoint).text).origin


def judge(request: AddCheckpoint, log: LogKeys, last: Checkpoint | None) -> Accepted | Turned:
    """Decide on a request for a known log, whose last checkpoint is `last`. The caller holds `last` still meanwhile."""
    # 1. Signed by the log.
    try:
        signed = open_checkpoint(request.checkpoint, log)
    except NotProven as untrusted:
        return Turned(403, untrusted.message)
    checkpoint = signed.checkpoint
    # 2. Forwards.
    if request.old_size > checkpoint.size:
        return Turned(400, "the old size is larger than the checkpoint's")
    # 3. From where we are: or one of two requests at once would take us back.
    size, root = (0, EMPTY_ROOT) if last is None else (last.size, last.root)
    if request.old_size != size:
        return Turned(409, "another checkpoint was seen last", size)
    # 4. The same size, the same tree.
    if size == checkpoint.size and root != checkpoint.root:
        return Turned(409, "a tree of this size with another root was seen", size)
    # 5. Nothing of what was there is changed.
    try:
        check_consistency(size, root, checkpoint.size, checkpoint.root, request.proof)
    except NotProven as parted:
        return Turned(422, parted.message)
    return Accepted(checkpoint, signed.note)
