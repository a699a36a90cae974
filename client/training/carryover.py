"""Does training one client leave something behind that reaches the next one's update?

Clients of one process share a model object and a task object. What `forward` or `loss` writes into
them (a running mean in a buffer, a moving average in an attribute) would carry one client's data
into another's update, where clipping and noise no longer account for it, and would make a model
depend on how many processes trained it.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from client.training.flat import FlatLayout
from client.training.local import LocalConfig
from client.training.loop import LoopPath
from client.training.schedule import build
from client.training.selfcheck import GENTLE, spread_rows
from fedsys.errors import FedsysError, TrainingError
from fedsys.tasks import Examples, Task

__all__ = ["refuse_carryover"]

_TOLERANCE = 1e-5
_BATCH = 8
_TORCHS = frozenset(vars(nn.Module()))
_MOST_NAMED = 3
_MOST_BYTES = 1 << 20


def refuse_carryover(task: Task, model: nn.Module, local: LocalConfig, examples: Examples) -> None:
    """Train one client before and after another on the loop path; its updates must be equal.

    Raises:
        TrainingError: they are not; names the modules whose buffers or attributes were written.
    """
    twin = copy.deepcopy(model)
    size = min(max(local.batch_size, 2), _BATCH)
    short = replace(
        local, batch_size=size, epochs=1, learning_rate=min(local.learning_rate, GENTLE)
    )
    some = spread_rows(examples, 2 * size)
    if not len(some):
        return
    there = np.arange(2 * size, dtype=np.int64) % len(some)
    path, start = LoopPath(task, twin, short), FlatLayout.of(twin).read(twin)

    def update(rows: Any) -> Tensor:
        out = start.new_empty((1, len(start)))
        path.updates(start, some, build([rows], [11], short), [11], out)
        return out

    try:
        before = update(there[:size])
        held = _state(task, twin)
        update(there[size:])
        written = _written(held, _state(task, twin))
        after = update(there[:size])
    except FedsysError:
        raise
    except (Exception, SystemExit):
        return  # whatever a user's code raises; real training names the client that fails
    scale = float(torch.nan_to_num(before).abs().max())
    worst = float(torch.nan_to_num(after - before).abs().max())
    if worst <= _TOLERANCE * max(scale, 1e-6):
        return
    where = (
        f"{' and '.join(written[:_MOST_NAMED])} changed while it trained; compute it from the "
        f"batch alone, or leave it out"
        if written
        else "its model or loss keeps state outside its modules, or draws from another generator "
        "than torch's; keep none, and draw from torch's"
    )
    raise TrainingError(
        f"task {task.name}: a client's update changes by up to {worst:.1e} (updates are up to "
        f"{scale:.1e}) when another client trains before it: {where}"
    )


def _state(task: Task, model: nn.Module) -> dict[str, Any]:
    """What `forward` and `loss` could write, by what to call it."""
    found: dict[str, Any] = {}
    for name, module in model.named_modules():
        of = f"the {type(module).__name__} {name!r}"
        for key, value in module.named_buffers(recurse=False):
            found[f"buffer {key!r} of {of}"] = _kept(value)
        for key, value in vars(module).items():
            if key not in _TORCHS:
                found[f"attribute {key!r} of {of}"] = _kept(value)
    for key, value in getattr(task, "__dict__", {}).items():
        found[f"attribute {key!r} of the task"] = _kept(value)
    return found


def _kept(value: Any, depth: int = 3) -> Any:
    """Something that tells whether `value` was written since; large arrays are not copied."""
    if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
        return ("tensor", _Same(value), 0 if value.is_inference() else value._version)
    if isinstance(value, np.ndarray) and value.nbytes <= _MOST_BYTES:
        return ("array", _Same(value), value.tobytes())
    if isinstance(value, (bool, int, float, complex, str, bytes, type(None))):
        return (type(value), repr(value))
    if depth and isinstance(value, (list, tuple)):
        return (type(value), tuple(_kept(each, depth - 1) for each in value))
    if depth and isinstance(value, dict):
        return (
            type(value),
            tuple((repr(key), _kept(each, depth - 1)) for key, each in value.items()),
        )
    return ("object", _Same(value))


class _Same:
    """Equal to itself holding the same object, which it keeps alive so that no other takes its
    place in memory."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self._value is other._value

    __hash__ = None  # type: ignore[assignment]


def _written(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    return [name for name in after if name not in before or before[name] != after[name]]
