"""What of a model travels: scalars, shared and frozen parameters, several dtypes."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from client.training.batched import BatchedPath
from client.training.flat import FlatLayout
from client.training.graph.path import GraphPath
from client.training.local import LocalConfig
from client.training.loop import LoopPath
from client.training.schedule import batches, build
from client.training.selfcheck import PathFactory
from client.training.trainer import Trainer
from fedsys.errors import TrainingError
from fedsys.tasks import DataSource, Examples, FederatedData, seeded
from fedsys.tasks.classification import Classification
from tests.client.training.reference import plain_loop

PATHS: dict[str, PathFactory] = {"batched": BatchedPath, "graph": GraphPath, "loop": LoopPath}


class Temperature(nn.Module):
    """A parameter without dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.linear = nn.Parameter(torch.tensor(1.5)), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.linear(x) * self.scale)


class Positions(nn.Module):
    """A constant buffer, as position encodings are."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("waves", torch.sin(torch.arange(6.0)))
        self.linear = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.linear(x + self.get_buffer("waves")))


def tied() -> nn.Module:
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.Linear(6, 3))
    model[2].weight = model[0].weight
    return model


def frozen() -> nn.Module:
    model = nn.Sequential(nn.Linear(6, 40), nn.Tanh(), nn.Linear(40, 3))
    model[0].weight.requires_grad_(False)
    return model


MODELS = {"scalar": Temperature, "tied": tied, "frozen": frozen, "buffer": Positions}


class Own(Classification):
    name = "own"

    def __init__(self, make: object, dtype: torch.dtype = torch.float32) -> None:
        self._make, self._dtype = make, dtype

    def init_model(self, seed: int) -> nn.Module:
        with seeded(seed):
            return self._make().to(self._dtype)  # type: ignore[no-any-return, operator]

    def clients(self, source: DataSource) -> FederatedData:
        return FederatedData(train=examples(), test=examples())


def examples() -> Examples:
    with seeded(3):
        return Examples(x=torch.randn(40, 6), y=torch.randint(0, 3, (40,)))


LOCAL = LocalConfig(epochs=2, batch_size=4, learning_rate=0.3, momentum=0.5, weight_decay=0.01)
ROWS = [np.arange(9), np.arange(9, 16), np.arange(20, 21), np.arange(0)]
SEEDS = [1, 2, 3, 4]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", MODELS)
def test_every_path_equals_the_plain_loop(kind: str, path: str) -> None:
    task = Own(MODELS[kind], torch.float64)
    model, some = task.init_model(0), examples().double()
    start = FlatLayout.of(model).read(model)
    found = start.new_empty((len(ROWS), len(start)))
    PATHS[path](task, copy.deepcopy(model), LOCAL).updates(
        start, some, build(ROWS, SEEDS, LOCAL), SEEDS, found
    )
    expected = plain_loop(task, model, LOCAL, start, some, ROWS, SEEDS)
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("path", ["dual", "batched", "loop"])
def test_a_float64_model_trains_in_float64_from_what_travels(path: str) -> None:
    task = Own(lambda: nn.Linear(6, 3), torch.float64)
    trainer = Trainer(task, LOCAL, path=path, chunk=4)
    weights = trainer.initial_weights()
    assert weights.dtype == np.float32
    found = trainer.train(weights, examples(), ROWS, SEEDS)
    start = torch.from_numpy(weights).double()
    expected = plain_loop(task, task.init_model(0), LOCAL, start, examples().double(), ROWS, SEEDS)
    assert np.array_equal(found, expected.float().numpy())
    assert trainer.state_dict(weights)["weight"].dtype == torch.float64


@pytest.mark.parametrize("path", ["dual", "batched", "loop"])
def test_chunks_of_a_float64_model_add_up(path: str) -> None:
    task = Own(lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)), torch.float64)
    found, whole = (
        Trainer(task, LOCAL, path=path, chunk=chunk).clipped_sum(
            Trainer(task, LOCAL).initial_weights(), examples(), ROWS, SEEDS, clip=0.1
        )
        for chunk in (1, 4)
    )
    np.testing.assert_allclose(found.total, whole.total, rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.norms, whole.norms, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("path", ["batched", "loop"])
def test_parameters_of_16_bits_train_as_float32_masters(path: str, dtype: torch.dtype) -> None:
    task = Own(lambda: nn.Linear(6, 3), dtype)
    small = LocalConfig(epochs=8, batch_size=4, learning_rate=1e-4)
    trainer = Trainer(task, small, path=path, chunk=4)
    weights = trainer.initial_weights()
    found = trainer.train(weights, examples(), ROWS[:1], [7])[0]
    masters = [each.detach().float() for each in task.init_model(0).parameters()]
    begin = torch.cat([each.reshape(-1) for each in masters])
    some = examples()
    for batch in batches(ROWS[0], 7, small):
        at = torch.from_numpy(batch)
        rounded = [each.to(dtype).requires_grad_() for each in masters]
        outputs = nn.functional.linear(some.x[at].to(dtype), rounded[0], rounded[1])
        loss = nn.functional.cross_entropy(outputs, some.y[at], reduction="none").mean()
        for master, grad in zip(masters, torch.autograd.grad(loss, rounded), strict=True):
            master -= 1e-4 * grad.float()
    expected = (torch.cat([each.reshape(-1) for each in masters]) - begin).numpy()
    # Steps this small would vanish in 16 bits; the order of a sum moves a gradient by their eps.
    assert np.abs(expected).min() > 0
    assert np.allclose(found, expected, rtol=0.05, atol=1e-6)
    assert trainer.state_dict(weights + found)["weight"].dtype == torch.float32


def test_parameters_that_are_no_numbers_to_train_are_refused() -> None:
    model = nn.Linear(2, 2)
    model.weight = nn.Parameter(torch.zeros(2, 2, dtype=torch.complex64))
    with pytest.raises(TrainingError, match=r"parameter 'weight' is torch\.complex64"):
        FlatLayout.of(model)
