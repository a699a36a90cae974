"""The quorum: so many signatures over one alive set that no second set can gather as many."""

from __future__ import annotations

from secure_agg import checks, keys
from secure_agg.messages import Unmask
from secure_agg.roster import Roster
from secure_agg.shared import Shared

__all__ = ["verify"]


def verify(roster: Roster, unmask: Unmask, asked: bytes, shared: Shared | None = None) -> None:
    """Check every signature of a quorum over the digest of one alive set.

    Args:
        roster: The pinned list of members.
        unmask: Who signed, and their signatures.
        asked: The alive set's digest, 32 bytes.
        shared: Work shared with a virtual cohort in this process.

    Raises:
        RosterError: When a signer is not in the roster.
        SignatureMismatch: When a signature does not verify.
    """

    def every() -> bool:
        for signer, signature in zip(unmask.signers, unmask.signatures, strict=True):
            valid = keys.verifies(checks.enrolled(roster, signer), signature, asked, shared)
            checks.signature(valid, signer, "alive set")
        return True

    if shared is None:
        every()
    else:
        everything = (roster.hash, asked, tuple(unmask.signers), tuple(unmask.signatures))
        shared.get(("quorum", everything), every)
