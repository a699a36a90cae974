"""Whether a metric still improves from evaluation to evaluation."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fedsys.agreement import is_finite

__all__ = ["STOPPED", "Standing", "less_is_better", "standing"]

STOPPED = "stopped-early"
"""How a ledger's closing line calls a job that ended because its metric no longer improved."""

# fmt: off
_FALLING = frozenset(
    {
        "loss", "error", "err", "mae", "mse", "rmse", "mape", "msle", "nll", "perplexity", "ppl",
        "brier", "cer", "wer", "regret", "hinge",
    }
)
_RISING = frozenset(
    {
        "accuracy", "acc", "top1", "top3", "top5", "top10", "precision", "recall", "sensitivity",
        "specificity", "f1", "auc", "auroc", "auprc", "ap", "map", "iou", "dice", "r2", "mcc",
        "kappa", "bleu", "rouge", "reward", "return", "score", "hit", "hits", "exact",
    }
)
# fmt: on


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """What the evaluations so far say of a metric.

    Attributes:
        metric: its name.
        round: the round after which it was best; the earlier one of equals.
        best: its value then.
        waited: number of evaluations since, none of them better.
    """

    metric: str
    round: int
    best: float
    waited: int

    @property
    def text(self) -> str:
        """For people."""
        times = f"{self.waited} evaluation{'s' if self.waited != 1 else ''}"
        return (
            f"{self.metric} has not improved for {times}; best in round {self.round} "
            f"({self.best:.4g})"
        )


def standing(
    evaluations: Iterable[Mapping[str, object]], metric: str, *, less: bool
) -> Standing | None:
    """How long ago a metric was best; None where it was never a finite number.

    >>> lines = [{"round": 1, "loss": 2.0}, {"round": 2, "loss": 1.0}, {"round": 3, "loss": 1.0}]
    >>> standing(lines, "loss", less=True).text
    'loss has not improved for 1 evaluation; best in round 2 (1)'

    Args:
        evaluations: lines of ``metrics.jsonl``, untrusted.
        metric: its name.
        less: whether less of it is better.
    """
    best, found, waited = 0.0, 0, 0
    for line in evaluations:
        round, value = line.get("round"), line.get(metric)
        if is_finite(value) and (not found or (value < best if less else value > best)):  # type: ignore[operator]
            best, found, waited = float(value), round if type(round) is int else 0, 0  # type: ignore[arg-type]
        elif found:
            waited += 1
    return Standing(metric=metric, round=found, best=best, waited=waited) if found else None


def less_is_better(metric: str) -> bool | None:
    """What a metric's name tells; of ``neg_loss`` and ``error_score`` only the user knows."""
    words = set(re.split(r"[^a-z0-9]+", metric.lower()))
    falling, rising = bool(words & _FALLING), bool(words & _RISING)
    if falling == rising or words & {"neg", "negative", "minus", "inverse", "1"}:
        return None
    return falling
