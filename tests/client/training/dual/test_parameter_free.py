"""The faster layers compute what torch's do."""

from __future__ import annotations

import copy

import pytest
import torch
from scipy import stats
from torch import nn

from client.training.dual.parameter_free import (
    BitDropout,
    ImageFlatten,
    replacement,
    swap_relu_and_pool,
)
from fedsys.tasks import seeded


@pytest.mark.parametrize(
    ("shape", "last"),
    [
        ((3, 4, 5, 6), True),
        ((3, 4, 5, 6), False),
        ((2, 64, 14, 14), True),
        ((2, 64, 14, 14), False),
        ((3, 7), False),
    ],
)
def test_flatten_is_torchs_forward_and_backward(shape: tuple[int, ...], last: bool) -> None:
    with seeded(1):
        x, up = torch.randn(shape), torch.randn(shape).flatten(1)
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
    mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    faster = replacement(nn.Flatten())
    assert isinstance(faster, ImageFlatten)
    found, expected = faster(mine), nn.Flatten()(theirs)
    assert torch.equal(found, expected)
    found.backward(up)
    expected.backward(up)
    assert mine.grad is not None
    assert theirs.grad is not None
    assert torch.equal(mine.grad, theirs.grad)


def test_relu_and_max_pool_commute() -> None:
    with seeded(1):
        model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
        x = torch.randn(4, 1, 9, 9)
    swapped = copy.deepcopy(model)
    swap_relu_and_pool(swapped)
    assert type(swapped[1]) is nn.MaxPool2d
    for each in (model, swapped):
        each(x).square().sum().backward()
    assert torch.equal(model(x), swapped(x))
    for mine, theirs in zip(swapped.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)


@pytest.mark.parametrize("p", [0.25, 0.5, 0.9])
@pytest.mark.parametrize("last", [True, False])
def test_dropout_keeps_the_right_share_scaled_and_differentiable(p: float, last: bool) -> None:
    layer = BitDropout(p)
    layer.reseed(7)
    x = torch.ones(10, 20, 10, 10)
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
    x.requires_grad_()
    out = layer(x)
    kept = out != 0
    low, high = stats.binom.ppf([5e-7, 1 - 5e-7], x.numel(), 1 - p)
    assert low <= int(kept.sum()) <= high
    assert torch.allclose(out[kept], torch.tensor(1 / (1 - p)), rtol=1e-4)
    out.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, out.detach())
    layer.reseed(7)
    assert torch.equal(layer(x), out)
    layer.eval()
    assert layer(x) is x


def test_other_layers_are_left_alone() -> None:
    assert replacement(nn.Flatten(0)) is None
    assert replacement(nn.Dropout(0.0)) is None
    assert replacement(nn.ReLU()) is None
    overlapping = nn.Sequential(nn.ReLU(), nn.MaxPool2d(2, padding=1))
    swap_relu_and_pool(overlapping)
    assert type(overlapping[0]) is nn.ReLU
