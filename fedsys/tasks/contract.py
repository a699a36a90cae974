"""Checks, on a few rows before a run, that a task fulfils `fedsys.tasks.base.Task`.

A faulty task fails here, in one line that names the member, what it returned and what it has to
return, and not deep inside a training path.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fedsys.errors import ConfigError, FedsysError
from fedsys.tasks.base import Examples, FederatedData, Task

__all__ = ["check_contract"]

_ROWS = 3


def check_contract(task: Task, data: FederatedData, seed: int) -> None:
    """Make a model, and evaluate loss and metrics on a few test rows.

    Args:
        task: the task to check.
        data: the task's data.
        seed: the job's seed.

    Raises:
        ConfigError: a member fails; the message says what it returned and what it has to return.
    """
    model = _called(task, "init_model", lambda: task.init_model(seed))
    if not isinstance(model, nn.Module):
        raise ConfigError(
            f"task {task.name}: init_model returned {type(model).__name__}; it has to return a "
            f"torch.nn.Module"
        )
    _check_parameters(task, model)
    for rows in (1, min(_ROWS, len(data.test))):
        _check_outputs(task, model, Examples(x=data.test.x[:rows], y=data.test.y[:rows]))


def _check_parameters(task: Task, model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if is_lazy(parameter):
            raise ConfigError(
                f"task {task.name}: init_model's parameter {name} is lazy and has no shape yet; "
                f"give its size, or call the model with one example inside init_model"
            )
        if parameter.dtype != torch.float32:
            raise ConfigError(
                f"task {task.name}: init_model's parameter {name} is {_kind(parameter)}; models "
                f"train as float32: leave the conversion out, and convert inside forward"
            )


def _check_outputs(task: Task, model: nn.Module, examples: Examples) -> None:
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            outputs = _called(task, "model", lambda: model(examples.x), examples)
            loss = _called(task, "loss", lambda: task.loss(outputs, examples.y), examples)
            _check_each(task, "loss", loss, len(examples))
            found = _called(task, "metrics", lambda: task.metrics(outputs, examples.y), examples)
            if not isinstance(found, dict):
                raise ConfigError(
                    f"task {task.name}: metrics returned {type(found).__name__}; it has to return "
                    f"a dict of tensors"
                )
            for name, values in found.items():
                _check_each(task, f"metric {name!r}", values, len(examples))
    finally:
        model.train(was_training)


def _check_each(task: Task, what: str, values: Any, rows: int) -> None:
    if not isinstance(values, Tensor):
        raise ConfigError(
            f"task {task.name}: {what} is a {type(values).__name__}; it has to be a tensor with "
            f"one value per example, not yet averaged"
        )
    if tuple(values.shape) != (rows,):
        raise ConfigError(
            f"task {task.name}: {what} of {rows} examples has shape {tuple(values.shape)}; it has "
            f'to be ({rows},), one value per example: reduction = "none", and no mean'
        )


def _called(
    task: Task, member: str, call: Callable[[], Any], examples: Examples | None = None
) -> Any:
    try:
        return call()
    except FedsysError:
        raise
    except Exception as error:  # whatever a user's code raises
        given = ""
        if examples is not None:
            given = f" on inputs {_kind(examples.x)} and targets {_kind(examples.y)}"
        words = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"task {task.name}: {member} failed{given}: {type(error).__name__}: {words}"
        ) from error


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
