"""What one example can do to the sum that gets the noise: at most the clip, whatever its shape."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn

from client.training.example.gradients import GhostModule, norms_of
from client.training.example.optimizer import GhostLatticeOptimizer, LatticeOptimizer
from client.training.example_privacy import UNITS
from fedsys.privacy.noise import RoundedGaussian
from fedsys.privacy.randomness import AesCtrStream

WIDE = 900_000


def optimizer(kind: type[DPOptimizer], dimension: int) -> DPOptimizer:
    return kind(
        torch.optim.SGD([nn.Parameter(torch.zeros(dimension))], lr=1.0),
        sampler=RoundedGaussian(1.0),
        stream=AesCtrStream(bytes(32)),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        expected_batch_size=1,
        loss_reduction="mean",
    )


def ghost_sum(*parts: Tensor) -> Tensor:
    """What comes of the sums of a batch's physical parts, in units; the noise is the same."""
    made = optimizer(GhostLatticeOptimizer, parts[0].numel())
    (param,) = made.params
    param.summed_grad = None
    for part in parts:
        param.grad = part.clone()
        made.accumulate()
    made.add_noise()
    found: Tensor = param.grad.double() * UNITS
    return found


@pytest.mark.parametrize("size", [1.0, 1 + 5 / 12, 1 + 7 / 12])
def test_a_constant_gradient_of_900_000_coordinates_is_not_longer_than_the_clip(
    size: float,
) -> None:
    made = optimizer(LatticeOptimizer, WIDE)
    (param,) = made.params
    param.grad_sample, param.summed_grad = torch.full((1, WIDE), size), None
    made.clip_and_accumulate()
    assert 0.998 * UNITS < float(param.summed_grad.double().norm()) <= UNITS


@pytest.mark.parametrize("width", [1, 127, 128, 1000, WIDE + 5])
@pytest.mark.parametrize("size", [1.3, 1e-12, 1e12])
def test_norms_are_those_of_float64(width: int, size: float) -> None:
    rows = torch.full((2, width), size)
    rows[1] *= torch.randn(width, generator=torch.Generator().manual_seed(width))
    exact = rows.double().norm(dim=1)
    torch.testing.assert_close(norms_of(rows), exact, rtol=4e-6, atol=0)
    assert norms_of(rows[:0]).shape == (0,)
    assert norms_of(torch.tensor([[1.0, np.nan], [np.inf, 1.0]])).isfinite().logical_not().all()


@pytest.mark.parametrize("parts", [1, 5])
def test_rounding_a_ghost_sum_does_not_lengthen_an_example(parts: int) -> None:
    """Others' sum lies just below the middle between two points, and the example adds just over a
    whole number of units to each coordinate."""
    room = (1 - 1e-4) * UNITS
    dimension = round((room / 828.02) ** 2)
    example = torch.full((dimension,), 1 / dimension**0.5)
    assert float(example.double().norm()) <= 1 + 1e-6
    for unit in (1 / room, 1 / (room - dimension**0.5)):
        others = torch.full((dimension,), 0.49 * unit)
        with_it = ghost_sum(*[others + example / parts] * parts)
        without = ghost_sum(*[others] * parts)
        assert float((with_it - without).norm()) <= UNITS


class Pictures(nn.Module):
    """Layers of every kind whose gradient Opacus builds, in front of a wide readout."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 64, 16), nn.GroupNorm(4, 64), nn.Flatten(), nn.Linear(64 * 17 * 17, 16)
        )

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layers(x)
        return found


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_ghost_norms_are_in_float64_for_every_layer() -> None:
    from opacus.layers import DPGRU

    class States(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.layer = nn.Embedding(9, 8), DPGRU(8, 6, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.layer(self.embedding(x))[0][:, -1]
            return found

    cases = [(Pictures(), torch.ones(2, 1, 32, 32)), (States(), torch.arange(14).view(2, 7) % 9)]
    for model, x in cases:
        ghost = GhostModule(model, loss_reduction="sum")
        ghost(x).sum().backward()
        for name, param in ghost.named_parameters():
            assert param._norm_sample.dtype == torch.float64, name
