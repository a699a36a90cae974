"""The Merkle tree of RFC 6962 (section 2.1, unchanged in RFC 9162) over SHA-256.

>>> tree = MerkleTree()
>>> for leaf in (b"a", b"b", b"c"):
...     tree.append(leaf_hash(leaf))
>>> proof = tree.inclusion_proof(1, 3)
>>> verify_inclusion(leaf_hash(b"b"), 1, 3, proof, tree.root())
True
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

__all__ = [
    "EMPTY_ROOT",
    "HASH_BYTES",
    "MAX_PROOF",
    "MerkleTree",
    "leaf_hash",
    "node_hash",
    "verify_consistency",
    "verify_inclusion",
]

HASH_BYTES = 32
EMPTY_ROOT = hashlib.sha256(b"").digest()
"""Root of the tree without leaves."""
MAX_PROOF = 63
"""Hashes in a proof of a tree of fewer than 2^63 leaves."""


def leaf_hash(data: bytes) -> bytes:
    """SHA-256(0x00 || data)."""
    return hashlib.sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """SHA-256(0x01 || left || right)."""
    return hashlib.sha256(b"\x01" + left + right).digest()


class MerkleTree:
    """Keeps every complete subtree's hash, so that a root or a proof of any prefix takes O(log n).

    An append computes one node hash on average. 64 bytes are kept for each leaf.
    """

    __slots__ = ("_levels",)

    def __init__(self) -> None:
        # Level k holds the hashes of the complete subtrees of 2^k leaves, one after another.
        self._levels: list[bytearray] = [bytearray()]

    def __len__(self) -> int:
        """Number of leaves."""
        return len(self._levels[0]) // HASH_BYTES

    def append(self, leaf: bytes) -> None:
        """Adds a leaf.

        Args:
            leaf: its hash, from `leaf_hash`.
        """
        if len(leaf) != HASH_BYTES:
            raise ValueError(f"a leaf's hash has {HASH_BYTES} bytes, not {len(leaf)}")
        self._levels[0] += leaf
        level = 0
        while len(self._levels[level]) % (2 * HASH_BYTES) == 0:
            if level + 1 == len(self._levels):
                self._levels.append(bytearray())
            pair = bytes(self._levels[level][-2 * HASH_BYTES :])
            self._levels[level + 1] += node_hash(pair[:HASH_BYTES], pair[HASH_BYTES:])
            level += 1

    def copy(self) -> MerkleTree:
        """An independent tree with the same leaves."""
        other = MerkleTree()
        other._levels = [bytearray(level) for level in self._levels]
        return other

    def leaf(self, index: int) -> bytes:
        """A leaf's hash.

        Raises:
            ValueError: there is no such leaf.
        """
        self._require(0 <= index < len(self), f"leaf {index}")
        return bytes(self._levels[0][index * HASH_BYTES : (index + 1) * HASH_BYTES])

    def root(self, size: int | None = None) -> bytes:
        """MTH of the first `size` leaves; None means all of them.

        Raises:
            ValueError: there are fewer.
        """
        size = len(self) if size is None else size
        self._require(0 <= size <= len(self), f"size {size}")
        return self._hash(0, size) if size else EMPTY_ROOT

    def inclusion_proof(self, index: int, size: int) -> list[bytes]:
        """PATH(index, D[0:size]): siblings from the leaf up.

        Raises:
            ValueError: there are fewer leaves, or the leaf is not among them.
        """
        self._require(0 <= index < size <= len(self), f"leaf {index} of {size}")
        path: list[bytes] = []
        start, end = 0, size
        while end - start > 1:  # from the root down
            middle = start + _split(end - start)
            if index < middle:
                path.append(self._hash(middle, end))
                end = middle
            else:
                path.append(self._hash(start, middle))
                start = middle
        return path[::-1]

    def consistency_proof(self, old: int, new: int) -> list[bytes]:
        """PROOF(old, D[0:new]); empty if `old` is 0 or equals `new`.

        Raises:
            ValueError: there are fewer leaves than `new`, or `old` exceeds it.
        """
        self._require(0 <= old <= new <= len(self), f"sizes {old} and {new}")
        if old in (0, new):
            return []
        path: list[bytes] = []
        start, end = 0, new
        whole = True  # whether D[start:old] is all of the old tree: its root is known
        while end != old:
            middle = start + _split(end - start)
            if old <= middle:
                path.append(self._hash(middle, end))
                end = middle
            else:
                path.append(self._hash(start, middle))
                start, whole = middle, False
        if not whole:
            path.append(self._hash(start, end))
        return path[::-1]

    def _hash(self, start: int, end: int) -> bytes:
        """MTH(D[start:end]) of a subtree whose start is a multiple of every power of two in it."""
        result: bytes | None = None
        # Its complete subtrees are the binary digits of its size; they are joined from the right.
        for level in range(len(self._levels)):
            if (end - start) >> level & 1:
                end_of = end >> level
                place = (end_of - 1) * HASH_BYTES
                left = bytes(self._levels[level][place : place + HASH_BYTES])
                result = left if result is None else node_hash(left, result)
                end -= 1 << level
        if result is None:
            raise ValueError("a tree without leaves has no subtree")
        return result

    def _require(self, holds: bool, what: str) -> None:
        if not holds:
            raise ValueError(f"{what} is not in a tree of {len(self)} leaves")


def _split(count: int) -> int:
    """The largest power of two smaller than `count`, which is at least 2."""
    return 1 << (count - 1).bit_length() - 1


def verify_inclusion(
    leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes
) -> bool:
    """Whether a leaf is at a place of the tree with this root (RFC 9162, section 2.1.3.2).

    Args:
        leaf: the leaf's hash.
        index: its place, from 0.
        size: number of leaves of the tree.
        proof: siblings from the leaf up, untrusted.
        root: the tree's root hash.
    """
    if not 0 <= index < size or len(proof) > MAX_PROOF or not _are_hashes(leaf, root, *proof):
        return False
    place, last, found = index, size - 1, leaf
    for sibling in proof:
        if last == 0:
            return False
        if place & 1 or place == last:
            found = node_hash(sibling, found)
            while not place & 1 and place:
                place, last = place >> 1, last >> 1
        else:
            found = node_hash(found, sibling)
        place, last = place >> 1, last >> 1
    return last == 0 and found == root


def verify_consistency(
    old: int, new: int, proof: Sequence[bytes], old_root: bytes, new_root: bytes
) -> bool:
    """Whether the tree of `new_root` begins with that of `old_root` (RFC 9162, section 2.1.4.2).

    Between trees of the same size the proof is empty. Every tree begins with the empty tree, so
    that needs no proof: none verifies.

    Args:
        old: number of leaves of the old tree.
        new: number of leaves of the new tree.
        proof: the proof, untrusted.
        old_root: root hash of the old tree.
        new_root: root hash of the new tree.
    """
    if not 0 <= old <= new or len(proof) > MAX_PROOF:
        return False
    if not _are_hashes(old_root, new_root, *proof):
        return False
    if old == new:
        same = old_root == new_root and (old > 0 or old_root == EMPTY_ROOT)
        return not proof and same
    if old == 0 or not proof:
        return False
    path = list(proof)
    if old & (old - 1) == 0:
        path.insert(0, old_root)  # a complete tree's root is the proof's first node
    place, last = old - 1, new - 1
    while place & 1:
        place, last = place >> 1, last >> 1
    first = second = path[0]
    for sibling in path[1:]:
        if last == 0:
            return False
        if place & 1 or place == last:
            first, second = node_hash(sibling, first), node_hash(sibling, second)
            while not place & 1 and place:
                place, last = place >> 1, last >> 1
        else:
            second = node_hash(second, sibling)
        place, last = place >> 1, last >> 1
    return last == 0 and first == old_root and second == new_root


def _are_hashes(*values: bytes) -> bool:
    return all(len(value) == HASH_BYTES for value in values)
