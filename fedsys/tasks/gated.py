"""A gated recurrent layer in few passes over preallocated memory, for one model on a CPU.

With ten sequences in a batch, the matrix product of one time step takes little longer than a
handful of small operations around it. Here every operation writes where its result is needed:
nothing is concatenated or stacked, and what all time steps can share is computed at once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["Gated"]

_tanh_gradient = torch.ops.aten.tanh_backward.grad_input
_sigmoid_gradient = torch.ops.aten.sigmoid_backward.grad_input
_BLOCK = 40_000  # elements of each gate that are worked on at once: a core's own cache holds them


class Gated(torch.autograd.Function):
    """What `fedsys.tasks.recurrence.gru` computes, with its arguments; once differentiable.

    A time step has four columns of width H, in the order u_n, r, z, a_n (see `gru`). The map of the
    inputs writes the last three and the recurrent map adds to the first three, so that each is one
    product. The gates' functions then turn them, in place, into u_n, r, z, n.
    """

    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        of_inputs: Tensor,
        input_bias: Tensor,
        weight: Tensor,
        bias: Tensor,
    ) -> Tensor:
        (length, batch, _), hidden = inputs.shape, weight.shape[-1]
        columns = inputs.new_empty((length, batch, 4 * hidden))
        states = inputs.new_empty((length + 1, batch, hidden))
        states[0] = 0
        columns[..., :hidden] = bias[2 * hidden :]
        both = torch.cat([input_bias[: 2 * hidden] + bias[: 2 * hidden], input_bias[2 * hidden :]])
        rows = columns.view(length * batch, 4 * hidden)
        torch.addmm(both, inputs.reshape(length * batch, -1), of_inputs.T, out=rows[:, hidden:])
        weight = weight.roll(hidden, 0)  # in the columns' order
        transposed = weight.T.contiguous()  # a step's product is then a third faster
        first = before = states[0]
        for now, gates, new_back, reset, update, new, state in zip(
            columns[..., : 3 * hidden].unbind(0),
            columns[..., hidden : 3 * hidden].unbind(0),
            *(gate.unbind(0) for gate in columns.chunk(4, -1)),
            states[1:].unbind(0),
            strict=True,
        ):
            if before is not first:
                now.addmm_(before, transposed)
            gates.sigmoid_()
            new.addcmul_(reset, new_back).tanh_()
            before = torch.lerp(new, before, update, out=state)
        ctx.save_for_backward(inputs, of_inputs, weight, columns, states)
        return states[1:]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        inputs, of_inputs, weight, columns, states = ctx.saved_tensors
        (length, batch, _), hidden = inputs.shape, weight.shape[-1]
        # As in `gru`'s other form: the gradients of u_n, of u and a in r and z, and of a_n, first
        # as factors of g = dL/dh_t, which is known when all later steps have been passed.
        signals = _factors(columns, states)
        of_states = grad.clone(memory_format=torch.contiguous_format)
        own, own_by_gate = of_states.unbind(0), of_states.unsqueeze(2).unbind(0)
        by_gate = signals.view(length, batch, 4, hidden).unbind(0)
        fed_back = signals[..., : 3 * hidden].unbind(0)
        update = columns[..., 2 * hidden : 3 * hidden].unbind(0)
        for step in reversed(range(length)):
            by_gate[step].mul_(own_by_gate[step])
            if step:
                before = own[step - 1].addcmul_(update[step], own[step])
                before.addmm_(fed_back[step], weight)
        rows = signals.view(length * batch, 4 * hidden)
        flat = inputs.reshape(length * batch, -1)
        of_bias = rows.sum(0)
        later, known = rows[batch:], states[1:-1].reshape(-1, hidden)  # h_0 = 0 adds nothing
        of_weight = torch.empty_like(weight)
        torch.mm(later[:, hidden : 3 * hidden].T, known, out=of_weight[: 2 * hidden])
        torch.mm(later[:, :hidden].T, known, out=of_weight[2 * hidden :])
        return (
            (rows[:, hidden:] @ of_inputs).view_as(inputs) if ctx.needs_input_grad[0] else None,
            rows[:, hidden:].T @ flat,
            of_bias[hidden:],
            of_weight,
            torch.cat([of_bias[hidden : 3 * hidden], of_bias[:hidden]]),
        )


def _factors(columns: Tensor, states: Tensor) -> Tensor:
    """(T, B, 4 H) the gradients of the columns, before the gates' functions, where dL/dh_t = 1."""
    found = torch.empty_like(columns)
    steps = max(1, _BLOCK // max(1, states[0].numel()))
    blocks = (torch.split(each, steps) for each in (found, columns, states[:-1]))
    for some, given, before in zip(*blocks, strict=True):
        of_new_back, of_reset, of_update, of_new = some.chunk(4, -1)
        new_back, reset, update, new = given.chunk(4, -1)
        _tanh_gradient(1 - update, new, grad_input=of_new)
        _sigmoid_gradient(before - new, update, grad_input=of_update)
        _sigmoid_gradient(of_new * new_back, reset, grad_input=of_reset)
        torch.mul(of_new, reset, out=of_new_back)
    return found
