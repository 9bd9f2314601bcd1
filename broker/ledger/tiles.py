"""Tiles and entry bundles (c2sp.org/tlog-tiles): their paths, their bytes, and reading the tree from them."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from broker.errors import Invalid, NotProven
from broker.ledger.entry import MAX_ENTRY_BYTES
from broker.ledger.merkle import HASH_BYTES, node_hash

TILE_HEIGHT = 8
TILE_WIDTH = 1 << TILE_HEIGHT
MAX_LEVEL = 63
_LENGTH_BYTES = 2
# Nine digits a group of three: more leaves than a log can have.
_PATH = re.compile(
    r"tile/(?P<level>entries|0|[1-9][0-9]?)/(?P<index>(?:x[0-9]{3}/){0,6}[0-9]{3})(?:\.p/(?P<width>[1-9][0-9]{0,2}))?",
    re.ASCII,
)

ReadTile = Callable[[int, int], Sequence[bytes]]
"""Returns the hashes that there are of tile (level, index), at most 256."""


@dataclass(frozen=True, slots=True)
class Tile:
    """A tile's place: `level` None for a bundle of entries; `width` 256 for a full one.

    Raises:
        Invalid: There is no such tile.
    """

    level: int | None
    index: int
    width: int = TILE_WIDTH

    def __post_init__(self) -> None:
        if not 0 <= (self.level or 0) <= MAX_LEVEL or self.index < 0 or not 1 <= self.width <= TILE_WIDTH:
            raise Invalid("tile", "there is no such tile")

    @property
    def path(self) -> str:
        """Where it is served."""
        groups = [f"{self.index % 1000:03d}"]
        rest = self.index // 1000
        while rest:
            groups.insert(0, f"x{rest % 1000:03d}")
            rest //= 1000
        level = "entries" if self.level is None else str(self.level)
        partial = "" if self.width == TILE_WIDTH else f".p/{self.width}"
        return f"tile/{level}/{'/'.join(groups)}{partial}"

    @property
    def start(self) -> int:
        """Index of its first hash within its level, or of its first entry."""
        return self.index * TILE_WIDTH

    def is_in(self, size: int) -> bool:
        """Tell whether a tree of `size` entries has all of it."""
        return self.start + self.width <= size >> (TILE_HEIGHT * (self.level or 0))


def parse_tile_path(path: str) -> Tile:
    """Read a path; `Tile.path` is the inverse. Raises Invalid for any other spelling of it."""
    found = _PATH.fullmatch(path)
    if found is None:
        raise Invalid("tile", "is no path of a tile", hint="see c2sp.org/tlog-tiles")
    index = int(found["index"].replace("x", "").replace("/", ""))
    width = TILE_WIDTH if found["width"] is None else int(found["width"])
    tile = Tile(None if found["level"] == "entries" else int(found["level"]), index, width)
    # One tile, one path: `x000/001` and `.p/256` would be second names.
    if tile.path != path:
        raise Invalid("tile", f"is spelled {tile.path}")
    return tile


def tiles_of(size: int) -> tuple[Tile, ...]:
    """Return the tiles of hashes and the bundles of entries that a tree of `size` entries has."""
    tiles: list[Tile] = []
    level: int | None = None
    while True:
        full, rest = divmod(size >> (TILE_HEIGHT * (level or 0)), TILE_WIDTH)
        tiles += [Tile(level, index) for index in range(full)]
        if rest:
            tiles.append(Tile(level, full, rest))
        if level is not None and not full:
            return tuple(tiles)
        level = 0 if level is None else level + 1


def encode_hashes(hashes: Sequence[bytes]) -> bytes:
    """Return the bytes of a tile."""
    return b"".join(hashes)


def decode_hashes(data: bytes, tile: Tile) -> tuple[bytes, ...]:
    """Read a tile. Raises NotProven unless it has just as many hashes as its width."""
    if len(data) != tile.width * HASH_BYTES:
        raise NotProven(f"{tile.path} has {len(data)} bytes, not {tile.width * HASH_BYTES}")
    return tuple(data[at : at + HASH_BYTES] for at in range(0, len(data), HASH_BYTES))


def encode_bundle(entries: Sequence[bytes]) -> bytes:
    """Return the bytes of an entry bundle: each entry after its length in two bytes. Raises Invalid if too long."""
    if any(len(entry) > MAX_ENTRY_BYTES for entry in entries):
        raise Invalid("entry", f"has more than {MAX_ENTRY_BYTES} bytes")
    return b"".join(len(entry).to_bytes(_LENGTH_BYTES, "big") + entry for entry in entries)


def decode_bundle(data: bytes, tile: Tile) -> tuple[bytes, ...]:
    """Read an entry bundle. Raises NotProven unless it has just as many whole entries as its width."""
    entries: list[bytes] = []
    at = 0
    while at < len(data):
        stop = at + _LENGTH_BYTES + int.from_bytes(data[at : at + _LENGTH_BYTES], "big")
        if at + _LENGTH_BYTES > len(data) or stop > len(data):
            raise NotProven(f"{tile.path} ends within an entry")
        entries.append(data[at + _LENGTH_BYTES : stop])
        at = stop
    if len(entries) != tile.width:
        raise NotProven(f"{tile.path} has {len(entries)} entries, not {tile.width}")
    return tuple(entries)


class TileNodes:
    """Reads perfect subtrees from tiles, each tile once: what `prove_inclusion` and its like are given."""

    def __init__(self, read: ReadTile) -> None:
        self._read = read
        self._known: dict[tuple[int, int], Sequence[bytes]] = {}

    def __call__(self, height: int, index: int) -> bytes:
        """Return the hash. Raises NotProven if the tile has it not."""
        level, within = divmod(height, TILE_HEIGHT)
        first = index << within
        tile, offset = divmod(first, TILE_WIDTH)
        if (level, tile) not in self._known:
            self._known[level, tile] = self._read(level, tile)
        hashes = self._known[level, tile][offset : offset + (1 << within)]
        if len(hashes) != 1 << within:
            raise NotProven(f"tile {tile} of level {level} is too short")
        while len(hashes) > 1:
            hashes = [node_hash(hashes[at], hashes[at + 1]) for at in range(0, len(hashes), 2)]
        return hashes[0]
