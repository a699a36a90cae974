"""A loss's gradient by formula is the engine's, and everything that has no formula goes to it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from client.training.dual.losses import loss_gradient
from fedsys import tasks
from fedsys.tasks.classification import Classification


class Softened(Classification):
    """A classification with a loss of its own."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """(B,) cross-entropy with smoothed labels."""
        return functional.cross_entropy(outputs, targets, reduction="none", label_smoothing=0.1)


def by_engine(task: Classification, outputs: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
    leaf = outputs.clone().requires_grad_()
    return torch.autograd.grad(task.loss(leaf, targets), leaf, weight)[0]


def batch(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    source = torch.Generator().manual_seed(3)
    outputs = 5 * torch.randn(37, 10, generator=source, dtype=dtype)
    targets = torch.randint(0, 10, (37,), generator=source)
    return outputs, targets, torch.rand(37, generator=source, dtype=dtype)


@pytest.mark.parametrize("ignored", [0, 4])
@pytest.mark.parametrize("kind", [Classification, Softened])
def test_tensors_that_autograd_does_not_know_have_the_same(
    kind: type[Classification], ignored: int
) -> None:
    outputs, targets, weight = batch()
    targets[:ignored] = -100
    with torch.inference_mode():
        given = [each.clone() for each in (outputs, targets, weight)]
        found = loss_gradient(kind(), given[1])(*given)  # type: ignore[arg-type]
    torch.testing.assert_close(
        found, by_engine(kind(), outputs, targets, weight), rtol=1e-12, atol=1e-14
    )


@pytest.mark.parametrize("kind", [Classification, Softened])
def test_it_is_the_engines(kind: type[Classification]) -> None:
    task, given = kind(), batch()
    torch.testing.assert_close(
        loss_gradient(task, given[1])(*given),  # type: ignore[arg-type]
        by_engine(task, *given),
        rtol=1e-12,
        atol=1e-14,
    )


def test_large_outputs_do_not_overflow() -> None:
    outputs, targets, weight = batch(torch.float32)
    outputs[3] = torch.linspace(-1e38, 1e38, 10)
    found = loss_gradient(tasks.load("digits"), targets)(outputs, targets, weight)
    assert torch.isfinite(found).all()
    torch.testing.assert_close(found, by_engine(Classification(), outputs, targets, weight))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so(value: float) -> None:
    outputs, targets, weight = batch()
    outputs[2, 1] = value
    found = loss_gradient(tasks.load("digits"), targets)(outputs, targets, weight)
    assert torch.isnan(found[2]).all()
    assert torch.isfinite(found[3:]).all()


def test_ignored_targets_count_nothing() -> None:
    outputs, targets, weight = batch()
    targets[5] = -100
    found = loss_gradient(tasks.load("digits"), targets)(outputs, targets, weight)
    assert not found[5].any()
    torch.testing.assert_close(found, by_engine(Classification(), outputs, targets, weight))


def test_sequences_go_to_the_engine() -> None:
    source = torch.Generator().manual_seed(4)
    outputs = torch.randn(6, 10, 3, generator=source)
    targets = torch.randint(0, 10, (6, 3), generator=source)
    weight = torch.rand(6, 3, generator=source)
    found = loss_gradient(tasks.load("digits"), targets)(outputs, targets, weight)
    torch.testing.assert_close(found, by_engine(Classification(), outputs, targets, weight))


def test_a_label_that_is_no_class_is_refused() -> None:
    outputs, targets, weight = batch()
    targets[0] = 10
    with pytest.raises((IndexError, RuntimeError)):
        loss_gradient(tasks.load("digits"), targets)(outputs, targets, weight)
