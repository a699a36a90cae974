"""One step of K clients as tensors: inputs, targets and the weights of the examples' losses."""

from __future__ import annotations

import torch
from torch import Tensor

from client.training.schedule import Step
from fedsys.tasks import Examples
from fedsys.tasks.examples import Values

__all__ = ["examples_of", "gather", "loss_weights"]


def gather(examples: Examples, step: Step, dtype: torch.dtype) -> tuple[Values, Values, Tensor]:
    """One step's inputs (A, B, ...), targets (A, B, ...) and loss weights (A, B)."""
    some = examples.map(lambda part: examples_of(part, step))
    return some.x, some.y, loss_weights(step, dtype, some.device)


def examples_of(values: Tensor, step: Step) -> Tensor:
    """(A, B, ...) one step's rows of `values`, the inputs or targets (M, ...) of all examples."""
    rows = torch.from_numpy(step.rows).to(values.device)
    return values.index_select(0, rows.reshape(-1)).view(*rows.shape, *values.shape[1:])


def loss_weights(step: Step, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(A, B) the weight of each example's loss in its client's mean."""
    return torch.from_numpy(step.weights()).to(device=device, dtype=dtype)
