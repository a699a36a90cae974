"""Which clipping norm clips nothing, and is one so large that rounding destroys updates?

The wide encoding rounds an update to a grid of step C / (64 sqrt(d)), see
`fedsys.privacy.encoding.clipping`: fine against C, and coarse against updates that are a hundred
times shorter than C. Whether they are is a fact about the clients' data, so it is asked only where
no privacy is claimed; under a mechanism the noise, which is in proportion to C as well, drowns
such updates long before rounding does.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from client.training.procedure.visit import Visit
from fedsys.config import Config
from fedsys.errors import ConfigError
from fedsys.privacy import PrivacyPlan
from fedsys.privacy.encoding.clipping import clip_to_integers, wide_scale
from server.job_settings import strategy_of
from server.strategy_base import shared_by
from simulations.population import Population

__all__ = ["check_clip", "loss_by_rounding", "unclipped"]

_PROBED = 8
_MOST_LOST = 0.5
_SAID = 0.1
_ROOM = 8.0


def check_clip(config: Config, plan: PrivacyPlan, population: Population) -> str:
    """Train a few clients from the initial model, and compare their updates with the clipping norm.

    Args:
        config: of the job.
        plan: that it means.
        population: of which clients from all over are tried.

    Returns:
        One line for the console, if updates are clipped or rounded noticeably; else nothing.

    Raises:
        ConfigError: rounding would destroy them; gives the numbers and a norm that fits.
        TrainingError: a client could not train.
    """
    if plan.protected or config.privacy.mechanism != "none":
        return ""
    if not plan.build_mechanism().sums_integers:
        return ""
    clip = plan.event().clip
    together = max(1, min(_PROBED, int(config.cohort.expected)))
    norms, losses, total, error = _tried(
        population, clip, _visit(config, plan, population), together=together
    )
    if not norms:
        return ""
    if config.aggregation.protocol == "float":  # is rounded once, as a sum
        lost = _rounded_away(total * max(config.cohort.expected / together, 1.0), clip)
    else:  # what rounding adds to one update may cancel in a sum, and updates themselves too
        length = float(np.linalg.norm(total))
        summed = float(np.linalg.norm(error)) / length if length else 1.0
        lost = min(float(np.median(losses)), summed)
    step, longest = 1 / wide_scale(len(total), clip), max(norms)
    known = f"updates of {len(norms)} clients tried have a median norm of {np.median(norms):.3g}"
    if lost > _MOST_LOST:
        raise ConfigError(
            f"privacy.clip = {clip:g}: updates are summed as multiples of {step:.2g}, and {known}: "
            f"rounding would change their sum by {min(lost, 1.0):.0%} of its length; set "
            f"privacy.clip = {_fitting(longest):g}, which clips none of them"
        )
    if lost > _SAID:
        return (
            f"privacy.clip = {clip:g} is large: {known}, and rounding to multiples of {step:.2g} "
            f"changes their sum by {lost:.0%} of its length; privacy.clip = "
            f"{_fitting(longest):g} would clip none of them"
        )
    cut = sum(norm > clip for norm in norms)
    if cut:
        return (
            f"privacy.clip = {clip:g} clips under mechanism 'none' too: {known}, and {cut} of them "
            f"are longer"
        )
    return ""


def unclipped(config: Config, population: Population) -> tuple[Config, str]:
    """Under mechanism ``none``, a clipping norm above any update, unless the configuration asks for
    one.

    Sums are of integers, whose range needs some norm: it is 8 to 16 times the longest update of a
    few clients, which rounding then changes by less than a tenth of its length, at random.

    Returns:
        The configuration with ``privacy.clip`` and one line about it; unchanged and nothing where
        a norm was given, there is a mechanism, or no update tried has a length.

    Raises:
        TrainingError: a client could not train.
    """
    privacy = config.privacy
    if privacy.mechanism != "none" or "clip" in privacy.model_fields_set:
        return config, ""
    population.choose(privacy.clip if config.aggregation.protocol == "float" else None)
    norms, _, _, _ = _tried(population, privacy.clip, _visit(config, None, population))
    if not norms:
        return config, ""
    clip = 2.0 ** math.ceil(math.log2(_ROOM * max(norms)))
    said = (
        f"privacy.clip = {clip:g}: mechanism 'none' clips only where privacy.clip is given, and "
        f"this norm is {clip / max(norms):.2g} times the longest update of {len(norms)} clients"
    )
    given = {"privacy": privacy.model_copy(update={"clip": clip})}
    return config.model_copy(update=given), said


def _tried(
    population: Population, clip: float, visit: Visit, *, together: int = _PROBED
) -> tuple[list[float], list[float], NDArray[np.float64], NDArray[np.float64]]:
    """Norms of a few clients' updates, what rounding changes of each; the clipped sum (d,) of the
    first `together` of them, and what rounding each adds to it (d,). One client at a time, so that
    a large model needs no more memory than in training."""
    weights, dimension = population.trainer.initial_weights(), population.trainer.dimension
    norms, losses = list[float](), list[float]()
    total, error = np.zeros(len(weights)), np.zeros(len(weights))
    for id in np.linspace(0, population.size - 1, min(_PROBED, population.size)).astype(int):
        trained = population.train(weights, [int(id)], round=1, visit=visit)
        update = trained[0, :dimension].astype(np.float64)
        norm = float(np.linalg.norm(update))
        if not (math.isfinite(norm) and norm > 0):
            continue
        clipped, off = _rounded(update, clip)
        norms.append(norm)
        losses.append(float(np.linalg.norm(off) / np.linalg.norm(clipped)))
        if len(norms) <= together:
            total += clipped
            error += off
    return norms, losses, total, error


def _visit(config: Config, plan: PrivacyPlan | None, population: Population) -> Visit:
    """A first round, of which clients keep nothing."""
    strategy = strategy_of(config, plan, population.trainer.dimension)
    return Visit(round=0, rounds=config.rounds.count, shared=shared_by(strategy))


def loss_by_rounding(update: NDArray[np.float64], clip: float) -> float:
    """|rounded - clipped| / |clipped| of an update (d,) other than 0, rounded as the wide encoding
    does."""
    clipped, off = _rounded(update, clip)
    return float(np.linalg.norm(off) / np.linalg.norm(clipped))


def _rounded(
    update: NDArray[np.float64], clip: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """An update (d,) other than 0, clipped, and what the wide encoding's rounding adds to it."""
    clipped = update * min(1.0, clip / float(np.linalg.norm(update)))
    rounded = clip_to_integers(update[None], clip=clip).values[0] / wide_scale(len(update), clip)
    return clipped, rounded - clipped


def _rounded_away(summed: NDArray[np.float64], clip: float) -> float:
    """The same of a sum that is rounded once; all of it where the updates cancel."""
    scale, length = wide_scale(len(summed), clip), float(np.linalg.norm(summed))
    error = np.linalg.norm(np.rint(summed * scale) / scale - summed)
    return float(error / length) if length else 1.0


def _fitting(longest: float) -> float:
    """A round number at least twice as large: updates at first are not the longest there will be.

    >>> [_fitting(longest) for longest in (0.24, 0.4, 1.2, 3.0)]
    [0.5, 1.0, 5.0, 10.0]
    """
    power = 10.0 ** math.floor(math.log10(2 * longest))
    steps = (power, 2 * power, 5 * power, 10 * power)
    return float(next(each for each in steps if each >= 2 * longest * (1 - 1e-9)))
