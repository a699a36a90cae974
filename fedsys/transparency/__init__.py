"""A transparency log's formats: Merkle trees, signed notes, checkpoints, cosignatures, proofs.

All of them follow the C2SP specifications (https://c2sp.org), so that witnesses and tools of that
ecosystem work with a job's ledger, and vice versa. Nothing here knows what a leaf means.
"""

from fedsys.transparency.checkpoint import Checkpoint
from fedsys.transparency.cosignature import Cosignature, cosign, cosignatures_of
from fedsys.transparency.merkle import MerkleTree, leaf_hash, verify_consistency, verify_inclusion
from fedsys.transparency.note import NoteError, SignedNote, VerifierKey
from fedsys.transparency.proof import LogProof

__all__ = [
    "Checkpoint",
    "Cosignature",
    "LogProof",
    "MerkleTree",
    "NoteError",
    "SignedNote",
    "VerifierKey",
    "cosign",
    "cosignatures_of",
    "leaf_hash",
    "verify_consistency",
    "verify_inclusion",
]
