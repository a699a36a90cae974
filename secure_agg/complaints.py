"""What the server concludes from the committee's complaints.

A complaint with evidence convicts the dealer, or the member that made it: the key that it reveals
opens the share that the dealer signed, and the share fails the test, or not. A complaint without
evidence (the share does not open) convicts nobody: the dealer is left out of the sum, unless the
member complains about more dealers than can be corrupt, and is ignored itself.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from secure_agg import checks
from secure_agg.errors import ShareError
from secure_agg.messages import Complaint

__all__ = ["Verdict", "judge"]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Who leaves the round, and why.

    Attributes:
        guilty: Dealers whose bad share was shown, and members whose evidence shows nothing.
        left_out: Dealers that leave without blame.
        ignored: Committee members that are not listened to any more.
    """

    guilty: dict[int, str] = field(default_factory=dict)
    left_out: dict[int, str] = field(default_factory=dict)
    ignored: dict[int, str] = field(default_factory=dict)


def judge(
    complaints: Mapping[int, Sequence[Complaint]],
    dealers: Collection[int],
    colluders: int,
    fails: Callable[[int, Complaint], bool],
) -> Verdict:
    """Weigh all complaints of one buffer.

    Args:
        complaints: Of each committee member, by its id.
        dealers: Ids of those whose shares were delivered.
        colluders: Of the committee, c.
        fails: Whether a complaint's evidence, made by this member, shows a share that fails.
    """
    verdict = Verdict()
    for member in sorted(complaints):
        mine = [one for one in complaints[member] if one.dealer in dealers]
        try:
            checks.complaints(sum(not one.proven for one in mine), colluders, member)
        except ShareError as error:
            verdict.ignored[member] = str(error)
            continue
        for one in mine:
            if not one.proven:
                reason = f"member {member} could not open the share of dealer {one.dealer}"
                verdict.left_out.setdefault(one.dealer, reason)
                continue
            try:
                checks.evidence(fails(member, one), member, one.dealer)
            except ShareError as error:
                verdict.guilty[member] = str(error)
            else:
                reason = f"dealer {one.dealer} dealt a share that fails, as member {member} showed"
                verdict.guilty.setdefault(one.dealer, reason)
    for dealer in verdict.guilty:
        verdict.left_out.pop(dealer, None)
    return verdict
