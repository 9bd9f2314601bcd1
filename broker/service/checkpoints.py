"""Publish checkpoints of the ledger's tree, and never one that does not go on from those before (P10)."""

from collections.abc import Sequence
from dataclasses import dataclass

from broker.errors import Defect, LedgerForked, NotFound, NotProven, SignerUnavailable, StoreCorrupt, StoreUnavailable
from broker.ledger.checkpoint import Checkpoint, LogKeys, parse_checkpoint, sign_checkpoint
from broker.ledger.merkle import check_consistency, prove_consistency, prove_inclusion
from broker.ledger.note import KeyKind, Note, VerifierKey, parse_note, sign_note
from broker.ledger.proof import TlogProof
from broker.ledger.tiles import TileNodes
from broker.service.ports import Clock, Ledger
from broker.service.tree_ports import CheckpointRecord, Checkpoints, CheckpointSigner, Tree, TreeHead

PROCEED = (
    "the broker does not go on from another past: stop it, put the newest copy of its store back and start it again"
)


class PublishCheckpoints:
    """Signs the tree as it is now. Safe to call from any thread; nothing of a mint waits for it."""

    def __init__(
        self,
        tree: Tree,
        checkpoints: Checkpoints,
        signer: CheckpointSigner,
        clock: Clock,
        *,
        name: str,
        witnesses: Sequence[VerifierKey] = (),
    ) -> None:
        self._tree = tree
        self._checkpoints = checkpoints
        self._signer = signer
        self._clock = clock
        # A restored ledger is another log: what its tree says from there on may not stand beside the old one.
        self.origin = f"{name}/{tree.head().incarnation}"
        self.witnesses = tuple(witnesses)

    def keys(self) -> LogKeys:
        """Return what others must pin to check our log. Raises SignerUnavailable."""
        keys = tuple(VerifierKey(self.origin, KeyKind.NOTE, public) for public in self._signer.public_keys())
        return LogKeys(self.origin, keys, self.witnesses)

    def publish(self) -> CheckpointRecord:
        """Return the checkpoint of all entries that there are; sign and keep it unless somebody did.

        Raises:
            LedgerForked: The tree does not go on from the newest checkpoint; nothing was signed.
            SignerUnavailable: There is no key to sign with now.
        """
        # In this order: another broker may publish a larger tree meanwhile, and none is larger than what follows.
        newest = self._checkpoints.newest()
        head = self._tree.head()
        if newest is not None:
            published = read_kept(newest)
            must_go_on_from(published, self._tree, head, where="the newest checkpoint in the store")
            if published.size == head.size:
                return newest
        checkpoint = Checkpoint(self.origin, head.size, head.root)
        try:
            note = sign_checkpoint(checkpoint, self.keys().keys[0], self._signer.sign)
        except NotProven as wrong:
            raise SignerUnavailable(wrong.message) from wrong
        return self._checkpoints.keep(
            CheckpointRecord(head.size, str(note), self._clock.now(), is_settled=not self.witnesses)
        )

    def vouch(self, text: str) -> Note:
        """Sign a text that is no checkpoint, with the log's key. Raises SignerUnavailable."""
        try:
            parse_checkpoint(text)
        except NotProven:
            key = self.keys().keys[0]
        else:
            raise Defect("what is signed here would pass for a checkpoint")
        try:
            return Note(text, (sign_note(text, key, self._signer.sign),))
        except NotProven as wrong:
            raise SignerUnavailable(wrong.message) from wrong

    def served(self) -> CheckpointRecord | None:
        """Return the newest checkpoint that all witnesses were asked about, or None: nothing is published yet."""
        return self._checkpoints.newest(settled=True)


@dataclass(frozen=True, slots=True)
class Consistency:
    """That the tree of `new_size` entries goes on from another; `record` is its checkpoint if none was named."""

    hashes: tuple[bytes, ...]
    new_size: int
    record: CheckpointRecord | None


class ProveEntries:
    """Proofs about the log, each as of a checkpoint that covers what it is about."""

    def __init__(self, ledger: Ledger, tree: Tree, publish: PublishCheckpoints) -> None:
        self._ledger = ledger
        self._tree = tree
        self._publish = publish

    def inclusion(self, index: int) -> tuple[TlogProof, bytes, int]:
        """Return the proof that the entry at `index` is in the log, the entry, and its checkpoint's size.

        The checkpoint is one that the witnesses were asked about if there is one that covers the entry, else a
        new one.

        Raises:
            NotFound: There is no such entry.
        """
        record = self.covering(index + 1)
        found = self._ledger.entries(index, index + 1)
        if not found:
            raise NotFound(f"there is no entry {index}")
        path = prove_inclusion(index, record.size, TileNodes(self._tree.tile))
        return TlogProof(index, path, record.note.encode(), extra=found[0]), found[0], record.size

    def consistency(self, old_size: int, new_size: int | None) -> Consistency:
        """Return the proof from the tree of `old_size` entries to that of `new_size`, or to a checkpoint's.

        Raises:
            NotFound: The ledger has fewer entries.
            Invalid: The old size is larger than the new one.
        """
        record = None
        if new_size is None:
            record = self.covering(old_size)
            new_size = record.size
        if new_size > self._tree.head().size:
            raise NotFound(f"the ledger has fewer than {new_size} entries")
        return Consistency(prove_consistency(old_size, new_size, TileNodes(self._tree.tile)), new_size, record)

    def covering(self, size: int) -> CheckpointRecord:
        """Return a checkpoint of at least `size` entries. Raises NotFound if there are fewer."""
        served = self._publish.served()
        if served is not None and served.size >= size:
            return served
        record = self._publish.publish()
        if record.size < size:
            raise NotFound(
                f"the ledger has {record.size} entries, none with index {size - 1}",
                hint="see the head in: broker status",
            )
        return record


def must_go_on_from(published: Checkpoint, tree: Tree, head: TreeHead, *, where: str) -> None:
    """Raise LedgerForked unless the tree goes on from what was published. `where` says where that stands.

    Raises:
        StoreUnavailable: The tree cannot be read that far now.
    """
    if published.size > head.size:
        raise LedgerForked(
            f"{where} has {published.size} entries, the ledger {head.size}: it was rolled back or truncated",
            hint=PROCEED,
        )
    try:
        path = prove_consistency(published.size, head.size, TileNodes(tree.tile))
    except NotProven as missing:
        raise StoreUnavailable(f"the tree cannot be read: {missing.message}") from missing
    try:
        check_consistency(published.size, published.root, head.size, head.root, path)
    except NotProven as parted:
        raise LedgerForked(
            f"{where} does not agree with the ledger's first {published.size} entries: its past was changed, or it is "
            "another ledger's",
            hint=PROCEED,
        ) from parted


def read_kept(record: CheckpointRecord) -> Checkpoint:
    """Return the checkpoint of a kept note. Raises StoreCorrupt."""
    try:
        return parse_checkpoint(parse_note(record.note.encode()).text)
    except NotProven as bad:
        raise StoreCorrupt("a kept checkpoint cannot be read") from bad
