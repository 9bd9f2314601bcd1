"""Makes the files of an export out of a log's entries, one after the other, and keeps none of them."""

from collections.abc import Callable

from broker.audit.export import CHECKPOINT, certificate_name
from broker.audit.fields import number_of
from broker.audit.keys import certificate_text
from broker.audit.revoked import completion_name
from broker.audit.wrong import Rule, wrong
from broker.errors import StoreCorrupt
from broker.ledger.entry import Kind, decode_entry, leaf_hash
from broker.ledger.merkle import Frontier, node_hash
from broker.ledger.tiles import TILE_WIDTH, Tile, encode_bundle, encode_hashes

Put = Callable[[str, bytes], None]
"""Writes a file of the export."""


class ExportWriter:
    """Takes entries in their order; `fetch` returns a completion's document by the index of its revocation."""

    def __init__(self, put: Put, fetch: Callable[[int], bytes]) -> None:
        self._put = put
        self._fetch = fetch
        self._bundle: list[bytes] = []
        self._levels: list[list[bytes]] = [[]]
        self._full: list[int] = [0]
        self._frontier = Frontier()

    @property
    def size(self) -> int:
        """How many entries there are so far."""
        return self._frontier.size

    def take(self, data: bytes) -> None:
        """Take the next entry, by its exact bytes. Raises NotProven: it is none, or not the next."""
        try:
            entry = decode_entry(data)
        except StoreCorrupt as bad:
            raise wrong(f"entry {self.size}", Rule.FORM, bad.message) from bad
        if entry.index != self.size:
            raise wrong(f"entry {entry.index}", Rule.FORM, f"came in the place of {self.size}")
        if entry.kind is Kind.KEY_CERTIFIED:
            self._put(certificate_name(entry.index), certificate_text(entry).encode("ascii") + b"\n")
        elif entry.kind is Kind.REVOCATION_COMPLETED:
            index = number_of(entry, "revocation")
            self._put(completion_name(index), self._fetch(index))
        leaf = leaf_hash(data)
        self._frontier = self._frontier.extended([leaf])
        self._bundle.append(data)
        if len(self._bundle) == TILE_WIDTH:
            self._put(Tile(None, self._full[0]).path, encode_bundle(self._bundle))
            self._bundle = []
        self._append(0, leaf)

    def close(self, checkpoint: bytes) -> bytes:
        """Write what is left, and the checkpoint last; return the root."""
        if self._bundle:
            self._put(Tile(None, self._full[0], len(self._bundle)).path, encode_bundle(self._bundle))
        for level, hashes in enumerate(self._levels):
            if hashes:
                self._put(Tile(level, self._full[level], len(hashes)).path, encode_hashes(hashes))
        self._put(CHECKPOINT, checkpoint)
        return self._frontier.root()

    def _append(self, level: int, one: bytes) -> None:
        if level == len(self._levels):
            self._levels.append([])
            self._full.append(0)
        hashes = self._levels[level]
        hashes.append(one)
        if len(hashes) < TILE_WIDTH:
            return
        self._put(Tile(level, self._full[level]).path, encode_hashes(hashes))
        self._full[level] += 1
        self._levels[level] = []
        while len(hashes) > 1:
            hashes = [node_hash(hashes[at], hashes[at + 1]) for at in range(0, len(hashes), 2)]
        self._append(level + 1, hashes[0])
