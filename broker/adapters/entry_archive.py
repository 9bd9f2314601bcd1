"""Where bodies of old entries are kept: a folder of entry bundles in the layout of c2sp.org/tlog-tiles."""

import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from threading import Lock

from broker.adapters.key_files import write_secret
from broker.errors import ArchiveUnavailable, Invalid, NotProven
from broker.ledger.entry import MAX_ENTRY_BYTES, leaf_hash
from broker.ledger.tiles import TILE_WIDTH, Tile, decode_bundle, encode_bundle

_MOST_BYTES = TILE_WIDTH * (MAX_ENTRY_BYTES + 2)
# Of the bundles that were read last: whoever asks for entries asks for the ones beside them.
KNOWN_BUNDLES = 16


class EntryArchive:
    """One folder for each ledger that the archive holds, by its incarnation. Safe for use by several threads.

    After a restore the ledger has another incarnation and the same entries up to there. So a bundle is looked for in
    all of them; it is the one that is looked for if the ledger's leaf hashes say so, and by nothing else.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder.absolute()
        self._lock = Lock()
        self._known: OrderedDict[int, tuple[bytes, ...]] = OrderedDict()

    def put(self, incarnation: str, bundle: int, entries: Sequence[bytes]) -> None:
        """Keep a full bundle durably; harmless when it is kept already.

        Raises:
            ArchiveUnavailable: It cannot be written, is not what was written, or something else is there.
        """
        path = self._folder / incarnation / _tile(bundle).path
        data = encode_bundle(entries)
        try:
            if path.exists() and path.read_bytes() != data:
                raise ArchiveUnavailable(
                    f"{path} is there already, and is something else",
                    hint="nothing of it was removed from the store; move that file away, and keep it",
                )
            # Also where the same is there: whether it, and its folders, came to the disk then is not known.
            above = [one for one in path.parents if one.is_relative_to(self._folder)]
            for folder in reversed(above):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_secret(path, data)
            for folder in above:
                _sync(folder.parent)
            # What is read here is what later readers get: only then may the store forget it.
            is_kept = path.read_bytes() == data
        except OSError as problem:
            raise ArchiveUnavailable(
                f"{path} cannot be written: {problem.strerror}",
                hint="nothing of it was removed from the store; try again",
            ) from problem
        if not is_kept:
            raise ArchiveUnavailable(f"{path} is not what was written", hint="look at the archive's disk")

    def read(self, bundle: int, hashes: Sequence[bytes]) -> tuple[bytes, ...]:
        """Return the entries of a full bundle, which have these leaf hashes.

        Raises:
            ArchiveUnavailable: No file that is there has them.
        """
        with self._lock:
            known = self._known.get(bundle)
        if known is not None and _are(known, hashes):
            return known
        tile = _tile(bundle)
        problem = f"there is no {self._folder}/*/{tile.path}"
        for path in self._paths(tile):
            try:
                entries = decode_bundle(_read(path), tile)
            except FileNotFoundError:
                continue
            except OSError as bad:
                problem = f"{path} cannot be read: {bad.strerror}"
                continue
            except NotProven as bad:
                problem = f"{path} is damaged: {bad.message}"
                continue
            if _are(entries, hashes):
                self._remember(bundle, entries)
                return entries
            problem = f"{path} is not what was moved there"
        raise gone(tile.start, problem)

    def _paths(self, tile: Tile) -> list[Path]:
        try:
            return sorted(one / tile.path for one in self._folder.iterdir() if one.is_dir())
        except FileNotFoundError:
            return []
        except OSError as bad:
            raise gone(tile.start, f"{self._folder} cannot be read: {bad.strerror}") from bad

    def _remember(self, bundle: int, entries: tuple[bytes, ...]) -> None:
        with self._lock:
            self._known[bundle] = entries
            self._known.move_to_end(bundle)
            if len(self._known) > KNOWN_BUNDLES:
                self._known.popitem(last=False)


def gone(start: int, problem: str) -> ArchiveUnavailable:
    """Return the failure to read the bundle of entries from index `start` on."""
    return ArchiveUnavailable(f"entries {start} to {start + TILE_WIDTH - 1} were moved to the archive, and {problem}")


def _tile(bundle: int) -> Tile:
    try:
        return Tile(None, bundle)
    except Invalid as bad:
        raise ArchiveUnavailable("there is no such bundle of entries") from bad


def _are(entries: Sequence[bytes], hashes: Sequence[bytes]) -> bool:
    return len(entries) == len(hashes) and all(
        leaf_hash(entry) == hashed for entry, hashed in zip(entries, hashes, strict=True)
    )


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_MOST_BYTES + 1)


def _sync(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
