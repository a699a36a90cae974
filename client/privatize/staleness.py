"""How a client weighs an update that other updates overtook while it trained.

In buffered rounds the model moves on meanwhile. The client scales its update by
1 / sqrt(1 + staleness), the polynomial weight of FedBuff (Nguyen et al., AISTATS 2022, section 5),
*before* it clips: the norm that noise pays for is that of what is sent, whatever the weight.

Beyond the bound a simulated client sends zeros and its share of noise, and the upload counts as a
contribution all the same: a buffer takes exactly K uploads, each with its share. A device is asked
for its upload only when it has trained, and is not asked for one beyond the bound; it refuses if it
is. Either way who uploads when depends on time alone, and on nothing in anybody's data.

>>> staleness_factor(0, most=10), staleness_factor(3, most=10), staleness_factor(11, most=10)
(1.0, 0.5, 0.0)
"""

from __future__ import annotations

import math

__all__ = ["staleness_factor"]


def staleness_factor(staleness: int, *, most: int) -> float:
    """What an update is multiplied by; 0 for one that is too stale to count.

    Args:
        staleness: versions of the model that were released between the one that the client trained
            from and the one that it is told of when it uploads. Fewer than none, which only a
            server that contradicts itself announces, counts as too stale.
        most: of which it contributes.
    """
    return 1 / math.sqrt(1 + staleness) if 0 <= staleness <= most else 0.0
