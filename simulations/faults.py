"""What goes wrong on purpose: which virtual client vanishes, in which round, at which stage."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

__all__ = ["STAGES", "FaultPlan"]

STAGES = ("advertise", "share_keys", "masked_input", "consistency", "unmask")
"""A client lost at a stage vanishes before it sends that stage's message."""

_SCALE = 1 << 64


@dataclass(frozen=True, kw_only=True)
class FaultPlan:
    """A pure function of (seed, round, client): the same plan replays the same losses.

    >>> plan = FaultPlan(dropout=0.5, seed=7)
    >>> plan.lost(round=1, client=3) == plan.lost(round=1, client=3)
    True
    """

    dropout: float = 0.0
    seed: int = 0

    def lost(self, *, round: int, client: int) -> str | None:
        """The stage at which `client` vanishes in `round`, or None."""
        if self.dropout == 0:
            return None
        text = f"fedsys fault {self.seed} {round} {client}".encode()
        digest = hashlib.sha256(text).digest()
        if int.from_bytes(digest[:8], "big") >= int(self.dropout * _SCALE):
            return None
        return STAGES[int.from_bytes(digest[8:16], "big") % len(STAGES)]

    def sends_input(self, *, round: int, client: int) -> bool:
        """Whether the client lives long enough to be part of the round's sum."""
        return self.lost(round=round, client=client) in (None, "consistency", "unmask")
