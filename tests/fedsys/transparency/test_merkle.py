"""Merkle trees against published vectors and the definition of RFC 6962, section 2.1."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsys.transparency.merkle import (
    EMPTY_ROOT,
    MerkleTree,
    leaf_hash,
    verify_consistency,
    verify_inclusion,
)

VECTORS = json.loads(
    (Path(__file__).parents[2] / "vectors" / "transparency" / "merkle.json").read_text("utf-8")
)


def tree_of(leaves: list[bytes]) -> MerkleTree:
    tree = MerkleTree()
    for leaf in leaves:
        tree.append(leaf_hash(leaf))
    return tree


# -- the definition, written as the RFC writes it ----------------------------------------------


def largest_power_below(count: int) -> int:
    power = 1
    while power * 2 < count:
        power *= 2
    return power


def mth(data: list[bytes]) -> bytes:
    if not data:
        return hashlib.sha256(b"").digest()
    if len(data) == 1:
        return hashlib.sha256(b"\x00" + data[0]).digest()
    k = largest_power_below(len(data))
    return hashlib.sha256(b"\x01" + mth(data[:k]) + mth(data[k:])).digest()


def path(m: int, data: list[bytes]) -> list[bytes]:
    if len(data) == 1:
        return []
    k = largest_power_below(len(data))
    if m < k:
        return [*path(m, data[:k]), mth(data[k:])]
    return [*path(m - k, data[k:]), mth(data[:k])]


def subproof(m: int, data: list[bytes], complete: bool) -> list[bytes]:
    if m == len(data):
        return [] if complete else [mth(data)]
    k = largest_power_below(len(data))
    if m <= k:
        return [*subproof(m, data[:k], complete), mth(data[k:])]
    return [*subproof(m - k, data[k:], False), mth(data[:k])]


# -- published vectors -------------------------------------------------------------------------


def test_published_roots_of_eight_leaves() -> None:
    leaves = [bytes.fromhex(leaf) for leaf in VECTORS["leaves"]]
    tree = tree_of(leaves)
    assert [tree.root(size).hex() for size in range(9)] == VECTORS["roots"]
    assert [tree_of(leaves[:size]).root().hex() for size in range(9)] == VECTORS["roots"]


def hashes(values: list[str] | None) -> list[bytes]:
    return [base64.b64decode(value) for value in values or []]


def value(text: str | None) -> bytes:
    """A root or leaf; some probes have words such as "don't care", which stand for any hash."""
    raw = base64.b64decode(text or "")
    return raw if len(raw) in (0, 32) else hashlib.sha256(raw).digest()


@pytest.mark.parametrize("probe", VECTORS["inclusion"], ids=lambda each: each["file"])
def test_published_inclusion_probes(probe: dict[str, Any]) -> None:
    holds = verify_inclusion(
        value(probe["leafHash"]),
        probe["leafIdx"],
        probe["treeSize"],
        hashes(probe["proof"]),
        value(probe["root"]),
    )
    assert holds is not probe["wantErr"], probe["desc"]


@pytest.mark.parametrize("probe", VECTORS["consistency"], ids=lambda each: each["file"])
def test_published_consistency_probes(probe: dict[str, Any]) -> None:
    holds = verify_consistency(
        probe["size1"],
        probe["size2"],
        hashes(probe["proof"]),
        value(probe["root1"]),
        value(probe["root2"]),
    )
    assert holds is not probe["wantErr"], probe["desc"]


def test_published_digest_of_all_subtrees_up_to_130_leaves() -> None:
    """Appendix "Subtree Test Vectors" of draft-ietf-plants-merkle-tree-certs: every hash and every
    inclusion proof of every subtree [start, end) whose start is a multiple of its width's next
    power of two."""
    data = [bytes([each]) for each in range(130)]
    roots, proofs = hashlib.sha256(), hashlib.sha256()
    for end in range(131):
        for start in range(end + 1):
            if end - start > 1 and start % (1 << (end - start - 1).bit_length()):
                continue
            tree = tree_of(data[start:end])
            roots.update(f"[{start}, {end}) {tree.root().hex()}\n".encode())
            for index in range(start, end):
                found = tree.inclusion_proof(index - start, end - start)
                words = "".join(f" {each.hex()}" for each in found)
                proofs.update(f"{index} [{start}, {end}){words}\n".encode())
    assert roots.hexdigest() == "b82806ad4265bb151c1119c0f4db437bb4d1a1f887b3a7fba1cd4ebf552e3e81"
    assert proofs.hexdigest() == "ac2a8f989e44d99e399db448050ff5f19757df53cfb716aa81015d3955d8163f"


# -- properties --------------------------------------------------------------------------------


def test_every_root_and_proof_up_to_33_leaves_is_the_definitions() -> None:
    data = [b"leaf %d" % each for each in range(33)]
    tree = tree_of(data)
    for size in range(34):
        assert tree.root(size) == mth(data[:size])
        for index in range(size):
            proof = tree.inclusion_proof(index, size)
            assert proof == path(index, data[:size])
            assert verify_inclusion(leaf_hash(data[index]), index, size, proof, tree.root(size))
        for old in range(size + 1):
            proof = tree.consistency_proof(old, size)
            assert proof == (subproof(old, data[:size], True) if old else [])
            holds = verify_consistency(old, size, proof, tree.root(old), tree.root(size))
            assert holds is (old > 0 or size == 0)


small_trees = st.integers(1, 200)


@given(size=small_trees, draw=st.data())
def test_a_proof_of_anything_else_is_refused(size: int, draw: st.DataObject) -> None:
    tree = tree_of([b"%d" % each for each in range(size)])
    index = draw.draw(st.integers(0, size - 1))
    proof = tree.inclusion_proof(index, size)
    other = draw.draw(st.integers(0, size - 1).filter(lambda each: each != index) | st.none())
    if other is not None:
        assert not verify_inclusion(leaf_hash(b"%d" % index), other, size, proof, tree.root())
        assert not verify_inclusion(leaf_hash(b"%d" % other), index, size, proof, tree.root())
    assert not verify_inclusion(leaf_hash(b"x"), index, size, proof, tree.root())
    assert not verify_inclusion(
        leaf_hash(b"%d" % index),
        index,
        size,
        [*proof, proof[-1]] if proof else [EMPTY_ROOT],
        tree.root(),
    )


@given(sizes=st.tuples(small_trees, small_trees).map(sorted), place=st.integers(0, 199))
def test_a_rewritten_leaf_breaks_consistency(sizes: list[int], place: int) -> None:
    old, new = sizes
    if place >= old:
        place = old - 1
    tree = tree_of([b"%d" % each for each in range(new)])
    fork = tree_of([b"fork" if each == place else b"%d" % each for each in range(new)])
    for proof in (tree.consistency_proof(old, new), fork.consistency_proof(old, new)):
        assert not verify_consistency(old, new, proof, tree.root(old), fork.root())


@given(
    old=st.integers(-1, 2**64),
    new=st.integers(-1, 2**64),
    proof=st.lists(st.binary(max_size=33), max_size=70),
    roots=st.tuples(st.binary(max_size=33), st.binary(max_size=33)),
)
def test_no_input_breaks_the_verifiers(
    old: int, new: int, proof: list[bytes], roots: tuple[bytes, bytes]
) -> None:
    assert not verify_consistency(old, new, proof, *roots) or roots[0] in (roots[1], EMPTY_ROOT)
    assert not verify_inclusion(roots[0], old, new, proof, roots[1]) or roots[0] == roots[1]


def test_the_bounds_of_a_tree_are_kept() -> None:
    tree = tree_of([b"a", b"b"])
    with pytest.raises(ValueError, match="size 3 is not in a tree of 2 leaves"):
        tree.root(3)
    with pytest.raises(ValueError, match="leaf 2 of 2"):
        tree.inclusion_proof(2, 2)
    with pytest.raises(ValueError, match="sizes 2 and 1"):
        tree.consistency_proof(2, 1)
    with pytest.raises(ValueError, match="32 bytes, not 1"):
        tree.append(b"a")
