"""Parameters of a round's secure aggregation, from what was agreed and from nothing else.

The coordinator and every device call this one function. A device requires what is announced to
equal its own result, so an announcement has no influence on what protects the device.
"""

from __future__ import annotations

from fedsys.privacy import PrivacyPlan
from fedsys.privacy.sampling.quorum import withstood
from secure_agg import SecAggParams
from secure_agg.errors import ParameterError
from secure_agg.params import cohort_colluders
from secure_agg.sealing import require_suite

__all__ = ["round_params"]


def round_params(
    plan: PrivacyPlan,
    n: int,
    *,
    length: int,
    modulus_bits: int,
    colluders: int = 0,
    suite: int = 1,
) -> SecAggParams:
    """Parameters for a cohort of `n` under an agreed plan.

    They withstand more losses than `plan.dropout`, the probability that a member is lost, makes
    likely (see `fedsys.privacy.sampling.quorum`): an aborted round is visible, and delta pays for
    it. A sum has at least the plan's `min_survivors` inputs, and at least two more than there may
    be colluders.

    Args:
        plan: the agreed plan; `corrupt` is taken as 0 where it states none.
        n: number of members invited.
        length: number of coordinates of a vector.
        modulus_bits: bits of a coordinate.
        colluders: absolute number of colluders that the roster states.
        suite: 1 or 2, as agreed; see `secure_agg.committee.SUITES`.

    Raises:
        ParameterError: no parameters fit; the message names n, corrupt and dropout. Or this machine
            cannot compute the suite.
    """
    require_suite(suite)
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
        suite=suite,
        committee=None if asked is None else asked.committee,
    )
    if asked is None:
        raise ParameterError(
            f"n={n}, corrupt={corrupt}, dropout={plan.dropout}: such a cohort would abort too "
            f"often; invite more members, or assume fewer losses and colluders"
        )
    return params
