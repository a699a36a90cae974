"""Logs whose checkpoints witnesses are asked to cosign."""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedsys.transparency import Checkpoint, MerkleTree, SignedNote, leaf_hash
from fedsys.transparency.note import sign_note
from fedsys.transparency.origin import origin_of
from fedsys.transparency.submission import Submission


class Log:
    """A job's log, honest unless told otherwise."""

    def __init__(self, leaves: list[bytes] | None = None, *, job: int = 1, key: bytes = b"k" * 32):
        self.key = Ed25519PrivateKey.from_private_bytes(key)
        self.signer = self.key.public_key().public_bytes_raw().hex()
        self.origin = origin_of(signer=self.signer, job=bytes([job]).hex() * 32)
        self.tree = MerkleTree()
        for leaf in leaves or []:
            self.tree.append(leaf_hash(leaf))

    def grow(self, count: int) -> Log:
        for each in range(len(self.tree), len(self.tree) + count):
            self.tree.append(leaf_hash(b"%d" % each))
        return self

    def note(self, size: int | None = None, *, root: bytes | None = None) -> SignedNote:
        """A signed checkpoint, of any root."""
        size = len(self.tree) if size is None else size
        root = self.tree.root(size) if root is None else root
        text = Checkpoint(origin=self.origin, size=size, root=root).text
        return SignedNote(text=text, signatures=(sign_note(text, name=self.origin, key=self.key),))

    def submission(self, old: int, size: int | None = None) -> Submission:
        size = len(self.tree) if size is None else size
        proof = tuple(self.tree.consistency_proof(old, size)) if old <= size else ()
        return Submission(old=old, proof=proof, note=self.note(size))
