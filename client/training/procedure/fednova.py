"""FedNova: updates divided by the number of their steps, so that long trainings do not pull.

Wang, Liu, Liang, Joshi, Poor 2020, "Tackling the Objective Inconsistency Problem in Heterogeneous
Federated Optimization", equation 8 and section 4. Client i sends d_i = (y_i - x) / t_i and t_i,
where t_i is the L1 norm of the coefficients with which its gradients were added: the number of
steps for SGD, and (s - m (1 - m^s) / (1 - m)) / (1 - m) for s steps with momentum m. The server's
part is `server.strategies`' ``fednova``: x + mean(t) mean(d).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from client.training.local import LocalConfig
from client.training.procedure.local import Local
from fedsys.errors import TrainingError
from fedsys.privacy.encoding.parts import Block
from fedsys.tasks import Examples

__all__ = ["FedNova", "gradients_added"]

STEPS = "steps"


class FedNova:
    """Options: ``most_steps``, the largest t_i that is told (100 by default); ``step_clip``, what
    the block takes of ``privacy.clip`` (0.1 by default); ``epochs``, see `Local.epochs`."""

    def sends(self, model: nn.Module, config: LocalConfig) -> Mapping[str, Block]:
        """t_i."""
        most = float(config.options.get("most_steps", 100.0))
        scale = float(config.options.get("step_clip", 0.1)) / most
        return {STEPS: Block(shape=(), clip=most, scale=scale)}

    def local_update(self, model: nn.Module, examples: Examples, local: Local) -> None:
        """Train, divide the update by t_i, and send t_i."""
        if local.config.optimizer.lower() != "sgd":
            raise TrainingError(
                f"local.procedure = 'fednova' with local.optimizer = {local.config.optimizer!r}: "
                f"its normalisation is that of SGD; use 'sgd'"
            )
        begin = [each.detach().clone() for each in model.parameters() if each.requires_grad]
        steps = local.train(model, examples, epochs=local.epochs())
        added = gradients_added(steps, local.config.momentum)
        with torch.no_grad():
            trained = (each for each in model.parameters() if each.requires_grad)
            for each, start in zip(trained, begin, strict=True):
                each.copy_(start + (each - start) / max(added, 1.0))
        local.send(STEPS, added)


def gradients_added(steps: int, momentum: float) -> float:
    """L1 norm of the coefficients with which SGD adds the gradients of its steps.

    >>> gradients_added(7, 0.0), gradients_added(2, 0.5)
    (7.0, 2.5)
    """
    if not momentum:
        return float(steps)
    return (steps - momentum * (1 - momentum**steps) / (1 - momentum)) / (1 - momentum)
