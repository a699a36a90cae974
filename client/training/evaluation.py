"""Loss and metrics of one set of weights over held-out examples."""

from __future__ import annotations

import torch
from torch import nn

from fedsys.tasks import Examples, Task

__all__ = ["evaluate"]

BATCH = 512


def evaluate(
    task: Task, model: nn.Module, examples: Examples, batch: int = BATCH
) -> dict[str, float]:
    """The means over all examples of ``loss`` and of each of the task's metrics.

    The model is in evaluation mode during the call; sums are accumulated in float64.
    """
    was_training = model.training
    model.eval()
    totals: dict[str, float] = {}
    try:
        with torch.inference_mode():
            for start in range(0, len(examples), batch):
                some = examples[start : start + batch]
                outputs = model(some.x)
                values = {"loss": task.loss(outputs, some.y), **task.metrics(outputs, some.y)}
                for name, each in values.items():
                    totals[name] = totals.get(name, 0.0) + float(each.double().sum())
    finally:
        model.train(was_training)
    return {name: total / len(examples) for name, total in totals.items()}
