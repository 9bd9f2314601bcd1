"""The Merkle tree within the append's transaction: what its head row keeps, and how it grows and catches up."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, insert, select, update

from broker.adapters.sql.schema import head, ledger, tree
from broker.errors import Invalid, StoreCorrupt
from broker.ledger.merkle import Frontier, frontier_at
from broker.ledger.tiles import TILE_HEIGHT, TILE_WIDTH, TileNodes

_SIZE_BYTES = 8
# Leaf hashes that are read at once.
SLICE = 10_000

NodeRow = tuple[int, int, bytes]
"""Level of the tile, index within the level, hash."""


@dataclass(slots=True)
class Growth:
    """A tree on its way through one transaction: its frontier, and the rows to insert at the end."""

    frontier: Frontier
    nodes: list[NodeRow] = field(default_factory=list)

    def add(self, leaves: Iterable[bytes]) -> None:
        """Append leaf hashes."""
        self.frontier = self.frontier.extended(leaves, self._keep)

    def _keep(self, height: int, index: int, found: bytes) -> None:
        if height % TILE_HEIGHT == 0:
            self.nodes.append((height // TILE_HEIGHT, index, found))


def pack(frontier: Frontier) -> bytes:
    """Return a frontier as the head row keeps it: its size in eight bytes, then its hashes."""
    return frontier.size.to_bytes(_SIZE_BYTES, "big") + frontier.to_bytes()


def unpack(kept: bytes | None) -> Frontier:
    """Return the frontier that is kept; the empty one in a store from before the tree. Raises StoreCorrupt."""
    if kept is None:
        return Frontier()
    data = bytes(kept)
    try:
        return Frontier.from_bytes(int.from_bytes(data[:_SIZE_BYTES], "big"), data[_SIZE_BYTES:])
    except Invalid as bad:
        raise StoreCorrupt("the frontier of the ledger's tree cannot be read") from bad


def caught_up(kept: bytes | None, size: int, leaf_hashes: Callable[[int, int], Sequence[bytes]]) -> Growth:
    """Return the tree of the first `size` entries, given what the head row keeps and a way to read leaf hashes.

    There is something to catch up in a store from before the tree, and after a broker from before it has appended.

    Raises:
        StoreCorrupt: The tree has more entries than the ledger, or a leaf hash is missing.
    """
    growth = Growth(unpack(kept))
    if growth.frontier.size > size:
        raise StoreCorrupt(f"the ledger has {size} entries, its tree {growth.frontier.size}")
    while growth.frontier.size < size:
        start = growth.frontier.size
        stop = min(size, start + SLICE)
        hashes = leaf_hashes(start, stop)
        if len(hashes) != stop - start:
            raise StoreCorrupt(f"a leaf hash is missing between the entries {start} and {stop}")
        growth.add(hashes)
    return growth


def grow(connection: Connection) -> None:
    """Bring the tree up to the ledger's head, within a transaction that writes. Raises StoreCorrupt."""
    row = connection.execute(select(head.c.size, head.c.frontier).where(head.c.id == 0).with_for_update()).one()
    growth = caught_up(row.frontier, row.size, lambda start, stop: leaf_hashes_of(connection, start, stop))
    if growth.nodes:
        connection.execute(
            insert(tree), [{"level": level, "idx": index, "hash": found} for level, index, found in growth.nodes]
        )
    connection.execute(update(head).where(head.c.id == 0).values(frontier=pack(growth.frontier)))


def tile_of(connection: Connection, level: int, index: int) -> list[bytes]:
    """Return the hashes that there are of a tile. Raises StoreCorrupt if one is missing before another."""
    start = index * TILE_WIDTH
    if level == 0:
        return leaf_hashes_of(connection, start, start + TILE_WIDTH)
    query = (
        select(tree.c.idx, tree.c.hash)
        .where(tree.c.level == level, tree.c.idx >= start, tree.c.idx < start + TILE_WIDTH)
        .order_by(tree.c.idx)
    )
    return _without_gap(connection.execute(query), start)


def leaf_hashes_of(connection: Connection, start: int, stop: int) -> list[bytes]:
    """Return the leaf hashes of the entries that there are. Raises StoreCorrupt if one is missing before another."""
    query = select(ledger.c.idx, ledger.c.leaf_hash).where(ledger.c.idx >= start, ledger.c.idx < stop)
    return _without_gap(connection.execute(query.order_by(ledger.c.idx)), start)


def must_have_grown_from(connection: Connection, last_entries: int) -> None:
    """Compare the tree's end with the leaf hashes of the last entries. Raises StoreCorrupt where they part."""
    row = connection.execute(select(head.c.size, head.c.frontier).where(head.c.id == 0)).one()
    first = max(0, row.size - last_entries) // TILE_WIDTH
    for index in range(first, row.size // TILE_WIDTH):
        leaves = leaf_hashes_of(connection, index * TILE_WIDTH, (index + 1) * TILE_WIDTH)
        kept = connection.execute(select(tree.c.hash).where(tree.c.level == 1, tree.c.idx == index)).scalar()
        if kept is None or bytes(kept) != Frontier().extended(leaves).root():
            raise StoreCorrupt(f"the tree is not that of the entries from {index * TILE_WIDTH} on")
    nodes = TileNodes(lambda level, index: tile_of(connection, level, index))
    if frontier_at(row.size, nodes) != unpack(row.frontier):
        raise StoreCorrupt("the tree's frontier is not that of the ledger's entries")


def _without_gap(rows: Iterable[Any], start: int) -> list[bytes]:
    hashes: list[bytes] = []
    for index, found in rows:
        if index != start + len(hashes):
            raise StoreCorrupt(f"a hash of the tree is missing before {index}")
        hashes.append(bytes(found))
    return hashes
