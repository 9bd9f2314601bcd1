"""P10: the tree is RFC 6962's, grown and proven from stored hashes; no proof holds for anything else."""

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.errors import Invalid, NotProven
from broker.ledger.entry import leaf_hash
from broker.ledger.merkle import (
    EMPTY_ROOT,
    MAX_SIZE,
    Frontier,
    check_consistency,
    check_inclusion,
    frontier_at,
    prove_consistency,
    prove_inclusion,
    root_at,
    root_of_inclusion,
)

KNOWN = json.loads((Path(__file__).parents[2] / "vectors" / "merkle_trees.json").read_text("ascii"))
LEAVES = [bytes.fromhex(one) for one in KNOWN["leaves"]]
ROOTS = [bytes.fromhex(one) for one in KNOWN["roots"]]
SOME = hashlib.sha256(b"something else").digest()
settings.register_profile("tree", deadline=None, derandomize=True)


def naive_root(leaves):
    """RFC 6962 §2.1, word for word."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return hashlib.sha256(b"\x00" + leaves[0]).digest()
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    return hashlib.sha256(b"\x01" + naive_root(leaves[:k]) + naive_root(leaves[k:])).digest()


def naive_path(m, leaves):
    """RFC 6962 §2.1.1."""
    if len(leaves) == 1:
        return []
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    if m < k:
        return [*naive_path(m, leaves[:k]), naive_root(leaves[k:])]
    return [*naive_path(m - k, leaves[k:]), naive_root(leaves[:k])]


def naive_subproof(m, leaves, is_whole):
    """RFC 6962 §2.1.2."""
    if m == len(leaves):
        return [] if is_whole else [naive_root(leaves)]
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    if m <= k:
        return [*naive_subproof(m, leaves[:k], is_whole), naive_root(leaves[k:])]
    return [*naive_subproof(m - k, leaves[k:], False), naive_root(leaves[:k])]


class Stored:
    """The hashes that an append leaves behind, and nothing else."""

    def __init__(self, leaves):
        self.leaves = leaves
        self.nodes = {(0, index): leaf_hash(leaf) for index, leaf in enumerate(leaves)}
        self.frontier = Frontier().extended([leaf_hash(leaf) for leaf in leaves], self.keep)

    def keep(self, height, index, found):
        assert (height, index) not in self.nodes
        self.nodes[height, index] = found

    def read(self, height, index):
        return self.nodes[height, index]


FORTY = [b"leaf %d" % n for n in range(40)]
TREE = Stored(FORTY)
sizes = st.integers(1, len(FORTY))


def refused(check, *args):
    with pytest.raises(NotProven):
        check(*args)


@pytest.mark.parametrize("size", range(len(LEAVES) + 1))
def test_the_known_trees_have_their_known_roots(size):
    root = EMPTY_ROOT if size == 0 else ROOTS[size - 1]
    assert Stored(LEAVES[:size]).frontier.root() == root
    assert root_at(size, Stored(LEAVES).read) == root


@pytest.mark.parametrize("vector", KNOWN["inclusion"], ids=lambda one: f"{one['index']} of {one['size']}")
def test_the_known_inclusion_proofs_are_made_and_hold(vector):
    index, size = vector["index"], vector["size"]
    path = tuple(bytes.fromhex(one) for one in vector["proof"])
    assert prove_inclusion(index, size, Stored(LEAVES).read) == path
    check_inclusion(index, size, leaf_hash(LEAVES[index]), path, ROOTS[size - 1])


@pytest.mark.parametrize("vector", KNOWN["consistency"], ids=lambda one: f"{one['old_size']} to {one['new_size']}")
def test_the_known_consistency_proofs_are_made_and_hold(vector):
    old, new = vector["old_size"], vector["new_size"]
    path = tuple(bytes.fromhex(one) for one in vector["proof"])
    assert prove_consistency(old, new, Stored(LEAVES).read) == path
    check_consistency(old, ROOTS[old - 1], new, ROOTS[new - 1], path)


@settings(settings.get_profile("tree"), max_examples=100)
@given(st.lists(st.binary(max_size=5), max_size=70), st.data())
def test_a_tree_grown_in_any_steps_is_the_naive_tree(leaves, data):
    frontier, at = Frontier(), 0
    while at < len(leaves):
        step = data.draw(st.integers(1, len(leaves) - at))
        frontier = frontier.extended([leaf_hash(leaf) for leaf in leaves[at : at + step]])
        at += step
        assert Frontier.from_bytes(at, frontier.to_bytes()) == frontier
    assert frontier.size == len(leaves)
    assert frontier.root() == naive_root(leaves)
    assert frontier == frontier_at(len(leaves), Stored(leaves).read)


def test_every_proof_of_a_tree_is_the_naive_one_and_holds():
    for size in range(1, len(FORTY) + 1):
        root = naive_root(FORTY[:size])
        assert root_at(size, TREE.read) == root
        for index in range(size):
            path = prove_inclusion(index, size, TREE.read)
            assert list(path) == naive_path(index, FORTY[:size])
            check_inclusion(index, size, leaf_hash(FORTY[index]), path, root)
        for old in range(1, size + 1):
            path = prove_consistency(old, size, TREE.read)
            assert list(path) == naive_subproof(old, FORTY[:size], True)
            check_consistency(old, naive_root(FORTY[:old]), size, root, path)


@settings(settings.get_profile("tree"), max_examples=300)
@given(sizes, st.data())
def test_p10_an_inclusion_proof_holds_for_nothing_else(size, data):
    index = data.draw(st.integers(0, size - 1))
    path, root, leaf = list(prove_inclusion(index, size, TREE.read)), naive_root(FORTY[:size]), leaf_hash(FORTY[index])
    other = data.draw(st.integers(0, size + 2).filter(lambda n: n != index))
    refused(check_inclusion, other, size, leaf, path, root)
    refused(check_inclusion, index, size, leaf_hash(b"never logged"), path, root)
    refused(check_inclusion, index, size, leaf, path, SOME)
    refused(check_inclusion, index, size, leaf, path, EMPTY_ROOT)
    for wrong in altered(path, root):
        refused(check_inclusion, index, size, leaf, wrong, root)


@settings(settings.get_profile("tree"), max_examples=300)
@given(sizes, st.data())
def test_p10_a_consistency_proof_holds_for_nothing_else(new, data):
    old = data.draw(st.integers(1, new))
    path = list(prove_consistency(old, new, TREE.read))
    old_root, new_root = naive_root(FORTY[:old]), naive_root(FORTY[:new])
    refused(check_consistency, old, SOME, new, new_root, path)
    refused(check_consistency, old, old_root, new, SOME, path)
    refused(check_consistency, new + 1, old_root, new, new_root, path)
    if old != new:
        refused(check_consistency, old, new_root, new, old_root, path)
        refused(check_consistency, old, old_root, new, new_root, [])
        other = data.draw(st.integers(0, new).filter(lambda n: n != old))
        refused(check_consistency, other, old_root, new, new_root, path)
    for wrong in altered(path, old_root, new_root):
        refused(check_consistency, old, old_root, new, new_root, wrong)


def altered(path, *roots):
    """What transparency-dev's corrupted vectors do to a proof."""
    for extra in (b"", SOME, *roots):
        yield [*path, extra]
        yield [extra, *path]
    if path:
        yield path[:-1]
        yield [path[0], *path]
        yield path[1:]
        yield [path[0], SOME, *path[1:]]
    for at in range(len(path)):
        yield [*path[:at], bytes([path[at][0] ^ 8]) + path[at][1:], *path[at + 1 :]]
        yield [*path[:at], path[at][:-1], *path[at + 1 :]]
    if len(path) > 1 and path[0] != path[1]:
        yield [path[1], path[0], *path[2:]]


