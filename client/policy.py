"""What the owner of the data lets a coordinator ask; a refusal says why."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fedsys.errors import PolicyRefusal
from fedsys.wire import Assignment

__all__ = ["Policy"]


@dataclass(frozen=True, kw_only=True)
class Policy:
    """Limits that an agent checks before it computes anything.

    Attributes:
        tasks: names of tasks that may run; None allows every installed one.
        max_clip: the largest clipping norm, or infinity.
        min_noise_multiplier: the least noise the whole cohort must add; 0 allows none at all.
        max_participations: how many rounds of one job this client takes part in.
    """

    tasks: frozenset[str] | None = None
    max_clip: float = math.inf
    min_noise_multiplier: float = 0.0
    max_participations: int | None = None

    def check(self, assignment: Assignment, *, participations: int) -> None:
        """Raise unless the assignment is within these limits.

        Args:
            assignment: what is asked.
            participations: rounds of this job already taken part in, by the client's own count.

        Raises:
            PolicyRefusal: the message names the limit, its value and what was asked.
        """
        if self.tasks is not None and assignment.task not in self.tasks:
            raise PolicyRefusal(
                f"task '{assignment.task}' is not on the owner's list "
                f"({', '.join(sorted(self.tasks)) or 'empty'})"
            )
        clip = float(assignment.mechanism.get("clip", math.inf))
        if clip > self.max_clip:
            raise PolicyRefusal(f"clip {clip:g} is above the owner's max_clip {self.max_clip:g}")
        noise = float(assignment.mechanism.get("noise_multiplier") or 0.0)
        if noise < self.min_noise_multiplier:
            raise PolicyRefusal(
                f"noise multiplier {noise:g} is below the owner's min_noise_multiplier "
                f"{self.min_noise_multiplier:g}"
            )
        if self.max_participations is not None and participations >= self.max_participations:
            raise PolicyRefusal(
                f"already took part in {participations} rounds of this job, the owner's "
                f"max_participations"
            )
