"""The weight of an update that is stale: the model has moved on while the client trained.

In buffered rounds, the client scales its update by 1 / sqrt(1 + staleness), the polynomial weight
of FedBuff (Nguyen et al., AISTATS 2022, section 5), *before* it clips: the noise covers the
clipping norm of what is sent, whatever the weight.

Beyond the bound on staleness, a simulated client sends zeros and its noise share, and the upload
counts as a contribution all the same: a buffer takes exactly K uploads, each with its noise share.
A device is asked for its upload only after it has trained, and never beyond the bound; if it is
asked, it refuses. Either way, who uploads when depends on time alone, not on anybody's data.

>>> staleness_factor(0, most=10), staleness_factor(3, most=10), staleness_factor(11, most=10)
(1.0, 0.5, 0.0)
"""

from __future__ import annotations

import math

__all__ = ["staleness_factor"]


def staleness_factor(staleness: int, *, most: int) -> float:
    """The factor of an update; 0 if it is too stale to count.

    Args:
        staleness: versions of the model between the one that the client trained from and the newest
            one when it uploads. A negative number, which only a coordinator that contradicts itself
            announces, counts as too stale.
        most: the largest staleness at which an update still counts.
    """
    return 1 / math.sqrt(1 + staleness) if 0 <= staleness <= most else 0.0
