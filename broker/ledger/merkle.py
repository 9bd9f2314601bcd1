"""The Merkle tree of RFC 6962: grown leaf by leaf, proven from stored hashes, and checked by anyone.

A *perfect* subtree has 2**height leaves and is named by (height, index): the leaves from `index << height` on.
What proofs need are such hashes and nothing else, so whoever can read them can prove.

**Old size 0.** RFC 6962 leaves consistency with the empty tree open, and implementations part there. Here, as for
C2SP witnesses: the empty tree, whose root is the hash of nothing, is a prefix of every tree, and the proof is empty.
Any other root or any proof of size 0 is refused.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from broker.errors import Invalid, NotProven

HASH_BYTES = 32
EMPTY_ROOT = hashlib.sha256(b"").digest()
# Of a log of C2SP: sizes are below 2**63, and so no proof is longer.
MAX_SIZE = (1 << 63) - 1
MAX_PROOF_HASHES = 64

ReadNode = Callable[[int, int], bytes]
"""Returns the hash of the perfect subtree of a height at an index; all its leaves are there."""
Emit = Callable[[int, int, bytes], None]
"""Told height, index and hash of each perfect subtree that was completed."""


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return the hash of an inner node (RFC 6962 §2.1)."""
    return hashlib.sha256(b"\x01" + left + right).digest()


