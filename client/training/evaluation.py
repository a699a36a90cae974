"""Loss and metrics of one set of weights over held-out examples."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from fedsys.tasks import Examples, Task
from fedsys.tasks.examples import transformed

__all__ = ["evaluate"]

BATCH = 512


def evaluate(
    task: Task,
    model: nn.Module,
    examples: Examples,
    batch: int = BATCH,
    whole: Mapping[str, Callable[[Tensor, Tensor], float]] | None = None,
) -> dict[str, float]:
    """The means over all examples of ``loss`` and of each of the task's metrics, and what each of
    `whole` gives for the outputs and targets of all examples together.

    The model is in evaluation mode during the call; sums are accumulated in float64. The task's
    code gets copies of the rows: what it writes into them does not reach `examples`.
    """
    was_training = model.training
    model.eval()
    totals: dict[str, float] = {}
    kept: list[Tensor] = []
    try:
        with torch.inference_mode():
            for start in range(0, len(examples), batch):
                some = examples[start : start + batch].map(Tensor.clone)
                outputs = model(some.x)
                if whole:
                    kept.append(outputs.cpu())
                values = {"loss": task.loss(outputs, some.y), **task.metrics(outputs, some.y)}
                for name, each in values.items():
                    totals[name] = totals.get(name, 0.0) + float(each.double().sum())
    finally:
        model.train(was_training)
    found = {name: total / len(examples) for name, total in totals.items()}
    if whole:
        outputs = torch.cat(kept)
        targets = transformed(examples.y, lambda part: part.to("cpu", copy=True))
        found |= {name: figure(outputs, targets) for name, figure in whole.items()}
    return found
