"""``[tuning]``: runs on the same clients before this one."""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import Field

from fedsys.config.section import Finite, Fraction, Section

__all__ = ["Tuning", "TuningPart"]


class TuningPart(Section):
    """Rounds of tuning runs as ``fedsys tune`` found them in their ledgers.

    Attributes:
        delta: Delta of each run.
        overhead: Portion of delta that is not for the steps: it pays for visible aborts, and for
            the noise's distance from a Gaussian.
        aside: Portion of the overhead that pays for the noise's distance.
        log_distance: Logarithm of that distance, in total variation.
        steps: Gaussian steps, each as multiplier, sampling rate, 1 if neighbours are replaced (0 if
            not), and count.
    """

    delta: Annotated[Finite, Field(gt=0, lt=1)]
    overhead: Fraction
    aside: Fraction
    log_distance: Finite
    steps: Annotated[list[list[float]], Field(min_length=1, max_length=4)]


class Tuning(Section):
    """Earlier runs on the same clients whose results chose these settings.

    ``fedsys tune`` fills this section in. The header of the ledger repeats it, and summary, report,
    audit and export state the total with this run.

    Attributes:
        runs: Number of those runs.
        epsilon: Outsider's epsilon of all of them together, at ``delta``.
        delta: Delta of that epsilon.
        heads: Heads of their ledgers.
        part: Their rounds, from which the total with this run is composed; without it epsilons and
            deltas are added.
    """

    runs: Annotated[int, Field(ge=0)] = 0
    epsilon: Annotated[float, Field(ge=0)] | None = None
    delta: Annotated[Finite, Field(gt=0, lt=1)] | None = None
    heads: list[Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]] = Field(
        default_factory=list, max_length=10_000
    )

    part: TuningPart | None = None

    def to_json(self) -> dict[str, Any]:
        """The section for the ledger; an infinite epsilon is the string "inf"."""
        facts = self.model_dump(exclude_none=True)
        return facts | ({"epsilon": "inf"} if self.epsilon == math.inf else {})
