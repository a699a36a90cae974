"""Adam in one pass takes the steps of ``torch.optim.Adam``, however gradients lie in memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from client.training.local import LocalConfig
from client.training.optimizer import Stepper

ADAM = LocalConfig(optimizer="adam", learning_rate=0.01, weight_decay=0.1)


def gradient(param: Tensor, seed: int) -> Tensor:
    """Laid out the other way round than `param`, as some gradients of products are."""
    values = torch.randn(*reversed(param.shape), generator=torch.Generator().manual_seed(seed))
    return values.to(param.dtype).permute(*reversed(range(param.dim())))


@pytest.mark.parametrize("last", [False, True], ids=["row-major", "channels-last"])
def test_steps_are_those_of_torch(last: bool) -> None:
    begin = [torch.linspace(-1, 1, 120).double().view(2, 3, 4, 5), torch.ones(7).double()]
    if last:
        begin[0] = begin[0].contiguous(memory_format=torch.channels_last)
    own, expected = [each.clone() for each in begin], [nn.Parameter(each.clone()) for each in begin]
    stepper = Stepper(ADAM, begin, own)
    theirs = torch.optim.Adam(expected, lr=0.01, weight_decay=0.1, foreach=False)
    for seed in range(4):
        grads = [gradient(each, seed) for each in begin]
        stepper.step(grads)
        for each, grad in zip(expected, grads, strict=True):
            each.grad = grad
        theirs.step()
    for found, wanted in zip(own, expected, strict=True):
        torch.testing.assert_close(found, wanted.detach(), rtol=1e-12, atol=1e-12)


def test_only_active_clients_step() -> None:
    start, params = [torch.zeros(4, 2)], [torch.zeros(3, 4, 2)]
    Stepper(ADAM, start, params).step([torch.ones(2, 4, 2)], active=2)
    assert (params[0][:2] < 0).all()
    assert not params[0][2].any()
