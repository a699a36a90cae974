"""Checks, on a few rows before a run, that a task fulfils `fedsys.tasks.base.Task`.

A faulty task fails here, in one line that names the member, what it returned and what it has to
return, and not deep inside a training path.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fedsys.errors import ConfigError, DataError, FedsysError
from fedsys.tasks.base import FederatedData, Task, seeded
from fedsys.tasks.examples import Examples, Values, parts_of
from fedsys.tasks.modelling import conformed, init_model
from fedsys.tasks.per_example import check_metric_names, check_rows, check_values

__all__ = ["check_contract", "check_test_rows"]

_TRAINED = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_ROWS = 3
_MOST_ROWS = 48
_MOST_LABELS = 64
_BYTES_AT_ONCE = 1 << 24


def check_contract(task: Task, data: FederatedData, seed: int) -> None:
    """Make a model, and evaluate loss and metrics on a few rows of training and of test examples.

    Args:
        task: the task to check.
        data: the task's data.
        seed: the job's seed.

    Raises:
        ConfigError: a member fails; the message says what it returned and what it has to return.
    """
    model = _called(task, "init_model", lambda: init_model(task, seed, data.train))
    _check_parameters(task, model)
    train, test = conformed(model, data.train), conformed(model, data.test)
    for rows in (1, min(_ROWS, len(test))):
        _check_outputs(task, model, test[:rows].map(Tensor.clone))
    for called, examples in (("training", train), ("test", test)):
        _check_each_row(task, model, examples, called)
    _check_trains(task, model, train)


def check_test_rows(task: Task, test: Examples) -> None:
    """One test input that is not finite makes every evaluation NaN.

    Raises:
        DataError: names the first such example.
    """
    row = sum(part[:1].numel() * part.itemsize for part in test.parts)
    at_once = max(1, _BYTES_AT_ONCE // max(row, 1))
    for start in range(0, len(test), at_once):
        bad = torch.nonzero(~test[start : start + at_once].finite())
        if len(bad):
            raise DataError(
                f"task {task.name}: test example {start + int(bad[0])} is not finite, so every "
                f"evaluation would be NaN; leave such examples out, or set evaluation.data = 'none'"
            )


def _check_parameters(task: Task, model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.dtype not in _TRAINED:
            raise ConfigError(
                f"task {task.name}: init_model's parameter {name} is {_kind(parameter)}; what is "
                f"trained is float32, float64, float16 or bfloat16: convert it, or freeze it"
            )


def _check_outputs(task: Task, model: nn.Module, examples: Examples) -> None:
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            outputs = _called(task, "model", lambda: model(examples.x), examples)
            if isinstance(outputs, Tensor) and isinstance(examples.y, Tensor):
                if outputs.ndim > 1:
                    _check_labels(task, outputs[:1], examples.y, "test")
                _check_kind_of_labels(task, outputs, examples.y)
            loss = _called(task, "loss", lambda: task.loss(outputs, examples.y), examples)
            _check_each(task, "loss", loss, len(examples))
            found = _called(task, "metrics", lambda: task.metrics(outputs, examples.y), examples)
            if not isinstance(found, dict):
                raise ConfigError(
                    f"task {task.name}: metrics returned {type(found).__name__}; it has to return "
                    f"a dict of tensors"
                )
            check_metric_names(task.name, list(found))
            for name, values in found.items():
                _check_each(task, f"metric {name!r}", values, len(examples))
    finally:
        model.train(was_training)


def _check_each_row(task: Task, model: nn.Module, examples: Examples, called: str) -> None:
    """Loss and metrics of row i are floating, finite, and come from row i alone; the loss takes
    every label; and nothing writes into the examples."""
    some = _spread(examples, _MOST_ROWS)
    some = some[some.finite()]
    if not len(some):
        return
    before = some.map(Tensor.clone)
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            outputs = _called(task, "model", lambda: model(some.x), some)
            _check_unchanged(task, "model", before, some)
            if isinstance(outputs, Tensor) and outputs.ndim > 1 and isinstance(some.y, Tensor):
                _check_labels(task, outputs[:1], examples.y, called)

            def each(outputs: Any, targets: Values) -> dict[str, Tensor]:
                loss = _called(task, "loss", lambda: task.loss(outputs, targets), some)
                found = _called(task, "metrics", lambda: task.metrics(outputs, targets), some)
                return {"loss": loss} | {f"metric {name!r}": it for name, it in found.items()}

            found = each(outputs, some.y)
            _check_unchanged(task, "loss, or one of the metrics,", before, some)
            for what, values in found.items():
                _check_each(task, what, values, len(some))
                check_values(task.name, what, values)
            check_rows(task.name, each, outputs, some.y)
    finally:
        model.train(was_training)


def _check_unchanged(task: Task, what: str, before: Examples, after: Examples) -> None:
    """An example has to be the same the next time."""
    if not all(map(torch.equal, before.parts, after.parts)):
        raise ConfigError(
            f"task {task.name}: {what} writes into the examples that it is given, which are needed "
            f"again as they are: leave out inplace=True on the first layer, x -= ... and the like"
        )


def _check_labels(task: Task, output: Tensor, labels: Tensor, called: str) -> None:
    """Each label that the model has no output for is tried once: whether the loss takes it (as
    one to be ignored, say) is known to the loss alone."""
    classes = output.shape[1]
    if labels.dtype != torch.int64:
        return
    strange = torch.unique(labels[(labels < 0) | (labels >= classes)])
    for label in strange[:_MOST_LABELS].tolist():
        row = int(torch.nonzero(labels == label)[0, 0])
        try:
            task.loss(output, labels[row : row + 1].clone())
        except (Exception, SystemExit) as error:  # whatever a user's code raises
            raise DataError(
                f"task {task.name}: {called} example {row} has the label {label}, which loss does "
                f"not take ({type(error).__name__}); the model has {classes} outputs, for labels 0 "
                f"to {classes - 1}: correct the label, or give the model more outputs"
            ) from error


def _check_kind_of_labels(task: Task, outputs: Tensor, labels: Tensor) -> None:
    """Labels of a kind that the loss does not take, though it takes them after a conversion."""
    try:
        task.loss(outputs, labels)
    except (Exception, SystemExit) as error:  # whatever a user's code raises
        for kind in (torch.int64, outputs.dtype):
            converted = labels.to(kind)
            if labels.dtype == kind or not torch.equal(converted.to(labels.dtype), labels):
                continue
            try:
                task.loss(outputs, converted)
            except (Exception, SystemExit):  # the first error is the one to report
                continue
            name = str(kind).removeprefix("torch.")
            raise DataError(
                f"task {task.name}: the targets are {_kind(labels)}, which loss does not take "
                f"({type(error).__name__}) though it takes {name}: give y.to(torch.{name})"
            ) from error


def _check_trains(task: Task, model: nn.Module, examples: Examples) -> None:
    """The loss has a gradient."""
    some = _spread(examples, _ROWS)
    with seeded(0):
        outputs = _called(task, "model", lambda: model(some.x), some)
        loss = _called(task, "loss", lambda: task.loss(outputs, some.y), some)
    trainable = [each for each in model.parameters() if each.requires_grad]
    if trainable and not loss.requires_grad:
        raise ConfigError(
            f"task {task.name}: loss depends on no trainable parameter of the model; leave "
            f"detach(), item() and no_grad() out of the model and the loss"
        )


def _spread(examples: Examples, most: int) -> Examples:
    """Rows from all over, so that they belong to several clients."""
    count = min(most, len(examples))
    rows = torch.linspace(0, len(examples) - 1, count, dtype=torch.float64).long()
    return examples.take(rows)


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
    except (Exception, SystemExit) as error:  # whatever a user's code raises
        given = ""
        if examples is not None:
            given = f" on inputs {_kinds(examples.x)} and targets {_kinds(examples.y)}"
        words = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"task {task.name}: {member} failed{given}: {type(error).__name__}: {words}"
        ) from error


def _kinds(values: Values) -> str:
    if isinstance(values, dict):
        return ", ".join(f"{name} {_kind(part)}" for name, part in values.items())
    return ", ".join(_kind(part) for part in parts_of(values))


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
