"""Further accountants for the outsider's epsilon, each used for what it can show.

An accountant's epsilon is an upper bound. Two upper bounds that differ do not contradict each
other: the smaller may be the tighter one. What contradicts a reported epsilon is a *lower* bound
above it:

- `fedsys.audit.lower_bounds` attacks the rounds as they are, for every mechanism and sampling;
- Opacus' PRV accountant brackets Poisson-sampled Gaussian rounds from both sides (Gopi, Lee and
  Wutschitz 2021): its lower end is a second opinion from independent code.

An upper bound below the reported epsilon says that less could have been claimed; it is shown, and
fails nothing.
"""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Iterator

from fedsys.audit.lower_bounds import epsilon_at_least
from fedsys.audit.spending import Spending
from fedsys.audit.wording import claim, epsilon_text
from fedsys.privacy import PrivacyPlan
from fedsys.privacy.accounting.costs import Steps, second_opinion
from fedsys.records import Claim

__all__ = ["cross_checks"]

_RELATIVE = 1e-6
"""Rounding error allowed for a bound that is met exactly."""
_WIDEST = 100.0
"""Epsilon above which Opacus is not run: its grid would be huge."""


def cross_checks(plan: PrivacyPlan, spending: Spending) -> Iterator[Claim]:
    """One claim for each further accountant that applies."""
    steps, delta = spending.accountant.outsider.steps(), plan.delta_of("outsider")
    reported = spending.spent.outsider
    if not steps:
        return
    yield _from_below(steps, delta, reported)
    poisson = not any(step.replaces or step.rate >= 1 for step in steps)
    if poisson and reported < _WIDEST:
        yield _opacus(steps, delta, reported)


def _from_below(steps: Steps, delta: float, reported: float) -> Claim:
    lower = epsilon_at_least(steps.items(), delta)
    upper = second_opinion(steps, delta) if reported < math.inf else None
    words = f"at least {epsilon_text(lower)}, by an attack on one coordinate"
    if upper is not None:
        version = importlib.metadata.version("dp-accounting")
        words += f"; at most {epsilon_text(upper)} by dp-accounting {version} RDP"
    holds: bool | None = reported >= lower * (1 - _RELATIVE)
    if lower == 0 < reported:
        holds, words = None, f"nothing can be shown at delta = {delta:g}{words[words.find(';') :]}"
    return claim(
        "Epsilon cross-check: not below what an attack achieves",
        holds,
        claimed=epsilon_text(reported),
        rederived=words,
        by="the likeliest outputs of the rounds, convolved and rounded down",
    )


def _opacus(steps: Steps, delta: float, reported: float) -> Claim:
    name, rests_on = "Epsilon cross-check: second opinion", "fedsys's loss distributions"
    holds: bool | None = None
    try:
        from fedsys.audit.opacus_accounting import prv_bounds

        history = [
            (step.multiplier, step.rate, count * step.count) for step, count in steps.items()
        ]
        lower, upper = prv_bounds(history, delta)
    except ImportError:
        words = "not run: Opacus is not installed"
    except (AttributeError, ValueError, RuntimeError, ArithmeticError) as error:
        words = f"Opacus gives no bound: {error}"
    else:
        holds, rests_on = reported >= lower * (1 - _RELATIVE), "the folder alone"
        words = f"between {epsilon_text(max(lower, 0.0))} and {epsilon_text(upper)}"
    return claim(
        name,
        holds,
        claimed=epsilon_text(reported),
        rederived=words,
        by="Opacus PRV",
        rests_on=rests_on,
    )
