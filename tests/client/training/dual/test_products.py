"""Large products go to another library than small ones, and come to the same."""

from __future__ import annotations

import pytest
import torch

from client.training.dual import products

SHAPES = [(3, 5, 2), (1250, 784, 64), (64, 1250, 784), (4097, 130, 33)]
ONEDNN = getattr(torch.ops.mkldnn, "_linear_pointwise", None)


@pytest.fixture(params=["default", "oneDNN"], autouse=True)
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each library, whichever this processor takes."""
    if request.param == "oneDNN" and ONEDNN is None:
        pytest.skip("this torch was built without oneDNN")
    monkeypatch.setattr(products, "_onednn", ONEDNN if request.param == "oneDNN" else None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(("rows", "inputs", "outputs"), SHAPES)
@pytest.mark.parametrize("turned", [False, True])
def test_it_is_the_product(
    rows: int, inputs: int, outputs: int, turned: bool, biased: bool, dtype: torch.dtype
) -> None:
    source = torch.Generator().manual_seed(1)
    x = torch.randn(rows, inputs, generator=source, dtype=dtype)
    weight = torch.randn(outputs, inputs, generator=source, dtype=dtype)
    bias = torch.randn(outputs, generator=source, dtype=dtype) if biased else None
    if turned:  # transposed in memory
        x, weight = x.T.contiguous().T, weight.T.contiguous().T
    expected = x.double() @ weight.double().T + (0 if bias is None else bias.double())
    found = products.linear(x, weight, bias)
    assert found.dtype is dtype
    assert found.is_contiguous()
    scale = 1e-5 if dtype is torch.float32 else 1e-13
    assert (found.double() - expected).abs().max() < scale * expected.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("rows", "inputs", "outputs"), SHAPES)
def test_outer_products_are_added(rows: int, inputs: int, outputs: int, dtype: torch.dtype) -> None:
    source = torch.Generator().manual_seed(2)
    left = torch.randn(rows, outputs, generator=source, dtype=dtype)
    right = torch.randn(rows, inputs, generator=source, dtype=dtype)
    found = torch.full((outputs, inputs), torch.nan, dtype=dtype)
    products.sum_of_outer(left, right, found)
    expected = left.double().T @ right.double()
    scale = 1e-5 if dtype is torch.float32 else 1e-13
    assert (found.double() - expected).abs().max() < scale * expected.abs().max()


def test_what_is_not_finite_stays_so() -> None:
    x, weight = torch.ones(1250, 784), torch.ones(64, 784)
    x[3, 2], x[4, 1] = torch.nan, torch.inf
    found = products.linear(x, weight)
    assert torch.isnan(found[3]).all()
    assert torch.isinf(found[4]).all()
    assert (found[5:] == 784).all()
