"""Figures over a whole test set, which no mean over examples gives."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fedsys.errors import ConfigError
from fedsys.tasks.named import attribute_of

__all__ = ["whole_metrics"]

WholeMetric = Callable[[Tensor, Tensor], float]


def whole_metrics(names: Sequence[str]) -> dict[str, WholeMetric]:
    """The functions of `evaluation.metrics`, by the name of their figure.

    Raises:
        ConfigError: there is none of that name, or two would have the same.
    """
    found: dict[str, WholeMetric] = {}
    for name in names:
        if name in _BUILTIN:
            called, function = name.replace("-", "_"), _BUILTIN[name]
        elif ":" in name:
            called = name.partition(":")[2].lower()
            function = _checked(name, attribute_of(name, "evaluation.metrics"))
        else:
            raise ConfigError(
                f"evaluation.metrics has {name!r}: allowed are {', '.join(_BUILTIN)}, and your own "
                f'as "package.module:Attr"'
            )
        if called in found or called == "loss":
            raise ConfigError(f"evaluation.metrics: two figures would be called {called}")
        found[called] = function
    return found


def _checked(name: str, function: Callable[..., Any]) -> WholeMetric:
    def figure(outputs: Tensor, targets: Tensor) -> float:
        try:
            return float(function(outputs, targets))
        except (Exception, SystemExit) as error:  # whatever a user's code raises
            raise ConfigError(
                f"evaluation.metrics = {name!r} on outputs {tuple(outputs.shape)} failed: "
                f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            ) from error

    return figure


def _macro_f1(outputs: Tensor, targets: Tensor) -> float:
    """The mean of the classes' F1, over the classes that occur in the targets."""
    guessed = outputs.argmax(1)
    each = []
    for label in torch.unique(targets).tolist():
        right = int(((guessed == label) & (targets == label)).sum())
        named = int((guessed == label).sum()) + int((targets == label).sum())
        each.append(2 * right / named)
    return math.fsum(each) / len(each)


def _auc(outputs: Tensor, targets: Tensor) -> float:
    """Area under the ROC curve; of several classes, the mean over each against the others."""
    scores = outputs.softmax(1) if outputs.dim() == 2 else torch.stack([-outputs, outputs], 1)
    labels = torch.unique(targets).tolist()
    if len(labels) < 2:
        return math.nan
    chosen = [1] if scores.shape[1] == 2 else labels
    return math.fsum(_area(scores[:, it], targets == it) for it in chosen) / len(chosen)


def _area(scores: Tensor, positive: Tensor) -> float:
    """By ranks (Mann and Whitney): ties count half."""
    _, place, counts = torch.unique(scores, return_inverse=True, return_counts=True)
    ends = counts.cumsum(0)
    ranks = (ends - (counts - 1) / 2)[place].double()
    of = int(positive.sum())
    above = float(ranks[positive].sum()) - of * (of + 1) / 2
    return above / (of * (len(scores) - of))


_BUILTIN: Mapping[str, WholeMetric] = {"macro-f1": _macro_f1, "auc": _auc}
