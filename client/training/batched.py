"""The batched path: K clients in one call through ``torch.func.vmap``, for any pure module."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from client.training.flat import FlatLayout
from client.training.local import LocalConfig
from client.training.optimizer import Stepper
from client.training.schedule import Schedule
from client.training.step_tensors import gather
from fedsys.tasks import Examples, Task, seeded
from fedsys.tasks.examples import Values

__all__ = ["BatchedPath"]


class BatchedPath:
    """Trains K clients at once; the weights of each are one slice of stacked tensors.

    Args:
        task: Provides the loss.
        model: Provides the forward pass; its own weights are not used.
        local: Hyper-parameters.
    """

    name = "batched"

    def __init__(self, task: Task, model: nn.Module, local: LocalConfig) -> None:
        self._local = local
        self._layout = layout = FlatLayout.of(model)
        model.train()

        def loss_of(params: dict[str, Tensor], x: Values, y: Values, weight: Tensor) -> Tensor:
            outputs = functional_call(model, layout.in_model(params), (x,))
            return (task.loss(outputs, y) * weight).sum()

        self._gradients = vmap(grad(loss_of), randomness="different")

    def updates(
        self,
        start: Tensor,
        examples: Examples,
        schedule: Schedule,
        seeds: Sequence[int],
        out: Tensor,
    ) -> None:
        """Write each client's w_local - w_global into `out` (K, d); zeros if it has no examples."""
        clients = schedule.clients
        begin = self._layout.views(start)
        params = {name: view.expand(clients, *view.shape).clone() for name, view in begin.items()}
        stepper = Stepper(self._local, list(begin.values()), list(params.values()))
        with seeded(seeds[0] if seeds else 0), warnings.catch_warnings(), torch.no_grad():
            # vmap warns when it falls back to a loop over clients: slow, but correct.
            warnings.filterwarnings("ignore", message="There is a performance drop")
            for step in schedule.steps:
                active = len(step.counts)
                x, y, weight = gather(examples, step, start.dtype)
                now = {name: param[:active] for name, param in params.items()}
                grads = self._gradients(now, x, y, weight)
                stepper.step([grads[name] for name in params], active)
            torch.cat([param.reshape(clients, -1) for param in params.values()], dim=1, out=out)
            out -= start
