"""Models, cohorts and settings drawn at random: every path is the plain loop, call after call."""

from __future__ import annotations

import copy
import random
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from client.training import LocalConfig
from client.training.dual.progress import UnsupportedLayerError
from client.training.flat import FlatLayout
from client.training.schedule import build
from client.training.selfcheck import SummingPath
from client.training.trainer import PATHS
from fedsys.tasks import DataSource, Examples, FederatedData, Task, seeded
from fedsys.tasks.classification import Classification
from tests.client.training.reference import plain_loop

CLASSES = 4


class Drawn(Classification):
    """A task around a drawn model."""

    name = "drawn"

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def init_model(self, seed: int) -> nn.Module:
        """A copy."""
        return copy.deepcopy(self.model)

    def clients(self, source: DataSource) -> FederatedData:
        """None are needed."""
        raise NotImplementedError


class Squares(Drawn):
    """The same with a loss of its own."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """(B,) squared distance from the label's unit vector, less 1."""
        right = outputs.gather(1, targets.unsqueeze(1)).squeeze(1)
        return outputs.square().sum(1) - 2 * right


class Branches(nn.Module):
    """Two ways that meet."""

    def __init__(self, left: nn.Module, right: nn.Module) -> None:
        super().__init__()
        self.left, self.right = left, right

    def forward(self, x: Tensor) -> Tensor:
        """Their sum."""
        total: Tensor = self.left(x) + self.right(x).tanh()
        return total


@dataclass(frozen=True)
class Case:
    """One draw."""

    task: Task
    model: nn.Module
    local: LocalConfig
    pool: Examples
    cohorts: list[list[NDArray[np.int64]]]


def draw(seed: int) -> Case:
    dice = random.Random(seed)
    with seeded(seed):
        model, shape = _model(dice)
        model = model.double()
        pool = Examples(
            x=torch.randn(40, *shape, dtype=torch.float64), y=torch.randint(0, CLASSES, (40,))
        )
    local = LocalConfig(
        epochs=dice.choice((1, 1, 2, 3)),
        batch_size=dice.choice((1, 3, 5, 8, 100)),
        learning_rate=dice.choice((0.01, 0.04)),
        momentum=dice.choice((0.0, 0.0, 0.7)),
        weight_decay=dice.choice((0.0, 0.0, 0.1)),
        proximal_mu=dice.choice((0.0, 0.0, 0.3)),
        optimizer="sgd",
    )
    if dice.random() < 0.15:
        local = LocalConfig(batch_size=5, learning_rate=0.01, optimizer="adam")
    rng = np.random.default_rng(seed)
    cohorts = []
    for _ in range(3):
        sizes = sorted(dice.choice((0, 1, 4, 7, 16)) for _ in range(dice.choice((1, 1, 2, 5))))
        held = [rng.permutation(40)[:size] for size in reversed(sizes)]
        cohorts.append(held)
    task = (Squares if dice.random() < 0.2 else Drawn)(model)
    return Case(task, model, local, pool, cohorts)


def _model(dice: random.Random) -> tuple[nn.Module, tuple[int, ...]]:
    activation = dice.choice((nn.ReLU, nn.Tanh, nn.GELU))
    layers: list[nn.Module] = []
    if dice.random() < 0.5:
        channels, side = dice.choice((1, 1, 2, 3)), dice.choice((6, 9))
        shape: tuple[int, ...] = (channels, side, side)
        for _ in range(dice.choice((1, 2))):
            out = dice.choice((2, 4))
            groups = 2 if channels % 2 == 0 and dice.random() < 0.2 else 1
            kernel, padding = dice.choice((1, 2, 3)), dice.choice((0, 1))
            stride = dice.choice((1, 1, 2))
            layers.append(
                nn.Conv2d(
                    channels, out, kernel, stride, padding, groups=groups, bias=dice.random() < 0.7
                )
            )
            if dice.random() < 0.2:
                layers.append(nn.GroupNorm(1, out))
            layers += dice.choice(([activation()], [activation(), nn.MaxPool2d(2, ceil_mode=True)]))
            channels = out
        if dice.random() < 0.3:
            layers.append(nn.AdaptiveAvgPool2d(2))
        layers.append(nn.Flatten())
        with torch.no_grad():
            width = nn.Sequential(*layers)(torch.zeros(1, *shape)).shape[1]
    else:
        width = dice.choice((3, 20, 60))
        shape = (width,)
    for _ in range(dice.choice((0, 1, 2))):
        hidden = dice.choice((2, 9, 40))
        layer: nn.Module = nn.Linear(width, hidden, bias=dice.random() < 0.8)
        if dice.random() < 0.2:
            layer = Branches(layer, nn.Linear(width, hidden))
        layers += [layer, activation()]
        if dice.random() < 0.15:
            layers.append(nn.LayerNorm(hidden))
        width = hidden
    return nn.Sequential(*layers, nn.Linear(width, CLASSES)), shape


@pytest.mark.parametrize("path", ["dual", "batched", "graph"])
@pytest.mark.parametrize("seed", range(40))
def test_every_path_is_the_plain_loop(path: str, seed: int) -> None:
    check(path, seed)


def check(path: str, seed: int) -> bool:
    """Three cohorts through one path object; False where it refuses the model."""
    case = draw(seed)
    start = FlatLayout.of(case.model).read(case.model)
    try:
        built = PATHS[path](case.task, copy.deepcopy(case.model), case.local)
        outcomes = []
        for held in case.cohorts:
            seeds = list(range(7, 7 + len(held)))
            held = sorted(held, key=lambda rows: -case.local.steps(len(rows)))
            schedule = build(held, seeds, case.local)
            found = start.new_full((len(held), len(start)), torch.nan)
            built.updates(start, case.pool, schedule, seeds, found)
            clipped = None
            if isinstance(built, SummingPath):
                total, norms = built.clipped_sum(start, case.pool, schedule, seeds, 0.05)
                clipped = total.clone(), norms.clone()
            outcomes.append((held, seeds, found, clipped))
    except UnsupportedLayerError:
        return False
    for held, seeds, found, clipped in outcomes:
        expected = plain_loop(case.task, case.model, case.local, start, case.pool, held, seeds)
        size = max(float(expected.abs().max()), 1e-3)
        assert float((found - expected).abs().max()) < 1e-8 * size
        if clipped is not None:
            total, norms = clipped
            lengths = expected.norm(dim=1)
            scaled = expected * (0.05 / lengths).clamp(max=1).nan_to_num(1.0)[:, None]
            assert float((norms - lengths).abs().max()) < 1e-6 * max(float(lengths.max()), 1e-3)
            assert float((total - scaled.sum(0)).abs().max()) < 1e-6 * 0.05
    return True
