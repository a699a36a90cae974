"""The loop path: one client after the other, for any module and for large convolutions on a CPU.

The weights live in the module itself and are reset between clients; gradients come directly from
autograd, without an optimizer object, ``zero_grad`` or ``state_dict`` copies.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from client.training.buffers import UnwrittenBuffers
from client.training.flat import FlatLayout
from client.training.local import LocalConfig
from client.training.optimizer import Stepper
from client.training.schedule import Schedule
from fedsys.tasks import Examples, Task, seeded
from fedsys.tasks.examples import transformed

__all__ = ["LoopPath"]


class LoopPath:
    """Trains clients one by one on one model.

    Args:
        task: Provides the loss.
        model: Trained in place; its weights before and after have no meaning.
        local: Hyper-parameters.
    """

    name = "loop"

    def __init__(self, task: Task, model: nn.Module, local: LocalConfig) -> None:
        self._task, self._model, self._local = task, model, local
        self._layout = FlatLayout.of(model)
        parameters = dict(model.named_parameters())
        self._params = [parameters[name] for name in self._layout.names]
        # A CPU's convolutions and, above all, its pooling are faster in channels-last layout.
        self._images_last = any(isinstance(each, nn.Conv2d) for each in model.modules())
        if self._images_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._masters = [
            param.detach()
            if param.dtype == self._layout.dtype
            else param.detach().to(self._layout.dtype)
            for param in self._params
        ]
        self._buffers = UnwrittenBuffers(model)

    def updates(
        self,
        start: Tensor,
        examples: Examples,
        schedule: Schedule,
        seeds: Sequence[int],
        out: Tensor,
    ) -> None:
        """Write each client's w_local - w_global into `out` (K, d); zeros if it has no examples."""
        begin = list(self._layout.views(start).values())
        rows = [torch.from_numpy(step.rows) for step in schedule.steps]
        self._model.train()
        for client, length in enumerate(schedule.lengths.tolist()):
            if not length:
                out[client] = 0
                continue
            for master, view in zip(self._masters, begin, strict=True):
                master.copy_(view)
            self._round()
            stepper = Stepper(self._local, begin, self._masters)
            with seeded(seeds[client]):
                for number in range(length):
                    real = int(schedule.steps[number].counts[client])
                    self._step(examples, rows[number][client, :real], stepper)
            self._buffers.check()
            for master, view in zip(
                self._masters, self._layout.views(out[client]).values(), strict=True
            ):
                view.copy_(master)
            out[client] -= start

    def _round(self) -> None:
        """The parameters of 16 bits become their masters, rounded; all others are their own."""
        if self._layout.uniform:
            return
        with torch.no_grad():
            for param, master in zip(self._params, self._masters, strict=True):
                if param.dtype != master.dtype:
                    param.copy_(master)

    def _step(self, examples: Examples, rows: Tensor, stepper: Stepper) -> None:
        some = examples.take(rows)
        x = transformed(some.x, _channels_last) if self._images_last else some.x
        loss = self._task.loss(self._model(x), some.y).mean()
        grads = torch.autograd.grad(loss, self._params, allow_unused=True)
        with torch.no_grad():
            stepper.step(
                [
                    torch.zeros_like(master) if grad is None else grad.to(master.dtype)
                    for master, grad in zip(self._masters, grads, strict=True)
                ]
            )
        self._round()


def _channels_last(part: Tensor) -> Tensor:
    return part.contiguous(memory_format=torch.channels_last) if part.dim() == 4 else part
