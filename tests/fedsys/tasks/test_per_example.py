"""Losses and metrics that look right on one row and are not: each is one line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedsys.errors import ConfigError, DataError
from fedsys.tasks import (
    DataSource,
    Examples,
    FederatedData,
    check_contract,
    check_test_rows,
    seeded,
)


def drawn(rows: int = 60, classes: int = 3) -> FederatedData:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, 4, generator=generator)
    y = torch.randint(0, classes, (rows,), generator=generator)
    return FederatedData(
        train=Examples(x=x, y=y), test=Examples(x=x[:20].clone(), y=y[:20].clone())
    )


class Task:
    """Right in everything; siblings change one method."""

    name = "mine"

    def init_model(self, seed: int) -> nn.Module:
        with seeded(seed):
            return nn.Linear(4, 3)

    def loss(self, outputs: Any, targets: Tensor) -> Any:
        return functional.cross_entropy(outputs, targets, reduction="none")

    def metrics(self, outputs: Any, targets: Tensor) -> Any:
        return {"accuracy": (outputs.argmax(1) == targets).float()}

    def clients(self, source: DataSource) -> FederatedData:
        return drawn()


class SpreadMean(Task):
    def loss(self, outputs: Any, targets: Tensor) -> Any:
        return super().loss(outputs, targets).mean().expand(len(targets))


class Divided(Task):
    def loss(self, outputs: Any, targets: Tensor) -> Any:
        return super().loss(outputs, targets) / len(targets)


class BatchNormalised(Task):
    def loss(self, outputs: Any, targets: Tensor) -> Any:
        return super().loss(outputs - outputs.mean(0), targets)


class Broadcast(Task):
    """(B, 1) outputs against (B,) targets, and the mean hides it."""

    def init_model(self, seed: int) -> nn.Module:
        with seeded(seed):
            return nn.Linear(4, 1)

    def loss(self, outputs: Any, targets: Tensor) -> Any:
        return (outputs - targets).square().mean(1)

    def metrics(self, outputs: Any, targets: Tensor) -> Any:
        return {}


class Contrastive(Task):
    def loss(self, outputs: Any, targets: Tensor) -> Any:
        near = outputs @ outputs.T
        return functional.cross_entropy(near, torch.arange(len(near)), reduction="none")


class SpreadMetric(Task):
    def metrics(self, outputs: Any, targets: Tensor) -> Any:
        return {"accuracy": (outputs.argmax(1) == targets).float().mean().repeat(len(targets))}


class FirstRows(Task):
    def metrics(self, outputs: Any, targets: Tensor) -> Any:
        return {"rank": outputs[:, 0].argsort().float()}


class Truth(Task):
    def metrics(self, outputs: Any, targets: Tensor) -> Any:
        return {"accuracy": outputs.argmax(1) == targets}


class Endless(Task):
    def metrics(self, outputs: Any, targets: Tensor) -> Any:
        return {"ratio": 1.0 / (targets.float() - 1.0)}


class LogOfZero(Task):
    def loss(self, outputs: Any, targets: Tensor) -> Any:
        return torch.log(outputs[:, 0])


class Detached(Task):
    def loss(self, outputs: Any, targets: Tensor) -> Any:
        return functional.cross_entropy(outputs.detach(), targets, reduction="none")


class Named(Task):
    def __init__(self, name: Any) -> None:
        self._metric = name

    def metrics(self, outputs: Any, targets: Tensor) -> Any:
        return {self._metric: torch.ones(len(targets))}


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (SpreadMean(), "loss of row 0 goes from .* when the other 47 rows change"),
        (Divided(), "loss of row 0 goes from .* in a batch of its own instead of 48 rows"),
        (BatchNormalised(), "loss of row 0 goes from .* when the other 47 rows change"),
        (Broadcast(), "loss of row 0 goes from .*broadcasts"),
        (Contrastive(), "loss of row 0 goes from "),
        (SpreadMetric(), "metric 'accuracy' of row 0 goes from "),
        (FirstRows(), "metric 'rank' is int64|metric 'rank' of row 0 goes from "),
        (Truth(), r"metric 'accuracy' is bool; it has to be floating point: append \.float\(\)"),
        (Endless(), r"metric 'ratio' of row \d+ of 48 is inf, though its inputs"),
        (LogOfZero(), r"loss of row \d+ of 48 is nan, though its inputs and targets are finite"),
        (Detached(), "loss depends on no trainable parameter"),
        (Named("loss"), "metrics has the name 'loss', which every run's history has already"),
        (Named("round"), "metrics has the name 'round'"),
        (Named("epsilon_server"), "metrics has the name 'epsilon_server'"),
        (Named(""), "metrics has the name ''; names are printable text"),
        (Named(3), "metrics has the name 3; names are printable text"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Task) else "",
)
def test_what_is_not_per_example_is_one_line(task: Task, message: str) -> None:
    with pytest.raises(ConfigError, match=f"task mine: {message}") as refused:
        check_contract(task, drawn(), 0)
    assert "\n" not in str(refused.value)


class BatchLayer(Task):
    """A layer may look at its batch: the paths answer for that, the loss does not."""

    def init_model(self, seed: int) -> nn.Module:
        with seeded(seed):
            return nn.Sequential(
                nn.Unflatten(1, (1, 2, 2)),
                nn.BatchNorm2d(1, track_running_stats=False),
                nn.Flatten(),
                nn.Linear(4, 3),
            )


class Noisy(Task):
    def init_model(self, seed: int) -> nn.Module:
        class Sampled(nn.Linear):
            def forward(self, input: Tensor) -> Tensor:
                return super().forward(input) + torch.randn(len(input), 3)

        with seeded(seed):
            return Sampled(4, 3)


class Probabilities(Task):
    """A loss that refuses outputs outside [0, 1]."""

    def init_model(self, seed: int) -> nn.Module:
        with seeded(seed):
            return nn.Sequential(nn.Linear(4, 3), nn.Sigmoid())

    def loss(self, outputs: Any, targets: Tensor) -> Any:
        wanted = functional.one_hot(targets, 3).float()
        return functional.binary_cross_entropy(outputs, wanted, reduction="none").mean(1)


class Several(Task):
    """Outputs in a dict of a tuple."""

    def init_model(self, seed: int) -> nn.Module:
        class Heads(nn.Linear):
            def forward(self, input: Tensor) -> Mapping[str, Any]:  # type: ignore[override]
                return {"heads": (super().forward(input), input)}

        with seeded(seed):
            return Heads(4, 3)

    def loss(self, outputs: Any, targets: Tensor) -> Any:
        return super().loss(outputs["heads"][0], targets)

    def metrics(self, outputs: Any, targets: Tensor) -> Any:
        return super().metrics(outputs["heads"][0], targets)


@pytest.mark.parametrize(
    "task",
    [Task(), BatchLayer(), Noisy(), Probabilities(), Several()],
    ids=lambda it: type(it).__name__,
)
def test_what_is_per_example_is_taken(task: Task) -> None:
    check_contract(task, drawn(), 0)


def test_a_mean_inside_nested_outputs_is_found() -> None:
    class Mean(Several):
        def loss(self, outputs: Any, targets: Tensor) -> Any:
            return super().loss(outputs, targets).mean().expand(len(targets))

    with pytest.raises(ConfigError, match="loss of row 0 goes from"):
        check_contract(Mean(), drawn(), 0)


@pytest.mark.parametrize("label", [3, 9, -1])
@pytest.mark.parametrize("row", [0, 17])
@pytest.mark.parametrize("part", ["train", "test"])
def test_a_label_without_an_output_is_found_wherever_it_is(part: str, row: int, label: int) -> None:
    held = drawn(400)
    examples = getattr(held, part)
    examples.y[row] = label
    word = {"train": "training", "test": "test"}[part]
    match = f"task mine: {word} example {row} has the label {label}, .*labels 0 to 2"
    with pytest.raises(DataError, match=match):
        check_contract(Task(), held, 0)


class Binary(Task):
    def loss(self, outputs: Any, targets: Tensor) -> Any:
        return functional.binary_cross_entropy_with_logits(outputs[:, 0], targets, reduction="none")


@pytest.mark.parametrize(
    ("task", "given", "taken"),
    [(Task(), torch.float32, "int64"), (Binary(), torch.int64, "float32")],
)
def test_targets_of_another_kind_are_named_with_the_conversion(
    task: Task, given: torch.dtype, taken: str
) -> None:
    held = drawn(classes=2)
    parts = [Examples(x=each.x, y=each.y.to(given)) for each in (held.train, held.test)]
    match = rf"targets are {str(given)[6:]} .*give y\.to\(torch\.{taken}\)"
    with pytest.raises(DataError, match=match):
        check_contract(task, FederatedData(train=parts[0], test=parts[1]), 0)


def test_targets_that_no_conversion_helps_keep_their_error() -> None:
    class Broken(Task):
        def loss(self, outputs: Any, targets: Tensor) -> Any:
            raise ValueError("no loss today")

    with pytest.raises(ConfigError, match=r"loss failed on .*no loss today"):
        check_contract(Broken(), drawn(), 0)


def test_a_label_that_the_loss_ignores_is_no_mistake() -> None:
    held = drawn(400)
    held.train.y[17] = -100  # torch's ignore_index
    check_contract(Task(), held, 0)


def test_training_rows_may_be_damaged_and_test_rows_may_not() -> None:
    held = drawn()
    held.train.x[0, 0] = torch.nan
    check_contract(Task(), held, 0)
    check_test_rows(Task(), drawn().test)
    held.test.x[7, 2] = torch.inf
    with pytest.raises(DataError, match="test example 7 is not finite, so every evaluation"):
        check_test_rows(Task(), held.test)
