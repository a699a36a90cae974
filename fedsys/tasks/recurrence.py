"""Recurrent layers over whole sequences, written so that many clients can be trained at once.

``torch.nn.LSTM`` and ``torch.nn.GRU`` cannot be batched over models (``torch.func.vmap``); these
can. The GRU's gradient is written out, so that its weights' gradient is one matrix product over all
time steps instead of a sum of one product per step.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fedsys.tasks.gated import Gated

__all__ = ["gru", "lstm"]


def gru(
    inputs: Tensor, of_inputs: Tensor, input_bias: Tensor, weight: Tensor, bias: Tensor
) -> Tensor:
    """A gated recurrent unit (Cho et al. 2014, arXiv:1406.1078, in torch's form), from h_0 = 0.

    h_t = n + z (h_{t-1} - n) with r, z = sigmoid(a_r + u_r), sigmoid(a_z + u_z) and
    n = tanh(a_n + r u_n), where a = x_t `of_inputs`^T + `input_bias` and
    u = h_{t-1} `weight`^T + `bias`.

    Args:
        inputs: (T, B, I) the inputs x_1, ..., x_T.
        of_inputs: (3 H, I) weight of the map of the inputs to the gates r, z, n.
        input_bias: (3 H,) bias of that map.
        weight: (3 H, H) weight of the recurrent map.
        bias: (3 H,) bias of the recurrent map.

    Returns:
        (T, B, H) the states h_1, ..., h_T.
    """
    if _is_eager(inputs):
        states: Tensor = Gated.apply(  # type: ignore[no-untyped-call]
            inputs, of_inputs, input_bias, weight, bias
        )
        return states
    driven = functional.linear(inputs, of_inputs, input_bias)
    states = _Gru.apply(driven, weight, bias)[0]  # type: ignore[no-untyped-call]
    return states


def _is_eager(tensor: Tensor) -> bool:
    """Whether operations on `tensor` are what they seem: on a CPU, neither transformed by
    ``torch.func`` nor recorded by a compiler or exporter, which may not meet writes in place."""
    return (
        tensor.device.type == "cpu"
        and not torch._C._are_functorch_transforms_active()
        and not torch.compiler.is_compiling()
        and torch._C._len_torch_dispatch_stack() == 0
    )


class _Gru(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(driven: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden = weight.shape[-1]
        state = torch.zeros_like(driven[0, :, :hidden])
        transposed = weight.T
        states, gates, recurrent = [], [], []
        for now in driven.unbind(0):
            fed_back = torch.addmm(bias, state, transposed)
            gate = torch.sigmoid(now[:, : 2 * hidden] + fed_back[:, : 2 * hidden])
            new_back = fed_back[:, 2 * hidden :]
            new = torch.tanh(now[:, 2 * hidden :] + gate[:, :hidden] * new_back)
            state = torch.lerp(new, state, gate[:, hidden:])
            states.append(state)
            gates.append(torch.cat([gate, new], dim=1))
            recurrent.append(new_back)
        return torch.stack(states), torch.stack(gates), torch.stack(recurrent)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        _, weight, _ = inputs
        states, gates, recurrent = output
        ctx.mark_non_differentiable(gates, recurrent)
        ctx.save_for_backward(weight, states, gates, recurrent)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        found: tuple[Tensor, Tensor, Tensor] = _GruGradient.apply(  # type: ignore[no-untyped-call]
            grads[0], *ctx.saved_tensors
        )
        return found


class _GruGradient(torch.autograd.Function):
    """The gradient, an operation of its own to refuse its own derivative: ``once_differentiable``
    is without effect under ``torch.func``."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        grad: Tensor, weight: Tensor, states: Tensor, gates: Tensor, recurrent: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        reset, update, new = gates.chunk(3, dim=-1)
        before = torch.cat([torch.zeros_like(states[:1]), states[:-1]])
        # Let g = dL/dh_t, including what comes back from later steps. By the chain rule through
        # h_t = n + z (h_{t-1} - n), the gradients of the gates' pre-activations are g times
        #   of_new    = (1 - z) (1 - n^2)           for a_n,
        #   of_reset  = of_new u_n r (1 - r)        for a_r, since dn/dr = (1 - n^2) u_n,
        #   of_update = (h_{t-1} - n) z (1 - z)     for a_z.
        # All are known from the forward pass. Those of u_r and u_z are the same; that of u_n has a
        # further factor r. Then dL/dh_{t-1} = z g + (gradient of u_t) `weight`.
        of_new = (1 - update) * (1 - new * new)
        of_reset = of_new * recurrent * reset * (1 - reset)
        of_update = (before - new) * update * (1 - update)
        factors = torch.stack([of_reset, of_update, of_new * reset], dim=2)
        carried = torch.zeros_like(states[0])
        total = []
        for upper, keep, factor in zip(
            reversed(grad.unbind(0)),
            reversed(update.unbind(0)),
            reversed(factors.unbind(0)),
            strict=True,
        ):
            own = upper + carried
            total.append(own)
            back = (own.unsqueeze(1) * factor).flatten(1)
            carried = torch.addmm(own * keep, back, weight)
        of_state = torch.stack(total[::-1])
        fed_back = (of_state.unsqueeze(2) * factors).flatten(2)
        driven = torch.cat([fed_back[..., : -new.shape[-1]], of_state * of_new], dim=-1)
        of_weight = fed_back.flatten(0, 1).T @ before.flatten(0, 1)
        return driven, of_weight, fed_back.sum((0, 1))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        """Nothing is kept."""

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, ...]:
        raise RuntimeError("gru is differentiable once; it has no second derivative")


def lstm(
    inputs: Tensor, of_inputs: Tensor, input_bias: Tensor, weight: Tensor, bias: Tensor
) -> Tensor:
    """A long short-term memory (Hochreiter and Schmidhuber 1997, with Gers' forget gate), from 0.

    Args:
        inputs: (T, B, I) the inputs x_1, ..., x_T.
        of_inputs: (4 H, I) weight of the map of the inputs to the gates i, f, g, o.
        input_bias: (4 H,) bias of that map.
        weight: (4 H, H) weight of the recurrent map.
        bias: (4 H,) bias of the recurrent map.

    Returns:
        (T, B, H) the states h_1, ..., h_T.
    """
    driven = functional.linear(inputs, of_inputs, input_bias)
    state = torch.zeros_like(driven[0, :, : weight.shape[-1]])
    memory = state
    states = []
    for now in driven.unbind(0):
        gates = now + torch.addmm(bias, state, weight.T)
        enter, forget, candidate, leave = gates.chunk(4, dim=-1)
        memory = torch.sigmoid(forget) * memory + torch.sigmoid(enter) * torch.tanh(candidate)
        state = torch.sigmoid(leave) * torch.tanh(memory)
        states.append(state)
    return torch.stack(states)