@dataclass(frozen=True, slots=True)
class Frontier:
    """All that is needed to append: the roots of the perfect subtrees that `size` leaves make, the largest first.

    There is one for each bit of `size`.
    """

    size: int = 0
    hashes: tuple[bytes, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.size <= MAX_SIZE or len(self.hashes) != self.size.bit_count():
            raise Invalid("frontier", f"{len(self.hashes)} hashes are not those of {self.size} leaves")
        if any(len(one) != HASH_BYTES for one in self.hashes):
            raise Invalid("frontier", "a hash has not 32 bytes")

    @classmethod
    def from_bytes(cls, size: int, data: bytes) -> "Frontier":
        """Read what `to_bytes` wrote. Raises Invalid for any other bytes."""
        return cls(size, tuple(data[at : at + HASH_BYTES] for at in range(0, len(data), HASH_BYTES)))

    def to_bytes(self) -> bytes:
        """Return the hashes one after the other."""
        return b"".join(self.hashes)

    def extended(self, leaves: Iterable[bytes], emit: Emit | None = None) -> "Frontier":
        """Return the frontier after these leaf hashes; costs one hash for each leaf, on average."""
        size, stack = self.size, list(self.hashes)
        sha256 = hashlib.sha256
        for leaf in leaves:
            one, height, index = leaf, 0, size
            # Each set bit below is a perfect subtree of the same height that waits for this one.
            while index & 1:
                one = sha256(b"\x01" + stack.pop() + one).digest()
                height += 1
                index >>= 1
                if emit is not None:
                    emit(height, index, one)
            stack.append(one)
            size += 1
        return Frontier(size, tuple(stack))

    def root(self) -> bytes:
        """Return the tree's root (RFC 6962 §2.1)."""
        if not self.hashes:
            return EMPTY_ROOT
        root = self.hashes[-1]
        for left in reversed(self.hashes[:-1]):
            root = node_hash(left, root)
        return root


def frontier_at(size: int, read: ReadNode) -> Frontier:
    """Return the frontier of the first `size` leaves of a larger tree."""
    hashes, start = [], 0
    for height in reversed(range(size.bit_length())):
        if size >> height & 1:
            hashes.append(read(height, start >> height))
            start += 1 << height
    return Frontier(size, tuple(hashes))


def root_at(size: int, read: ReadNode) -> bytes:
    """Return the root of the first `size` leaves."""
    return frontier_at(size, read).root()


def prove_inclusion(index: int, size: int, read: ReadNode) -> tuple[bytes, ...]:
    """Return the audit path of the leaf at `index` in the tree of `size` leaves (RFC 6962 §2.1.1).

    Raises:
        Invalid: The tree has no such leaf.
    """
    if not 0 <= index < size:
        raise Invalid("index", f"a tree of {size} entries has no entry {index}")
    path: list[bytes] = []
    start, stop = 0, size
    while stop - start > 1:
        middle = start + _split(stop - start)
        if index < middle:
            path.append(_range_hash(middle, stop, read))
            stop = middle
        else:
            path.append(_range_hash(start, middle, read))
            start = middle
    return tuple(reversed(path))


def prove_consistency(old_size: int, new_size: int, read: ReadNode) -> tuple[bytes, ...]:
    """Return the proof that the first `old_size` of `new_size` leaves are unchanged (RFC 6962 §2.1.2).

    Empty for an old size of 0 and for equal sizes.

    Raises:
        Invalid: The old size is larger.
    """
    if not 0 <= old_size <= new_size:
        raise Invalid("old_size", f"{old_size} is not between 0 and {new_size}")
    if old_size in (0, new_size):
        return ()
    path: list[bytes] = []
    start, stop = 0, new_size
    # SUBPROOF: walk down to the node that the old tree ends with.
    while old_size != stop:
        middle = start + _split(stop - start)
        if old_size <= middle:
            path.append(_range_hash(middle, stop, read))
            stop = middle
        else:
            path.append(_range_hash(start, middle, read))
            start = middle
    # Known to whoever has the old root, when that node is the whole old tree.
    if start > 0:
        path.append(_range_hash(start, stop, read))
    return tuple(reversed(path))


def root_of_inclusion(index: int, size: int, leaf: bytes, path: Sequence[bytes]) -> bytes:
    """Return the root that a leaf's audit path leads to (RFC 9162 §2.1.3.2).

    Raises:
        NotProven: No path of such a tree looks like this.
    """
    _must_be_hashes((leaf, *path))
    if not 0 <= index < size <= MAX_SIZE:
        raise NotProven(f"a tree of {size} entries has no entry {index}")
    fn, sn, root = index, size - 1, leaf
    for sibling in path:
        if sn == 0:
            raise NotProven("the inclusion proof is too long")
        if fn & 1 or fn == sn:
            root = node_hash(sibling, root)
            while not fn & 1 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            root = node_hash(root, sibling)
        fn, sn = fn >> 1, sn >> 1
    if sn:
        raise NotProven("the inclusion proof is too short")
    return root


def check_inclusion(index: int, size: int, leaf: bytes, path: Sequence[bytes], root: bytes) -> None:
    """Raise NotProven unless the leaf is at `index` of the tree with this size and root."""
    if root_of_inclusion(index, size, leaf, path) != root:
        raise NotProven(f"entry {index} is not in the tree of {size} entries with this root")


def check_consistency(old_size: int, old_root: bytes, new_size: int, new_root: bytes, path: Sequence[bytes]) -> None:
    """Raise NotProven unless the new tree goes on from the old one (RFC 9162 §2.1.4.2).

    Of old size 0, see above.
    """
    _must_be_hashes((old_root, new_root, *path))
    if not 0 <= old_size <= new_size <= MAX_SIZE:
        raise NotProven(f"a tree of {new_size} entries does not go on from one of {old_size}")
    if old_size in (0, new_size):
        expected = EMPTY_ROOT if old_size == 0 else new_root
        if path or old_root != expected or (new_size == 0 and new_root != EMPTY_ROOT):
            raise NotProven(f"two trees of {old_size} and {new_size} entries part")
        return
    # A power of two is a node of the new tree, and is its own first hash.
    hashes = path if old_size & (old_size - 1) else (old_root, *path)
    if not hashes:
        raise NotProven("the consistency proof is empty")
    fn, sn = old_size - 1, new_size - 1
    while fn & 1:
        fn, sn = fn >> 1, sn >> 1
    fr = sr = hashes[0]
    for one in hashes[1:]:
        if sn == 0:
            raise NotProven("the consistency proof is too long")
        if fn & 1 or fn == sn:
            fr, sr = node_hash(one, fr), node_hash(one, sr)
            while not fn & 1 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            sr = node_hash(sr, one)
        fn, sn = fn >> 1, sn >> 1
    if sn:
        raise NotProven("the consistency proof is too short")
    if fr != old_root or sr != new_root:
        raise NotProven(f"the tree of {new_size} entries does not go on from the one of {old_size}")


def _split(size: int) -> int:
    """Return the largest power of two below `size`, which is at least 2."""
    return 1 << (size - 1).bit_length() - 1


def _range_hash(start: int, stop: int, read: ReadNode) -> bytes:
    """Return the hash over leaves `start` to `stop`, a node of some tree: made of ever smaller perfect subtrees."""
    hashes: list[bytes] = []
    while start < stop:
        height = (stop - start).bit_length() - 1
        hashes.append(read(height, start >> height))
        start += 1 << height
    root = hashes.pop()
    while hashes:
        root = node_hash(hashes.pop(), root)
    return root


def _must_be_hashes(hashes: Sequence[bytes]) -> None:
    if len(hashes) > MAX_PROOF_HASHES + 2:
        raise NotProven("a proof has more hashes than any tree has levels")
    if any(len(one) != HASH_BYTES for one in hashes):
        raise NotProven("a hash has not 32 bytes")
