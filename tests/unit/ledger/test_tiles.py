"""P10: tiles and bundles have one path and one spelling, and the tree can be read and proven from them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.errors import Invalid, NotProven
from broker.ledger.entry import leaf_hash
from broker.ledger.merkle import Frontier, check_consistency, check_inclusion, prove_consistency, prove_inclusion
from broker.ledger.tiles import (
    Tile,
    TileNodes,
    decode_bundle,
    decode_hashes,
    encode_bundle,
    encode_hashes,
    parse_tile_path,
    tiles_of,
)

LEAVES = [leaf_hash(b"%d" % n) for n in range(70_000)]


def stored(leaves):
    """Tiles as an append fills them."""
    levels = {0: list(leaves)}

    def keep(height, index, found):
        if height % 8 == 0:
            level = levels.setdefault(height // 8, [])
            assert len(level) == index
            level.append(found)

    frontier = Frontier().extended(leaves, keep)
    return levels, frontier


LEVELS, FRONTIER = stored(LEAVES)


def read(level, index):
    return LEVELS.get(level, [])[index * 256 : index * 256 + 256]


@pytest.mark.parametrize(
    ("tile", "path"),
    [
        (Tile(0, 0), "tile/0/000"),
        (Tile(0, 0, 1), "tile/0/000.p/1"),
        (Tile(63, 999, 255), "tile/63/999.p/255"),
        (Tile(0, 1000), "tile/0/x001/000"),
        (Tile(2, 1_234_067), "tile/2/x001/x234/067"),
        (Tile(None, 1_234_067, 12), "tile/entries/x001/x234/067.p/12"),
        (Tile(0, 2**55 - 1), "tile/0/x036/x028/x797/x018/x963/967"),
    ],
)
def test_a_tile_has_the_path_of_the_specification(tile, path):
    assert tile.path == path
    assert parse_tile_path(path) == tile


@settings(deadline=None, derandomize=True)
@given(st.none() | st.integers(0, 63), st.integers(0, 2**55), st.integers(1, 256))
def test_every_path_is_read_back(level, index, width):
    tile = Tile(level, index, width)
    assert parse_tile_path(tile.path) == tile


@pytest.mark.parametrize(
    "path",
    [
        "",
        "tile",
        "tile/0",
        "/tile/0/000",
        "tile/0/000/",
        "tile/00/000",
        "tile/64/000",
        "tile/-1/000",
        "tile/0/0",
        "tile/0/0000",
        "tile/0/x000/001",
        "tile/0/001/000",
        "tile/0/x001",
        "tile/0/x001/x000",
        "tile/0/000.p/0",
        "tile/0/000.p/01",
        "tile/0/000.p/256",
        "tile/0/000.p/999",
        "tile/0/000.p/",
        "tile/0/000.p",
        "tile/0/000\n",
        "tile/0/\u0660\u0660\u0660",
        "tile/0/../0/000",
        "tile/Entries/000",
        "tile/entries/000.p/-1",
        "tile/0/" + "x001/" * 7 + "000",
    ],
)
def test_no_other_path_is_a_tile(path):
    with pytest.raises(Invalid):
        parse_tile_path(path)


def test_a_tree_of_70_000_has_the_tiles_that_the_specification_counts():
    tiles = tiles_of(70_000)
    assert {(tile.level, tile.index, tile.width) for tile in tiles if tile.level == 0} == {
        *((0, index, 256) for index in range(273)),
        (0, 273, 112),
    }
    assert [tile for tile in tiles if tile.level not in (0, None)] == [Tile(1, 0), Tile(1, 1, 17), Tile(2, 0, 1)]
    assert len([tile for tile in tiles if tile.level is None]) == 274
    assert all(tile.is_in(70_000) for tile in tiles)
    assert not any(tile.is_in(70_000) for tile in (Tile(0, 273), Tile(0, 273, 113), Tile(1, 1, 18), Tile(2, 0, 2)))


def test_a_tree_of_256_has_a_full_tile_and_a_first_one_above():
    assert [tile.path for tile in tiles_of(256)] == ["tile/entries/000", "tile/0/000", "tile/1/000.p/1"]
    assert tiles_of(0) == ()
    assert [tile.path for tile in tiles_of(1)] == ["tile/entries/000.p/1", "tile/0/000.p/1"]


@pytest.mark.parametrize("size", [1, 255, 256, 257, 511, 65_535, 65_536, 65_537, 70_000])
def test_all_proofs_can_be_made_from_tiles(size):
    root = Frontier().extended(LEAVES[:size]).root()
    for index in {0, size // 2, size - 1}:
        path = prove_inclusion(index, size, TileNodes(read))
        check_inclusion(index, size, LEAVES[index], path, root)
    for old in {1, size // 3 + 1, size}:
        path = prove_consistency(old, size, TileNodes(read))
        check_consistency(old, Frontier().extended(LEAVES[:old]).root(), size, root, path)


def test_a_proof_reads_few_tiles_however_large_the_tree():
    seen = []

    def counting(level, index):
        seen.append((level, index))
        return read(level, index)

    prove_inclusion(12_345, 70_000, TileNodes(counting))
    assert len(seen) == len(set(seen)) <= 6


def test_a_missing_or_short_tile_is_found():
    for hashes in ([], LEAVES[:255]):
        with pytest.raises(NotProven, match="too short"):
            prove_inclusion(0, 300, TileNodes(lambda _level, _index, hashes=hashes: hashes))


@settings(deadline=None, derandomize=True)
@given(st.lists(st.binary(max_size=400), min_size=1, max_size=256))
def test_a_bundle_comes_back_as_it_went(entries):
    tile = Tile(None, 0, len(entries))
    data = encode_bundle(entries)
    assert list(decode_bundle(data, tile)) == entries
    for wrong in (data[:-1], data + b"\x00", data + b"\x00\x01"):
        with pytest.raises(NotProven):
            decode_bundle(wrong, tile)


def test_a_bundle_of_another_width_is_refused():
    with pytest.raises(NotProven, match="2 entries, not 3"):
        decode_bundle(encode_bundle([b"a", b"b"]), Tile(None, 0, 3))
    assert decode_bundle(encode_bundle([b"x" * 65_535]), Tile(None, 0, 1)) == (b"x" * 65_535,)
    with pytest.raises(Invalid):
        encode_bundle([b"x" * 65_536])


def test_a_tile_of_another_width_is_refused():
    data = encode_hashes(LEAVES[:3])
    assert decode_hashes(data, Tile(0, 0, 3)) == tuple(LEAVES[:3])
    for wrong in (data[:-1], data + b"x", b""):
        with pytest.raises(NotProven):
            decode_hashes(wrong, Tile(0, 0, 3))
