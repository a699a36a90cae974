"""Fused causal attention: the formula, its gradient, and many clients at once."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor
from torch.func import grad, vmap

from fedsys.errors import ConfigError
from fedsys.tasks import load
from fedsys.tasks.attention import causal_attention


def some(*shape: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3)]


def plain(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    return torch.softmax(scores.masked_fill(later, -torch.inf), -1) @ value


def total(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return (causal_attention(query, key, value) ** 2).sum()


def plain_total(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return (plain(query, key, value) ** 2).sum()


def test_attention_and_its_gradient_are_the_formulas() -> None:
    inputs = some(2, 3, 7, 4)
    torch.testing.assert_close(causal_attention(*inputs), plain(*inputs))
    every = (0, 1, 2)
    torch.testing.assert_close(
        grad(total, argnums=every)(*inputs), grad(plain_total, argnums=every)(*inputs)
    )


def test_rows_that_are_not_contiguous_are_read_as_they_are() -> None:
    """The public function falls back for them; the kernel beneath it does not look."""
    strided = [each.transpose(1, 3).contiguous().transpose(1, 3) for each in some(2, 3, 7, 4)]
    mine, theirs = ([each.clone().requires_grad_() for each in strided] for _ in range(2))
    assert mine[0].stride(-1) != 1
    found, expected = causal_attention(*mine), plain(*theirs)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        torch.autograd.grad(found, mine, strided[0]),
        torch.autograd.grad(expected, theirs, strided[0]),
    )


def test_a_second_derivative_is_refused() -> None:
    inputs = [each.requires_grad_() for each in some(2, 3, 7, 4)]
    first = torch.autograd.grad(total(*inputs), inputs, create_graph=True)
    with pytest.raises(RuntimeError, match="causal_attention is differentiable once"):
        first[0].sum().backward()  # type: ignore[no-untyped-call]
    with pytest.raises(RuntimeError, match="causal_attention is differentiable once"):
        grad(lambda query: grad(total)(query, *some(2, 3, 7, 4)[1:]).sum())(some(2, 3, 7, 4)[0])


@pytest.mark.parametrize("dims", [(0, 0, 0), (0, None, 1)])
def test_many_clients_are_one_call(dims: tuple[int | None, ...]) -> None:
    """Without the loop over clients that vmap warns of."""
    query, key, value = some(5, 2, 3, 7, 4)
    inputs = [
        query,
        key if dims[1] is not None else key[0],
        value if dims[2] == 0 else value.movedim(0, 1),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = vmap(grad(total, argnums=(0, 1, 2)), in_dims=dims)(*inputs)
    expected = vmap(grad(plain_total, argnums=(0, 1, 2)), in_dims=dims)(*inputs)
    torch.testing.assert_close(found, expected)


def test_a_transformer_sees_nothing_later() -> None:
    options = {"cell": "transformer", "hidden": 8, "layers": 2, "heads": 2, "sequence": 6}
    model = load("shakespeare", options).init_model(1)
    symbols = torch.arange(12, dtype=torch.uint8).reshape(2, 6)
    before = model(symbols)
    symbols[:, 4] = 90
    torch.testing.assert_close(model(symbols)[..., :4], before[..., :4])
    assert not torch.equal(model(symbols)[..., 4:], before[..., 4:])


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ConfigError, match=r"heads = 3: must divide task\.options\.hidden = 8"):
        load("shakespeare", {"cell": "transformer", "hidden": 8, "heads": 3})
