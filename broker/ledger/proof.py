"""Proof files (c2sp.org/tlog-proof): that an entry is in the log, checkable with nothing but the log's key."""

import base64
from dataclasses import dataclass

from broker.errors import NotProven
from broker.ledger.checkpoint import LogKeys, SignedCheckpoint, open_checkpoint, parse_size
from broker.ledger.entry import leaf_hash
from broker.ledger.merkle import MAX_PROOF_HASHES, check_inclusion
from broker.ledger.note import MAX_NOTE_BYTES, unbase64, unbase64_hashes

HEADER = "c2sp.org/tlog-proof@v1"
SUFFIX = ".tlog-proof"
MAX_EXTRA_BYTES = 64 << 10
MAX_PROOF_BYTES = MAX_NOTE_BYTES + 2 * MAX_EXTRA_BYTES


@dataclass(frozen=True, slots=True)
class TlogProof:
    """The entry at `index` is in the log by `path`, as of `checkpoint`, a signed note in its exact bytes.

    `extra` is the entry itself in the files that we write: nothing vouches for it but the proof.
    """

    index: int
    path: tuple[bytes, ...]
    checkpoint: bytes
    extra: bytes | None = None

    def to_bytes(self) -> bytes:
        """Return the file."""
        lines = [HEADER]
        if self.extra is not None:
            lines.append(f"extra {base64.b64encode(self.extra).decode('ascii')}")
        lines.append(f"index {self.index}")
        lines += [base64.b64encode(one).decode("ascii") for one in self.path]
        return "".join(f"{line}\n" for line in lines).encode("ascii") + b"\n" + self.checkpoint


def parse_proof(data: bytes) -> TlogProof:
    """Read a proof file. Checks only its form.

    Raises:
        NotProven: Anything else than a proof.
    """
    if len(data) > MAX_PROOF_BYTES:
        raise NotProven(f"a proof has at most {MAX_PROOF_BYTES} bytes")
    head, gap, checkpoint = data.partition(b"\n\n")
    if not gap or not checkpoint:
        raise NotProven("a proof has no checkpoint below an empty line")
    try:
        lines = head.decode("ascii").split("\n")
    except UnicodeDecodeError as bad:
        raise NotProven("a proof is not ASCII above its checkpoint") from bad
    if lines.pop(0) != HEADER:
        raise NotProven(f"a proof begins with {HEADER}")
    extra = None
    if lines and lines[0].startswith("extra "):
        extra = unbase64(lines.pop(0).removeprefix("extra "))
    if not lines or not lines[0].startswith("index "):
        raise NotProven("a proof names the index of its entry")
    index = parse_size(lines.pop(0).removeprefix("index "))
    if len(lines) > MAX_PROOF_HASHES:
        raise NotProven("a proof has more hashes than any tree has levels")
    return TlogProof(index, unbase64_hashes(lines), checkpoint, extra)


def check_proof(proof: TlogProof, entry: bytes, log: LogKeys) -> SignedCheckpoint:
    """Return the checkpoint by which the log vouches for just these bytes at the proof's index.

    Raises:
        NotProven: The checkpoint is not the log's, or the entry is not in it.
    """
    signed = open_checkpoint(proof.checkpoint, log)
    checkpoint = signed.checkpoint
    check_inclusion(proof.index, checkpoint.size, leaf_hash(entry), proof.path, checkpoint.root)
    return signed
