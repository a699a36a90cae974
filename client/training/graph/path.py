"""The graph path: the local epoch of K clients, recorded once and replayed for every chunk.

The arithmetic is that of `client.training.batched`, but shapes are fixed, so that a GPU can replay
the epoch as one graph. Chunks are padded to the fixed shapes: a padding client has weight zero in
every loss, and a client that has finished keeps its parameters.

On a CPU the same code runs without a graph, which is how it is tested; not measured on a GPU.
"""

from __future__ import annotations

import math
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from client.training.flat import FlatLayout
from client.training.graph.recorder import Recorder, Work, recorder_for
from client.training.graph.staging import Staging
from client.training.graph.stepper import StaticStepper, step_sizes
from client.training.local import LocalConfig
from client.training.schedule import Schedule
from fedsys.tasks import Examples, Task, seeded
from fedsys.tasks.examples import Values

__all__ = ["Epoch", "Finish", "GraphPath", "roomy"]

LONGEST = 64
"""The most steps of one graph; longer epochs replay it."""

_KEPT = 4
Gradients = Callable[[dict[str, Tensor], Values, Values, Tensor], dict[str, Tensor]]


class Finish(Protocol):
    """Processing of the updates, in the same graph."""

    def bind(self, updates: Tensor, present: Tensor) -> Work:
        """Work over `updates` (K, d) and `present` (K,) bool, false for padding clients, whose rows
        have no meaning. Both tensors stay at their addresses."""
        ...


