"""Parameters of a round's secure aggregation, from what was agreed and from nothing else.

The coordinator and every device call this one function. A device compares what is announced with
its own result and demands equality, so an announcement has no say in what protects it.
"""

from __future__ import annotations

from fedsys.privacy import PrivacyPlan
from fedsys.privacy.sampling.quorum import withstood
from secure_agg import SecAggParams
from secure_agg.errors import ParameterError
from secure_agg.params import cohort_colluders

__all__ = ["round_params"]


def round_params(
    plan: PrivacyPlan, n: int, *, length: int, modulus_bits: int, colluders: int = 0
) -> SecAggParams:
    """Parameters for a cohort of `n` under an agreed plan.

    They withstand more losses than `plan.dropout`, the chance that a member is lost, makes likely
    (see `fedsys.privacy.sampling.quorum`): a round given up shows, and delta pays for it. A sum has
    at least the plan's `min_survivors` inputs, and two more than there may be colluders.

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
    bad = cohort_colluders(n=n, corrupt=corrupt, colluders=most)
    asked = withstood(n, corrupt=corrupt, dropout=plan.dropout, colluders=most)
    params = SecAggParams.derive(
        n=n,
        corrupt=corrupt,
        dropout=plan.dropout if asked is None else asked.losses / n,
        modulus_bits=modulus_bits,
        dimension=length,
        colluders=most,
        min_included=max(plan.min_survivors, bad + 2),
        committee=None if asked is None else asked.committee,
    )
    if asked is None:
        raise ParameterError(
            f"n={n}, corrupt={corrupt}, dropout={plan.dropout}: such a cohort would be given up "
            f"too often; invite more, or assume less"
        )
    return params
