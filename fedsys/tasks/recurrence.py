"""Recurrent layers over whole sequences, written so that many clients can be trained at once.

``torch.nn.LSTM`` and ``torch.nn.GRU`` cannot be batched over models (``torch.func.vmap``); these
can. The GRU's gradient is written out, so that its weights' gradient is one matrix product over all
time steps instead of a sum of one product per step.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["gru", "lstm"]


def gru(driven: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A gated recurrent unit (Cho et al. 2014, arXiv:1406.1078, in torch's form), from h_0 = 0.

    h_t = n + z (h_{t-1} - n) with r, z = sigmoid(a_r + u_r), sigmoid(a_z + u_z) and
    n = tanh(a_n + r u_n), where a = `driven` at t and u = h_{t-1} `weight`^T + `bias`.

    Args:
        driven: (B, T, 3 H) the inputs' contributions to the gates r, z, n.
        weight: (3 H, H) weight of the recurrent map.
        bias: (3 H,) bias of the recurrent map.

    Returns:
        (B, T, H) the states h_1, ..., h_T.
    """
    states: Tensor = _Gru.apply(driven, weight, bias)[0]  # type: ignore[no-untyped-call]
    return states


class _Gru(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(driven: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden = weight.shape[-1]
        state = driven.new_zeros((driven.shape[0], hidden))
        transposed = weight.T
        states, gates, recurrent = [], [], []
        for now in driven.unbind(1):
            fed_back = torch.addmm(bias, state, transposed)
            gate = torch.sigmoid(now[:, : 2 * hidden] + fed_back[:, : 2 * hidden])
            new_back = fed_back[:, 2 * hidden :]
            new = torch.tanh(now[:, 2 * hidden :] + gate[:, :hidden] * new_back)
            state = torch.lerp(new, state, gate[:, hidden:])
            states.append(state)
            gates.append(torch.cat([gate, new], dim=1))
            recurrent.append(new_back)
        return torch.stack(states, 1), torch.stack(gates, 1), torch.stack(recurrent, 1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        _, weight, _ = inputs
        states, gates, recurrent = output
        ctx.mark_non_differentiable(gates, recurrent)
        ctx.save_for_backward(weight, states, gates, recurrent)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        weight, states, gates, recurrent = ctx.saved_tensors
        reset, update, new = gates.chunk(3, dim=-1)
        before = torch.cat([torch.zeros_like(states[:, :1]), states[:, :-1]], dim=1)
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
        carried = torch.zeros_like(states[:, 0])
        total = []
        for upper, keep, factor in zip(
            reversed(grads[0].unbind(1)),
            reversed(update.unbind(1)),
            reversed(factors.unbind(1)),
            strict=True,
        ):
            own = upper + carried
            total.append(own)
            back = (own.unsqueeze(1) * factor).flatten(1)
            carried = torch.addmm(own * keep, back, weight)
        of_state = torch.stack(total[::-1], dim=1)
        fed_back = (of_state.unsqueeze(2) * factors).flatten(2)
        driven = torch.cat([fed_back[..., : -new.shape[-1]], of_state * of_new], dim=-1)
        of_weight = fed_back.flatten(0, 1).T @ before.flatten(0, 1)
        return driven, of_weight, fed_back.sum((0, 1))


def lstm(driven: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A long short-term memory (Hochreiter and Schmidhuber 1997, with Gers' forget gate), from 0.

    Args:
        driven: (B, T, 4 H) the inputs' contributions to the gates i, f, g, o.
        weight: (4 H, H) weight of the recurrent map.
        bias: (4 H,) bias of the recurrent map.

    Returns:
        (B, T, H) the states h_1, ..., h_T.
    """
    state = driven.new_zeros((driven.shape[0], weight.shape[-1]))
    memory = state
    states = []
    for now in driven.unbind(1):
        gates = now + torch.addmm(bias, state, weight.T)
        enter, forget, candidate, leave = gates.chunk(4, dim=-1)
        memory = torch.sigmoid(forget) * memory + torch.sigmoid(enter) * torch.tanh(candidate)
        state = torch.sigmoid(leave) * torch.tanh(memory)
        states.append(state)
    return torch.stack(states, dim=1)
