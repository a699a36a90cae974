"""When a job ends early: its metric on the coordinator's own test data no longer improves.

>>> from fedsys.config import load
>>> config = load("quickstart", ["evaluation.stop.metric=accuracy", "evaluation.stop.patience=1"])
>>> lines = [{"round": 1, "accuracy": 0.5}, {"round": 2, "accuracy": 0.4}]
>>> standstill(config, lines).round
1
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fedsys.config import Config
from fedsys.errors import ConfigError
from fedsys.improvement import Standing, standing
from fedsys.privacy import PrivacyPlan, guaranteed_epsilon

__all__ = ["check_metric", "standstill", "stopped"]


def standstill(config: Config, evaluations: Sequence[Mapping[str, object]]) -> Standing | None:
    """How the job's metric stands if the job has to end now; None if it goes on.

    Args:
        config: the job's.
        evaluations: the lines of its ``metrics.jsonl``.
    """
    stop = config.evaluation.stop
    if not stop.metric:
        return None
    found = standing(evaluations, stop.metric, less=bool(stop.less))
    return found if found is not None and found.waited >= stop.patience else None


def check_metric(config: Config, names: Iterable[str] | None) -> None:
    """Require that the metric by which a job may end is one that its evaluations have.

    Args:
        config: the job's.
        names: of the metrics that evaluations give; None where the coordinator has no test data.

    Raises:
        ConfigError: it is not.
    """
    metric = config.evaluation.stop.metric
    if not metric:
        return
    if names is None:
        raise ConfigError(
            f"evaluation.stop.metric = '{metric}', and the coordinator has no test data to compute "
            f"it from; put them here, or remove evaluation.stop"
        )
    known = list(names)
    if metric not in known:
        raise ConfigError(
            f"evaluation.stop.metric = '{metric}': evaluations of this job have {', '.join(known)}"
        )


def stopped(
    config: Config, plan: PrivacyPlan, evaluations: Sequence[Mapping[str, object]]
) -> dict[str, Any] | None:
    """What ``summary.json`` states of a job that ended early; None for one whose metric says
    nothing."""
    found = standstill(config, evaluations)
    if found is None:
        return None
    return {
        "metric": found.metric,
        "best_round": found.round,
        "best": found.best,
        "planned_rounds": plan.rounds,
        "planned_epsilon": guaranteed_epsilon(plan) if plan.protected else None,
    }
