"""A task's gradient as a file that a device runs without torch and without the task's code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

# Rules register themselves.
from fedsys.tasks.export import elementwise, indexing, layout, windows  # noqa: F401  # isort: skip
from fedsys.errors import ConfigError
from fedsys.graphs import GraphError, Kind, Limits, Vetted, encode, vet
from fedsys.graphs.graph import OUTPUTS, input_names
from fedsys.tasks.base import Examples, Task, seeded
from fedsys.tasks.export.checking import check
from fedsys.tasks.export.lowering import UnsupportedError, lower
from fedsys.tasks.export.tracing import trace, trainable
from fedsys.tasks.modelling import init_model

__all__ = ["export_task"]


def export_task(
    task: Task,
    examples: Examples,
    *,
    name: str,
    options: Mapping[str, Any],
    batch_size: int,
    kind: Kind = "gradient",
    limits: Limits | None = None,
) -> Vetted:
    """Trace, lower, vet and check a task's gradient.

    The same task gives the same bytes: the graph depends on the model's structure and on the
    shapes of the examples, not on weights or data.

    >>> from fedsys.tasks import DataSource, load
    >>> task = load("digits")
    >>> examples = task.clients(DataSource()).train
    >>> made = export_task(task, examples, name="digits", options={}, batch_size=10)
    >>> made.graph.dimension, made.graph.batch_size, len(made.encoded) < 3000
    (650, 10, True)

    Args:
        task: whose gradient.
        examples: for shapes, and to compare graph and torch on.
        name: by which a configuration names the task; it becomes part of the graph, as do
        options: with which the task was built.
        batch_size: B, examples of one step.
        kind: one gradient of the batch, or one an example.
        limits: of a device; a graph that exceeds them is not made.

    Raises:
        ConfigError: names what of the task no graph can say.
    """
    if batch_size < 1:
        raise ConfigError(f"--batch-size {batch_size}: at least 1 is needed")
    rows = torch.arange(batch_size) % len(examples)
    try:
        if not examples.plain:
            raise UnsupportedError("inputs or targets of several tensors")
        x, y = examples.x[rows], examples.y[rows]
        model = init_model(task, 0, examples).train()
        if any(each.dtype != torch.float32 for each in trainable(model).values()):
            raise UnsupportedError("parameters that are not float32")
        if not trainable(model):
            raise UnsupportedError("a model without a trainable parameter")
        _refuse_running_statistics(model)
        with seeded(0):
            module, _ = trace(task, model, x, y, kind)
        graph = lower(
            module,
            kind=kind,
            inputs=input_names(kind, 0),
            outputs=OUTPUTS[kind],
            task=name,
            options=options,
        )
        vetted = vet(encode(graph), limits)
        check(task, model, vetted, examples)
    except UnsupportedError as error:
        raise ConfigError(
            f"task {name} cannot be exported: {error}; devices with torch can run its code"
        ) from None
    except GraphError as error:
        raise ConfigError(f"task {name} cannot be exported: {error}") from None
    return vetted


def _refuse_running_statistics(model: torch.nn.Module) -> None:
    for name, module in model.named_modules():
        if getattr(module, "track_running_stats", False):
            raise UnsupportedError(
                f"the model's {type(module).__name__} {name!r} keeps running statistics"
            )