def roomy(count: int) -> int:
    """`count` rounded up by at most an eighth, so that few shapes serve many counts.

    >>> [roomy(count) for count in (0, 5, 16, 17, 50)]
    [0, 5, 16, 18, 52]
    """
    grain = 1 << max(count.bit_length() - 4, 0)
    return -(-count // grain) * grain


class Epoch:
    """One shape of chunk, recorded: K clients, S steps at once, batches of B.

    Attributes:
        updates: (K, d) the last chunk's updates, in its order; rows of padding clients come last.
        finished: the work that `finish` bound, or None.

    Args:
        gradients: computes the gradients of K clients' losses.
        layout: of the flat vector.
        local: hyper-parameters.
        examples: the pool; its tensors must stay at their addresses.
        like: a tensor with the dtype and device of the weights.
        clients: K.
        steps: S.
        batch: B.
        ragged: whether some clients may finish before the last step.
        whole: whether the S steps are the whole epoch, which is then one graph.
        finish: processes the updates, in the same graph.
        recorder: records the graph.
    """

    def __init__(
        self,
        gradients: Gradients,
        layout: FlatLayout,
        local: LocalConfig,
        examples: Examples,
        like: Tensor,
        *,
        clients: int,
        steps: int,
        batch: int,
        ragged: bool,
        whole: bool,
        finish: Finish | None,
        recorder: Recorder,
    ) -> None:
        self._gradients, self._examples = gradients, examples
        self.clients, self.steps, self.batch = clients, steps, batch
        self.ragged, self.whole = ragged, whole
        self.start = like.new_zeros(layout.dimension)
        self.updates = like.new_zeros((clients, layout.dimension))
        device = like.device
        self.present = torch.zeros(clients, dtype=torch.bool, device=device)
        self._rows = torch.zeros((steps, clients, batch), dtype=torch.int64, device=device)
        self._weights = like.new_zeros((steps, clients, batch))
        self._active = torch.zeros((steps, clients), dtype=torch.bool, device=device)
        self._sizes = like.new_zeros((steps, 2))
        self._params = layout.views(self.updates)
        self._stepper = StaticStepper(
            local, list(layout.views(self.start).values()), list(self._params.values())
        )
        self._staging = Staging(device)
        self.finished = None if finish is None else finish.bind(self.updates, self.present)
        if whole:
            self._all = recorder.record(self._everything)
        else:
            self._some = recorder.record(self._train)

    def run(self, start: Tensor, schedule: Schedule, local: LocalConfig) -> None:
        """Train the schedule's clients; their updates are then in the first rows of `updates`."""
        self.start.copy_(start)
        held = np.zeros(self.clients, dtype=np.bool_)
        held[: schedule.clients] = True
        self._staging.copy(self.present, held)
        if self.whole:
            self._stage(schedule, 0, local)
            self._all()
            return
        self._begin()
        for first in range(0, len(schedule.steps), self.steps):
            self._stage(schedule, first, local)
            self._some()
        self._end()

    def _stage(self, schedule: Schedule, first: int, local: LocalConfig) -> None:
        """Copy the steps from `first` on to the graph's inputs, without waiting for the device."""
        shape = (self.steps, self.clients, self.batch)
        rows, weights = np.zeros(shape, dtype=np.int64), np.zeros(shape)
        active = np.zeros(shape[:2], dtype=np.bool_)
        for at, step in enumerate(schedule.steps[first : first + self.steps]):
            count, width = step.rows.shape
            rows[at, :count, :width] = step.rows
            # Padding repeats a row of the same client, so that no client's damaged data (NaN, say,
            # which a weight of zero does not remove) reaches another client.
            rows[at, :count, width:] = step.rows[:, :1]
            weights[at, :count, :width] = step.weights()
            active[at, :count] = True
        self._staging.copy(self._rows, rows)
        self._staging.copy(self._weights, weights)
        self._staging.copy(self._active, active)
        self._staging.copy(self._sizes, step_sizes(local, first, self.steps))

    def _everything(self) -> None:
        self._begin()
        self._train()
        self._end()

    def _begin(self) -> None:
        self.updates.copy_(self.start.expand_as(self.updates))
        self._stepper.reset()

    def _train(self) -> None:
        shape = (self.clients, self.batch)
        for at in range(self.steps):
            flat = self._rows[at].view(-1)
            some = self._examples.take(flat).map(lambda part: part.view(*shape, *part.shape[1:]))
            grads = self._gradients(self._params, some.x, some.y, self._weights[at])
            self._stepper.take(
                [grads[name] for name in self._params],
                self._sizes[at],
                self._active[at] if self.ragged else None,
            )

    def _end(self) -> None:
        self.updates.sub_(self.start)
        if self.finished is not None:
            self.finished()


class GraphPath:
    """Trains K clients at once, by graphs that are recorded when a shape is first seen.

    Args:
        task: Provides the loss, which must not wait for the device (no ``.item()`` or ``nonzero``).
        model: Provides the forward pass; its own weights are not used.
        local: Hyper-parameters.
        recorder: Records the graphs; by default the one that suits the model's device.
    """

    name = "graph"

    def __init__(
        self, task: Task, model: nn.Module, local: LocalConfig, recorder: Recorder | None = None
    ) -> None:
        self._local = local
        self._layout = layout = FlatLayout.of(model)
        model.train()
        self._device = next(model.parameters()).device
        self._recorder = recorder or recorder_for(self._device)
        self._examples: Examples | None = None
        self._epochs: list[tuple[Finish | None, Epoch]] = []

        def loss_of(params: dict[str, Tensor], x: Values, y: Values, weight: Tensor) -> Tensor:
            outputs = functional_call(model, layout.in_model(params), (x,))
            return (task.loss(outputs, y) * weight).sum()

        self._gradients: Gradients = vmap(grad(loss_of), randomness="different")

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which weights are trained."""
        return self._layout.dtype

    def updates(
        self,
        start: Tensor,
        examples: Examples,
        schedule: Schedule,
        seeds: Sequence[int],
        out: Tensor,
    ) -> None:
        """Write each client's w_local - w_global into `out` (K, d); zeros if it has no examples."""
        if not schedule.steps:
            out.zero_()
            return
        out.copy_(self.run(start, examples, schedule, seeds).updates[: schedule.clients])

    def run(
        self,
        start: Tensor,
        examples: Examples,
        schedule: Schedule,
        seeds: Sequence[int],
        finish: Finish | None = None,
    ) -> Epoch:
        """Train a schedule of at least one step, and do the work that `finish` binds.

        Returns:
            The epoch that holds the updates, until the next call.
        """
        with seeded(seeds[0]), warnings.catch_warnings(), torch.no_grad():
            # vmap warns when it falls back to a loop over clients: slow, but correct.
            warnings.filterwarnings("ignore", message="There is a performance drop")
            try:
                epoch = self._epoch(start, examples, schedule, finish)
                epoch.run(start, schedule, self._local)
            except torch.OutOfMemoryError as error:
                # The frames that failed still hold what they had allocated.
                traceback.clear_frames(error.__traceback__)
                self.release()
                raise
        return epoch

    def release(self) -> None:
        """Free all graphs and their memory."""
        self._epochs = []
        self._examples = None
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _epoch(
        self, start: Tensor, examples: Examples, schedule: Schedule, finish: Finish | None
    ) -> Epoch:
        if self._examples is not examples:
            self.release()
            self._examples = examples
        total = len(schedule.steps)
        batch = max(step.rows.shape[1] for step in schedule.steps)
        parts = math.ceil(total / LONGEST)
        steps = math.ceil(total / parts)
        # Whether every client trains to the last step: then no mask is needed.
        even = int(schedule.lengths.min()) == total and steps * parts == total
        for at, (bound, epoch) in enumerate(self._epochs):
            fits = (
                bound is finish
                and epoch.batch == batch
                and schedule.clients <= epoch.clients <= roomy(schedule.clients) * 5 // 4
                and (epoch.ragged or (even and epoch.steps == steps))
                and epoch.whole == (parts == 1)
                and (steps <= epoch.steps <= max(roomy(steps), steps * 5 // 4))
            )
            if fits:
                self._epochs.append(self._epochs.pop(at))
                return epoch
        del self._epochs[: max(len(self._epochs) - _KEPT + 1, 0)]
        made = Epoch(
            self._gradients,
            self._layout,
            self._local,
            examples,
            start,
            clients=roomy(schedule.clients),
            steps=steps if even else roomy(steps),
            batch=batch,
            ragged=not even,
            whole=parts == 1,
            finish=finish,
            recorder=self._recorder,
        )
        self._epochs.append((finish, made))
        return made
