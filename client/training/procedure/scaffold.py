"""SCAFFOLD: control variates that correct each client's drift.

Karimireddy, Kale, Mohri, Reddi, Stich, Suresh 2020, "SCAFFOLD: Stochastic Controlled Averaging for
Federated Learning", Algorithm 1 with option II. Client i keeps c_i and steps along
g - c_i + c; after K steps of size h from x to y it has c_i+ = c_i - c + (x - y) / (K h), and sends
y - x and c_i+ - c_i. The server's part is `server.strategies`' ``scaffold``, which sends c.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from client.training.local import LocalConfig
from client.training.procedure.local import Local
from fedsys.errors import TrainingError
from fedsys.privacy.encoding.parts import Block
from fedsys.tasks import Examples

__all__ = ["Scaffold"]

CONTROL = "control"


class Scaffold:
    """Options: ``control_clip``, the norm of c_i+ - c_i (10 by default)."""

    def sends(self, model: nn.Module, config: LocalConfig) -> Mapping[str, Block]:
        """The change of the control variate: as many numbers as the model trains."""
        size = sum(each.numel() for each in model.parameters() if each.requires_grad)
        return {CONTROL: Block(shape=(size,), clip=float(config.options.get("control_clip", 10.0)))}

    def local_update(self, model: nn.Module, examples: Examples, local: Local) -> None:
        """Train along corrected gradients, and send the change of the control variate."""
        if local.config.optimizer.lower() != "sgd" or local.config.momentum:
            raise TrainingError(
                f"local.procedure = 'scaffold' with local.optimizer = {local.config.optimizer!r}: "
                f"its control variates are sums of gradients; use 'sgd' without momentum"
            )
        shared = local.shared.get(CONTROL)
        if shared is None:
            raise TrainingError(
                "local.procedure = 'scaffold' needs server.strategy = 'scaffold', which sends the "
                "server's control variate"
            )
        named = {name: each for name, each in model.named_parameters() if each.requires_grad}
        own = local.state.get(CONTROL, torch.zeros_like(shared)).to(shared.device)
        offset = _like(shared - own, named)
        begin = {name: each.detach().clone() for name, each in named.items()}

        def corrected(name: str, _parameter: nn.Parameter, gradient: Tensor) -> Tensor:
            return gradient + offset[name]

        steps = local.train(model, examples, correct=corrected)
        path = sum(
            local.config.rate(round=local.round, rounds=local.rounds, step=step, steps=steps)
            for step in range(1, steps + 1)
        )
        moved = torch.cat(
            [(begin[name] - each.detach()).reshape(-1) for name, each in named.items()]
        )
        fresh = own - shared + moved / max(path, 1e-12)
        local.send(CONTROL, fresh - own)
        local.state[CONTROL] = fresh


def _like(flat: Tensor, named: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """A flat vector in the shapes of the parameters."""
    pieces = torch.split(flat, [each.numel() for each in named.values()])
    return {
        name: piece.view_as(each) for (name, each), piece in zip(named.items(), pieces, strict=True)
    }
