"""The textbook's local training, which every path has to equal: slow, and meant to be read."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from client.training.flat import FlatLayout
from client.training.local import LocalConfig
from client.training.schedule import batches
from fedsys.tasks import Examples, Task

__all__ = ["plain_loop"]


def plain_loop(
    task: Task,
    model: nn.Module,
    local: LocalConfig,
    start: Tensor,
    examples: Examples,
    client_rows: Sequence[NDArray[np.int64]],
    seeds: Sequence[int],
) -> Tensor:
    """(K, d) updates by the textbook: ``zero_grad``, ``backward``, ``torch.optim``'s step."""
    layout = FlatLayout.of(model)
    updates = []
    for rows, seed in zip(client_rows, seeds, strict=True):
        own = copy.deepcopy(model).train()
        layout.write(own, start)
        trainable = [p for p in own.parameters() if p.requires_grad]
        begin = [p.detach().clone() for p in trainable]
        optimizer: torch.optim.Optimizer
        if local.optimizer == "adam":
            optimizer = torch.optim.Adam(trainable, lr=local.learning_rate)
        else:
            optimizer = torch.optim.SGD(trainable, lr=local.learning_rate, momentum=local.momentum)
        for batch in batches(rows, seed, local):
            at = torch.from_numpy(batch).to(examples.x.device)
            optimizer.zero_grad()
            loss = task.loss(own(examples.x[at]), examples.y[at]).mean()
            for param, first in zip(trainable, begin, strict=True):
                loss = loss + local.weight_decay / 2 * param.square().sum()
                loss = loss + local.proximal_mu / 2 * (param - first).square().sum()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        updates.append(layout.read(own) - start)
    return torch.stack(updates)
