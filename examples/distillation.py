"""Distillation: while a client trains, the round's model teaches it what its own data lacks.

    python examples/distillation.py [--quick]

Clients hold few classes each and forget the others. The loss adds the distance to the round's model
over the classes, softened (Hinton et al. 2015; as a federated method: Yao et al. 2021, FedGKD,
arXiv:2107.00051). Compared with FedAvg on the same clients.
"""

from __future__ import annotations

import copy
import sys
from typing import Any

import torch
from torch import Tensor, nn

import fedsys
from fedsys.tasks import Examples
from fedsys.tasks.digits import Digits

STRENGTH, TEMPERATURE = 0.1, 2.0


class Taught(Digits):
    """The digits, with the round's model as teacher."""

    def __init__(self) -> None:
        super().__init__({"hidden": 32})

    def local_update(self, model: nn.Module, examples: Examples, local: Any) -> None:
        """The task's loss, and the teacher's."""
        teacher = copy.deepcopy(model).eval().requires_grad_(False)

        def loss(model: nn.Module, batch: Examples) -> Tensor:
            outputs, wanted = model(batch.x), teacher(batch.x)
            taught = nn.functional.kl_div(
                (outputs / TEMPERATURE).log_softmax(1),
                (wanted / TEMPERATURE).softmax(1),
                reduction="batchmean",
            )
            return self.loss(outputs, batch.y).mean() + STRENGTH * TEMPERATURE**2 * taught

        local.train(model, examples, loss=loss)


def main(*, quick: bool = False) -> dict[str, float]:
    """Both ways, and the average of the last evaluations."""
    settings: dict[str, Any] = {
        "population.clients": 20,
        "population.partition": "dirichlet",
        "population.alpha": 0.1,
        "cohort.expected": 10,
        "cohort.sampling": "fixed",
        "rounds.count": 8 if quick else 30,
        "local.epochs": 5,
        "local.batch_size": 10,
        "local.learning_rate": 0.3,
        "server.strategy": "fedavg",
        "server.learning_rate": 1.0,
        "privacy.mechanism": "none",
        "privacy.clip": 15.0,
        "aggregation.protocol": "float",
        "engine.processes": 1,
    }
    found = {}
    for name, procedure in (("fedavg", "train"), ("distillation", "")):
        run = fedsys.simulate(
            {**settings, "job.name": name, "local.procedure": procedure}, task=Taught
        )
        last = [row["accuracy"] for row in run.history][-5:]
        found[name] = sum(last) / len(last)
        print(f"{name}: accuracy {found[name]:.3f} (mean of the last five rounds)")
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(quick="--quick" in sys.argv)