def test_the_empty_tree_goes_on_as_any_tree_and_needs_no_proof():
    """As the C2SP witness protocol has it; the vectors of transparency-dev differ in their versions."""
    root = naive_root(FORTY)
    assert prove_consistency(0, 40, TREE.read) == ()
    check_consistency(0, EMPTY_ROOT, 40, root, ())
    check_consistency(0, EMPTY_ROOT, 0, EMPTY_ROOT, ())
    refused(check_consistency, 0, SOME, 40, root, ())
    refused(check_consistency, 0, EMPTY_ROOT, 40, root, (SOME,))
    refused(check_consistency, 0, EMPTY_ROOT, 0, SOME, ())
    refused(check_consistency, 0, SOME, 0, SOME, ())
    refused(check_inclusion, 0, 0, EMPTY_ROOT, (), EMPTY_ROOT)


def test_a_tree_is_consistent_with_itself_only_if_it_is_the_same():
    check_consistency(5, SOME, 5, SOME, ())
    refused(check_consistency, 5, SOME, 5, EMPTY_ROOT, ())
    refused(check_consistency, 5, SOME, 5, SOME, (SOME,))


def test_no_proof_goes_back_in_time():
    refused(check_consistency, 2, SOME, 1, SOME, ())
    refused(check_consistency, -1, SOME, 1, SOME, ())
    with pytest.raises(Invalid):
        prove_consistency(3, 2, TREE.read)
    for index, size in ((0, 0), (1, 1), (-1, 3)):
        with pytest.raises(Invalid):
            prove_inclusion(index, size, TREE.read)


def test_a_proof_without_end_costs_nothing():
    long = [SOME] * 1_000_000
    refused(root_of_inclusion, 0, MAX_SIZE, SOME, long)
    refused(check_consistency, 1, SOME, MAX_SIZE, SOME, long)


@pytest.mark.parametrize("size", [2**62 + 1, MAX_SIZE])
def test_the_largest_trees_can_be_proven(size):
    """With one and the same hash everywhere, a tree needs no leaves."""
    levels = [SOME]
    for _ in range(64):
        levels.append(hashlib.sha256(b"\x01" + levels[-1] * 2).digest())

    def read(height, index):
        del index
        return levels[height]

    root = root_at(size, read)
    check_inclusion(size - 1, size, SOME, prove_inclusion(size - 1, size, read), root)
    check_inclusion(0, size, SOME, prove_inclusion(0, size, read), root)
    check_consistency(3, root_at(3, read), size, root, prove_consistency(3, size, read))
    check_consistency(size - 1, root_at(size - 1, read), size, root, prove_consistency(size - 1, size, read))


@pytest.mark.parametrize(
    ("size", "hashes"), [(-1, ()), (1, ()), (3, (SOME,)), (1, (SOME[:-1],)), (MAX_SIZE + 1, (SOME,))]
)
def test_a_frontier_that_fits_no_tree_is_refused(size, hashes):
    with pytest.raises(Invalid):
        Frontier(size, hashes)
