"""What a participant insists upon, whatever the server proposes."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Floor"]


@dataclass(frozen=True, kw_only=True)
class Floor:
    """Local minimums; a round whose parameters fall below one is refused by name.

    The defaults ask for what `SecAggParams.derive` gives with nobody assumed corrupt. A device
    that was told to assume colluders sets `corrupt`, and a deployment `members`.

    Attributes:
        members: Least n.
        threshold: Least t.
        threshold_fraction: Least t / k.
        degree_fraction: Least k / (n - 1).
        quorum_fraction: Least q / n; q > (n + c) / 2 is required in any case.
        corrupt: Least fraction of colluding members to be tolerated.
        min_alive: Least number of inputs in a sum.
        modulus_bits: The ring's width, if only one will do.
        secrecy_bits: Least -log2 of the chance that the graph exposes somebody. Zero is for
            benchmarks with raw parameters.
    """

    members: int = 2
    threshold: int = 1
    threshold_fraction: float = 0.0
    degree_fraction: float = 0.0
    quorum_fraction: float = 0.0
    corrupt: float = 0.0
    min_alive: int = 2
    modulus_bits: int | None = None
    secrecy_bits: float = 39.0
