"""The files of an export, and the check of all of them: nothing in it may be missing, added or changed."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

from broker.audit.keys import certificate_text
from broker.audit.revoked import completion_name
from broker.audit.rules import Rules
from broker.audit.wrong import Rule, wrong
from broker.errors import NotProven
from broker.ledger.checkpoint import LogKeys, SignedCheckpoint, open_checkpoint
from broker.ledger.entry import MAX_ENTRY_BYTES, Entry, Kind, leaf_hash
from broker.ledger.merkle import HASH_BYTES, Frontier, node_hash, root_at
from broker.ledger.note import MAX_NOTE_BYTES
from broker.ledger.tiles import TILE_WIDTH, Tile, TileNodes, decode_bundle, decode_hashes, tiles_of
from broker.token.completion import MAX_DOCUMENT_BYTES
from broker.token.keys import RealmTrust

CHECKPOINT = "checkpoint"
_MAX_BUNDLE_BYTES = TILE_WIDTH * (MAX_ENTRY_BYTES + 2)
_COMPLETION = re.compile(r"completions/(?:0|[1-9][0-9]{0,18})\.jws", re.ASCII)
_CERTIFICATE = re.compile(r"certificates/(?:0|[1-9][0-9]{0,18})\.jws", re.ASCII)
_MAX_CERTIFICATE_BYTES = 8192
_BUNDLES_KEPT = 64


class Files(Protocol):
    """What an export is read from: names with `/` between folders."""

    def names(self) -> Sequence[str]:
        """Return the name of each file that there is. Raises NotProven: one is no plain file."""

    def read(self, name: str, most: int) -> bytes:
        """Return a file's bytes, at most `most` + 1 of them. Raises NotProven: it cannot be read."""


@dataclass(frozen=True, slots=True)
class Checked:
    """What was found good: `size` entries under `root`; how many of each kind; who signed beside the log."""

    origin: str
    incarnation: str
    size: int
    root: bytes
    kinds: Mapping[str, int]
    completions: int
    certificates: int
    cosigners: tuple[str, ...]
    older: tuple[int, ...]


def certificate_name(index: int) -> str:
    """Return the file of an export that holds the certificate of the entry at an index."""
    return f"certificates/{index}.jws"


def check_export(files: Files, trust: Mapping[str, RealmTrust], log: LogKeys, older: Sequence[bytes] = ()) -> Checked:
    """Check an export, by public keys alone; `older` are checkpoints of the log that somebody kept.

    Raises:
        NotProven: Something is wrong; says where, and names the rule. First the signature and the files, then the
            tree, then the entries in their order.
    """
    names = frozenset(files.names())
    signed = _opened(files, names, log)
    reading = _Reading(files, signed.checkpoint.size)
    _must_be_its_files(names, signed.checkpoint.size)
    _must_be_its_tree(reading, signed)
    kept = tuple(_must_go_on(reading, signed, data, log) for data in older)
    rules = Rules(trust, reading.entry, lambda index: reading.completion(index, names))
    certificates, completions = set(), set()
    for data in reading.entries():
        entry = rules.take(data)
        if entry.kind is Kind.KEY_CERTIFIED:
            certificates.add(_must_be_its_file(files, names, entry))
        elif entry.kind is Kind.LEDGER_RESTORED:
            _must_be_restored(reading, entry)
        elif entry.kind is Kind.REVOCATION_COMPLETED:
            completions.add(completion_name(int(str(entry.body["revocation"]))))
    for name in sorted(names):
        if name.startswith(("certificates/", "completions/")) and name not in certificates | completions:
            raise wrong(name, Rule.LAYOUT, "is of nothing that the log tells of")
    return Checked(
        log.origin,
        rules.incarnation,
        signed.checkpoint.size,
        signed.checkpoint.root,
        dict(sorted(rules.kinds.items())),
        len(completions),
        len(certificates),
        tuple(dict.fromkeys(key.name for key in signed.cosigners)),
        kept,
    )


def _must_be_restored(reading: "_Reading", entry: Entry) -> None:
    """Raise unless what was restored is what stands before it."""
    if root_at(entry.index, reading.nodes()).hex() != entry.body.get("root"):
        raise wrong(f"entry {entry.index}", Rule.BEGINNING, "it was restored with other entries than these")


