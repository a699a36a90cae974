"""What a task's own code raises, and what it hands over, ends in one line."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from fedsys.errors import ConfigError, DataError
from fedsys.tasks import DataSource, Examples, FederatedData, check_contract, read_data, seeded


def held(**changed: Any) -> FederatedData:
    rng = np.random.default_rng(0)
    parts: dict[str, Any] = {"x": rng.normal(size=(20, 4)), "y": np.arange(20) % 2, **changed}
    natural = parts.pop("natural", None)
    return FederatedData(train=Examples(**parts), test=Examples(**parts), natural=natural)


class Task:
    """Right in everything."""

    name = "mine"

    def init_model(self, seed: int) -> nn.Module:
        with seeded(seed):
            return nn.Linear(4, 2)

    def loss(self, outputs: Any, targets: Any) -> Any:
        return functional.cross_entropy(outputs, targets, reduction="none")

    def metrics(self, outputs: Any, targets: Any) -> Any:
        return {"accuracy": (outputs.argmax(1) == targets).float()}

    def clients(self, source: DataSource) -> Any:
        return held()


class Lazy(Task):
    def init_model(self, seed: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.LazyLinear(2))


class Double(Task):
    def init_model(self, seed: int) -> nn.Module:
        return nn.Linear(4, 2).double()


class Half(Task):
    def init_model(self, seed: int) -> nn.Module:
        return nn.Linear(4, 2).bfloat16()


class Eight(Task):
    def init_model(self, seed: int) -> nn.Module:
        return nn.Linear(4, 2).to(torch.float8_e5m2)


class NoModel(Task):
    def init_model(self, seed: int) -> Any:
        return torch.zeros(4, 2)


class Broken(Task):
    def init_model(self, seed: int) -> Any:
        raise KeyError("width")


class Leaves(Task):
    def init_model(self, seed: int) -> Any:
        raise SystemExit(0)


class MeanLoss(Task):
    def loss(self, outputs: Any, targets: Any) -> Any:
        return functional.cross_entropy(outputs, targets)


class FloatMetric(Task):
    def metrics(self, outputs: Any, targets: Any) -> Any:
        return {"accuracy": float((outputs.argmax(1) == targets).float().mean())}


class MeanMetric(Task):
    def metrics(self, outputs: Any, targets: Any) -> Any:
        return {"accuracy": (outputs.argmax(1) == targets).float().mean()}


class OneMetric(Task):
    def metrics(self, outputs: Any, targets: Any) -> Any:
        return (outputs.argmax(1) == targets).float()


class Broadcast(Task):
    def loss(self, outputs: Any, targets: Any) -> Any:
        return (outputs[:, :1] - targets).square()


class WritesInputs(Task):
    def init_model(self, seed: int) -> nn.Module:
        return nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 2))


class WritesTargets(Task):
    def loss(self, outputs: Any, targets: Any) -> Any:
        return super().loss(outputs, targets.sub_(1).abs_())


class Narrow(Task):
    def init_model(self, seed: int) -> nn.Module:
        return nn.Linear(5, 2)


@pytest.mark.parametrize(
    "task", [Task(), Lazy(), Double(), Half()], ids=lambda it: type(it).__name__
)
def test_a_task_that_keeps_to_it(task: Task) -> None:
    check_contract(task, read_data(task, DataSource()), 0)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (Eight(), r"init_model's parameter weight is float8_e5m2 \(2, 4\); what is trained is"),
        (NoModel(), "init_model returned Tensor"),
        (Broken(), "init_model failed: KeyError: 'width'"),
        (Leaves(), "init_model failed: SystemExit: 0"),
        (MeanLoss(), r"loss of 1 examples has shape \(\); it has to be \(1,\)"),
        (FloatMetric(), "metric 'accuracy' is a float; it has to be a tensor"),
        (MeanMetric(), r"metric 'accuracy' of 1 examples has shape \(\)"),
        (OneMetric(), "metrics returned Tensor; it has to return a dict"),
        (Broadcast(), r"loss of 1 examples has shape \(1, 1\)"),
        (WritesInputs(), "model writes into the examples that it is given, .* inplace=True"),
        (WritesTargets(), "loss, or one of the metrics, writes into the examples"),
        (Narrow(), r"model failed on inputs float32 \(1, 4\) and targets int64 \(1,\): RuntimeEr"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Task) else "",
)
def test_what_people_hand_over_at_first(task: Task, message: str) -> None:
    data = held()
    with pytest.raises(ConfigError, match=f"task mine: {message}"):
        check_contract(task, data, 0)
    for part, untouched in zip(data.test.parts, held().test.parts, strict=True):
        assert torch.equal(part, untouched)


def test_arrays_and_short_integers_are_taken() -> None:
    data = held(y=np.arange(20, dtype=np.int32) % 2)
    assert (data.train.x.dtype, data.train.y.dtype) == (torch.float32, torch.int64)
    assert held(x=np.zeros((20, 4), ">f4")).train.x.dtype == torch.float32
    assert held(y=torch.arange(20, dtype=torch.int16)).train.y.dtype == torch.int64
    assert held(x=np.zeros((20, 4), np.uint8)).train.x.dtype == torch.uint8
    natural = held(natural=np.arange(20, dtype=np.uint16) % 5).natural
    assert natural is not None
    assert natural.dtype == torch.int64
    whole = held(natural=torch.arange(20.0) % 5).natural
    assert whole is not None
    assert whole.tolist() == (torch.arange(20) % 5).tolist()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x": [[0.0]] * 20}, r"Examples\.x\[0\] is list; it has to be a tensor"),
        ({"x": {}}, r"Examples\.x is an empty dict"),
        ({"x": (torch.zeros(20, 4), torch.zeros(19, 1))}, r"tensors of \[20, 19\] rows"),
        ({"x": torch.tensor(3.0)}, "a tensor of no dimension"),
        ({"y": np.array(["a"] * 20)}, r"Examples\.y is numpy <U1"),
        ({"x": np.array([object()] * 20)}, r"Examples\.x is numpy object"),
        ({"natural": torch.tensor([float("nan")] * 20)}, "example 0 is not a whole number"),
        ({"natural": np.arange(20) / 2}, "example 1 is not a whole number"),
        ({"natural": torch.arange(20) - 1}, "example 0 is below 0"),
        ({"natural": torch.zeros(20, 1)}, "one client per example"),
        ({"natural": np.zeros(19, np.int64)}, "19 client ids for 20 training examples"),
    ],
)
def test_data_that_cannot_be(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        held(**changed)


class Raises(Task):
    def clients(self, source: DataSource) -> Any:
        return int("SECRET")


class Exits(Task):
    def clients(self, source: DataSource) -> Any:
        raise SystemExit(0)


class Nothing(Task):
    def clients(self, source: DataSource) -> Any:
        return None


def test_an_exception_of_the_tasks_code_is_one_line() -> None:
    with pytest.raises(DataError) as refused:
        read_data(Raises(), DataSource())
    assert "task mine could not read its data: ValueError in test_data.py:" in str(refused.value)
    assert "SECRET" in str(refused.value)
    assert isinstance(refused.value.__cause__, ValueError)
    with pytest.raises(DataError, match=r"SystemExit in test_data\.py:\d+: 0; fix the data"):
        read_data(Exits(), DataSource())
    with pytest.raises(DataError, match="clients\\(\\) returned NoneType"):
        read_data(Nothing(), DataSource())


def test_on_a_device_it_quotes_nothing() -> None:
    with pytest.raises(DataError) as refused:
        read_data(Raises(), DataSource(private=True))
    assert "ValueError in test_data.py:" in str(refused.value)
    assert "SECRET" not in str(refused.value)
    assert refused.value.__cause__ is None
