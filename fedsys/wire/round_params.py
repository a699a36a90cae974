"""Parameters of a round's secure aggregation, from what was agreed and from nothing else.

The coordinator and every device call this one function. A device compares what is announced with
its own result and demands equality, so an announcement has no say in what protects it.
"""

from __future__ import annotations

import math

from fedsys.privacy import PrivacyPlan
from fedsys.privacy.quorum import live_members
from secure_agg import SecAggParams

__all__ = ["cohort_colluders", "round_params"]

_SLACK = 1e-9  # 0.1 * 30 is 3.0000000000000004 and means 3


def cohort_colluders(n: int, *, corrupt: float, colluders: int) -> int:
    """Members of a cohort of `n` that may collude with the server.

    Args:
        n: members invited.
        corrupt: fraction of a cohort, which bounds them only if the cohort was sampled honestly.
        colluders: absolute number in the roster, which holds whatever cohort the server chooses;
            two honest members are always assumed.

    >>> cohort_colluders(30, corrupt=0.1, colluders=0), cohort_colluders(5, corrupt=0, colluders=9)
    (3, 3)
    """
    return max(math.ceil(corrupt * n - _SLACK), min(colluders, n - 2), 0)


def round_params(
    plan: PrivacyPlan, n: int, *, length: int, modulus_bits: int, colluders: int = 0
) -> SecAggParams:
    """Parameters for a cohort of `n` under an agreed plan.

    They withstand more losses than `plan.dropout`, the chance that a member is lost, makes likely
    (see `fedsys.privacy.quorum`): a round given up shows, and delta pays for it. A sum has at least
    the plan's `min_survivors` inputs, and two more than there may be colluders.

    Args:
        plan: as agreed; `corrupt` is taken as 0 where it states none.
        n: members invited.
        length: coordinates of a vector.
        modulus_bits: of a coordinate.
        colluders: absolute number of colluders that the roster states.

    Raises:
        ParameterError: nothing fits; the message says which of n, corrupt and dropout cannot be.
    """
    corrupt = plan.corrupt or 0.0
    most = max(plan.colluders, colluders)
    live = live_members(n, corrupt=corrupt, dropout=plan.dropout, colluders=most)
    return SecAggParams.derive(
        n=n,
        corrupt=corrupt,
        dropout=(n - live) / n if live else plan.dropout,
        modulus_bits=modulus_bits,
        dimension=length,
        colluders=most,
        min_included=max(
            plan.min_survivors, cohort_colluders(n, corrupt=corrupt, colluders=most) + 2
        ),
    )