class _Reading:
    """Reads the tiles and bundles of a log of `size` entries, each bundle checked against its tile."""

    def __init__(self, files: Files, size: int) -> None:
        self._files = files
        self._size = size
        self._bundle = lru_cache(_BUNDLES_KEPT)(self._checked_bundle)

    def hashes(self, level: int, index: int) -> tuple[bytes, ...]:
        """Return the hashes of a tile."""
        tile = Tile(level, index, min(TILE_WIDTH, (self._size >> 8 * level) - index * TILE_WIDTH))
        with _as_wrong(tile.path):
            return decode_hashes(self._files.read(tile.path, TILE_WIDTH * HASH_BYTES), tile)

    def nodes(self) -> TileNodes:
        """Return what reads perfect subtrees."""
        return TileNodes(self.hashes)

    def bundle(self, index: int) -> tuple[str, tuple[bytes, ...]]:
        """Return where a bundle is, and its entries; nothing is checked but its form."""
        tile = Tile(None, index, min(TILE_WIDTH, self._size - index * TILE_WIDTH))
        with _as_wrong(tile.path):
            return tile.path, decode_bundle(self._files.read(tile.path, _MAX_BUNDLE_BYTES), tile)

    def entries(self) -> Iterator[bytes]:
        """Yield the entries."""
        for index in range(-(-self._size // TILE_WIDTH)):
            yield from self._bundle(index)

    def entry(self, index: int) -> bytes:
        """Return one entry."""
        return self._bundle(index // TILE_WIDTH)[index % TILE_WIDTH]

    def completion(self, index: int, names: frozenset[str]) -> bytes | None:
        """Return a completion, or None."""
        name = completion_name(index)
        return self._files.read(name, MAX_DOCUMENT_BYTES) if name in names else None

    def _checked_bundle(self, index: int) -> tuple[bytes, ...]:
        path, entries = self.bundle(index)
        for at, (data, leaf) in enumerate(zip(entries, self.hashes(0, index), strict=True)):
            if leaf_hash(data) != leaf:
                raise wrong(
                    f"entry {index * TILE_WIDTH + at}",
                    Rule.TREE,
                    f"its bytes in {path} are not those that the log signed",
                    hint=_CHANGED,
                )
        return entries


@contextmanager
def _as_wrong(where: str) -> Iterator[None]:
    try:
        yield
    except NotProven as bad:
        raise wrong(where, Rule.TREE, bad.message.removeprefix(f"{where} "), hint=_CHANGED) from bad


def _opened(files: Files, names: frozenset[str], log: LogKeys) -> SignedCheckpoint:
    if CHECKPOINT not in names:
        raise wrong(CHECKPOINT, Rule.LAYOUT, "is missing", hint="an export has one; export again")
    try:
        return open_checkpoint(files.read(CHECKPOINT, MAX_NOTE_BYTES), log)
    except NotProven as bad:
        raise wrong(CHECKPOINT, Rule.SIGNATURE, bad.message) from bad


def _must_be_its_files(names: frozenset[str], size: int) -> None:
    expected = {CHECKPOINT, *(tile.path for tile in tiles_of(size))}
    for name in sorted(expected - names):
        raise wrong(name, Rule.LAYOUT, f"is missing: a log of {size} entries has it", hint="export again")
    for name in sorted(names - expected):
        if not _COMPLETION.fullmatch(name) and not _CERTIFICATE.fullmatch(name):
            raise wrong(name, Rule.LAYOUT, f"does not belong to an export of {size} entries")


def _must_be_its_tree(reading: _Reading, signed: SignedCheckpoint) -> None:
    """Raise unless the tiles are those of the tree that was signed."""
    size = signed.checkpoint.size
    if not size:
        raise wrong(CHECKPOINT, Rule.BEGINNING, "is of an empty log, and none is")
    for tile in tiles_of(size):
        if tile.level is not None and tile.level > 0:
            for at, one in enumerate(reading.hashes(tile.level, tile.index)):
                below = Tile(tile.level - 1, tile.index * TILE_WIDTH + at)
                if _root_of(reading.hashes(tile.level - 1, below.index)) != one:
                    raise wrong(below.path, Rule.TREE, f"is not the tile that {tile.path} sums up", hint=_CHANGED)
    if root_at(size, reading.nodes()) != signed.checkpoint.root:
        _blame(reading, size)


def _blame(reading: _Reading, size: int) -> None:
    """Say what was changed, when the tiles do not lead to the root that was signed."""
    for index in range(-(-size // TILE_WIDTH)):
        tile = Tile(0, index, min(TILE_WIDTH, size - index * TILE_WIDTH))
        _, entries = reading.bundle(index)
        for at, (data, leaf) in enumerate(zip(entries, reading.hashes(0, index), strict=True)):
            if leaf_hash(data) != leaf:
                where = f"is not the hash of entry {tile.start + at}, and does not lead to the root that was signed"
                raise wrong(tile.path, Rule.TREE, where, hint=_CHANGED)
    raise wrong(CHECKPOINT, Rule.TREE, f"the {size} entries are not those that it was signed for", hint=_REWRITTEN)


def _root_of(hashes: Sequence[bytes]) -> bytes:
    while len(hashes) > 1:
        hashes = [node_hash(hashes[at], hashes[at + 1]) for at in range(0, len(hashes), 2)]
    return hashes[0]


def _must_go_on(reading: _Reading, signed: SignedCheckpoint, data: bytes, log: LogKeys) -> int:
    """Raise unless the log goes on from a checkpoint that was kept; return its size."""
    before = open_checkpoint(data, LogKeys(log.origin, log.keys, log.witnesses)).checkpoint
    size = signed.checkpoint.size
    if before.size > size:
        raise wrong(
            CHECKPOINT,
            Rule.ROLLBACK,
            f"is of {size} entries, and the log had {before.size} before",
            hint="entries are missing: ask for an export that is newer, and if there is none, for the reason",
        )
    root = root_at(before.size, reading.nodes()) if before.size else Frontier().root()
    if root != before.root:
        raise wrong(
            CHECKPOINT,
            Rule.FORK,
            f"the first {before.size} entries are others than the log signed before",
            hint="keep both checkpoints: together they prove that the log has two pasts",
        )
    return before.size


def _must_be_its_file(files: Files, names: frozenset[str], entry: Entry) -> str:
    name = certificate_name(entry.index)
    if name not in names:
        raise wrong(name, Rule.LAYOUT, f"is missing: entry {entry.index} tells of it", hint="export again")
    if files.read(name, _MAX_CERTIFICATE_BYTES) != certificate_text(entry).encode("ascii") + b"\n":
        raise wrong(name, Rule.CERTIFICATE, f"is not the certificate that entry {entry.index} holds", hint=_CHANGED)
    return name


_CHANGED = "this file was changed after the export, or in it; compare with an export of somebody else"
_REWRITTEN = "the log was forked or rewritten: keep this export, and compare with one of somebody else"
