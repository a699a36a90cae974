"""The GRU layer in place: the formula, its gradient, and who must not meet writes in place."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.func import grad, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from fedsys.tasks import gated
from fedsys.tasks.gated import Gated
from fedsys.tasks.recurrence import gru


def some(length: int, batch: int, width: int, hidden: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    shapes = ((length, batch, width), (3 * hidden, width), (3 * hidden,), (3 * hidden, hidden))
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
        for shape in (*shapes, (3 * hidden,))
    ]


def plain(
    inputs: Tensor, of_inputs: Tensor, input_bias: Tensor, weight: Tensor, bias: Tensor
) -> Tensor:
    state = inputs.new_zeros(inputs.shape[1], weight.shape[1])
    states = []
    for now in inputs:
        a_r, a_z, a_n = (now @ of_inputs.T + input_bias).chunk(3, -1)
        u_r, u_z, u_n = (state @ weight.T + bias).chunk(3, -1)
        r, z = torch.sigmoid(a_r + u_r), torch.sigmoid(a_z + u_z)
        state = (1 - z) * torch.tanh(a_n + r * u_n) + z * state
        states.append(state)
    return torch.stack(states)


SIZES = [(1, 1, 1, 1), (1, 3, 2, 5), (4, 1, 3, 2), (7, 3, 2, 5)]


@pytest.mark.parametrize("sizes", SIZES)
def test_the_layer_and_its_gradient_are_the_formulas(
    sizes: tuple[int, int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gated, "_BLOCK", 2 * sizes[1] * sizes[3])  # two steps; the last block: one
    arguments = some(*sizes)
    states, expected = Gated.apply(*arguments), plain(*arguments)  # type: ignore[no-untyped-call]
    torch.testing.assert_close(states, expected)
    upper = torch.randn_like(expected).transpose(0, 1).contiguous().transpose(0, 1)
    torch.testing.assert_close(
        torch.autograd.grad(states, arguments, upper, retain_graph=True),
        torch.autograd.grad(expected, arguments, upper),
    )
    again = torch.autograd.grad(states.sum(), arguments)
    torch.testing.assert_close(again, torch.autograd.grad(plain(*arguments).sum(), arguments))
    assert torch.autograd.gradcheck(Gated.apply, arguments)


def test_one_model_and_many_by_either_form() -> None:
    arguments = some(5, 2, 3, 4)
    assert type(gru(*arguments).grad_fn).__name__ == "GatedBackward"

    def total(*arguments: Tensor) -> Tensor:
        return (gru(*arguments) ** 2).sum()

    every = tuple(range(5))
    expected = torch.autograd.grad((plain(*arguments) ** 2).sum(), arguments)
    torch.testing.assert_close(torch.autograd.grad(total(*arguments), arguments), expected)
    of_each = vmap(grad(total, argnums=every), in_dims=(0, None, None, 0, None))
    twice = [arguments[0], arguments[3]]
    inputs, weight = (torch.stack([each, -each]).detach() for each in twice)
    _, of_inputs, input_bias, _, bias = (each.detach() for each in arguments)
    found = of_each(inputs, of_inputs, input_bias, weight, bias)
    torch.testing.assert_close(tuple(each[0] for each in found), expected)


def test_data_need_no_gradient_and_a_second_derivative_is_refused() -> None:
    arguments = some(3, 2, 3, 4)
    states = gru(arguments[0].detach(), *arguments[1:])
    torch.testing.assert_close(
        torch.autograd.grad(states.sum(), arguments[1:]),
        torch.autograd.grad(plain(*arguments).sum(), arguments[1:]),
    )
    first = torch.autograd.grad((gru(*arguments) ** 2).sum(), arguments, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first[0].sum().backward()  # type: ignore[no-untyped-call]

    def steepness(weight: Tensor) -> Tensor:
        given = (*arguments[:3], weight, arguments[4])
        first: Tensor = grad(lambda *them: (gru(*them) ** 2).sum(), argnums=3)(*given)
        return (first**2).sum()

    with pytest.raises(RuntimeError, match="gru is differentiable once"):
        grad(steepness)(arguments[3].detach())


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's own
def test_what_is_recorded_writes_nothing_in_place() -> None:
    arguments = [each.detach() for each in some(3, 2, 3, 4)]
    module = make_fx(gru)(*arguments)
    operators = [
        node.target for node in module.graph.nodes if isinstance(node.target, torch._ops.OpOverload)
    ]
    assert operators
    assert not [each for each in operators if each._schema.is_mutable]
    torch.testing.assert_close(module(*arguments), plain(*arguments))
    compiled = torch.compile(gru, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(*arguments), plain(*arguments))
