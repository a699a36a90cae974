"""pfl-research: its backend, its FedAvg, its PyTorch model. ``pfl_rounds.py WORK ROUNDS OUT``"""

# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.hyperparam import NNTrainHyperParams
from pfl.internal.bridge.pytorch.sgd import PyTorchSGDBridge
from pfl.metrics import Metrics
from pfl.model.pytorch import PyTorchModel
from torch import Tensor, nn

from simulations.benchmarks.peers.work import Clock, Work, delta_of


class Module(nn.Module):
    """The task's model with the two methods that pfl asks for."""

    def __init__(self, work: Work) -> None:
        super().__init__()
        self.inner, self._task = work.task.init_model(work.seed), work.task

    def loss(self, x: Tensor, y: Tensor, is_eval: bool = False) -> Tensor:
        return self._task.loss(self.inner(x), y).mean()

    def metrics(self, x: Tensor, y: Tensor, is_eval: bool = True) -> dict[str, Any]:
        return {}


class Lap(TrainingProcessCallback):  # type: ignore[misc]
    """Tells the clock of each central iteration."""

    def __init__(self, clock: Clock, cohort: int) -> None:
        self._clock, self._cohort = clock, cohort

    def after_central_iteration(
        self, aggregate_metrics: Any, model: Any, *, central_iteration: int
    ) -> tuple[bool, Any]:
        self._clock.lap(self._cohort)
        return False, Metrics()


def model_of(work: Work) -> Any:
    """A fresh pfl model."""
    module = Module(work).train()
    return PyTorchModel(module, torch.optim.SGD, torch.optim.SGD(module.parameters(), lr=1.0))


def main() -> None:
    """Entry point of the process."""
    folder, rounds, out = Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(int(sys.argv[4]))
    work, clock = Work.read(folder), Clock()
    datasets = [Dataset(work.rows(client)) for client in range(work.clients)]
    order = iter([client for cohort in work.cohorts(rounds) for client in cohort])
    federated = FederatedDataset(lambda client: datasets[client], lambda: next(order))
    params = NNTrainHyperParams(
        local_batch_size=work.batch_size,
        local_num_epochs=1,
        local_learning_rate=work.learning_rate,
    )
    clock.start()
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=rounds,
            evaluation_frequency=10**9,
            train_cohort_size=work.cohort,
            val_cohort_size=None,
        ),
        SimulatedBackend(training_data=federated, val_data=None),
        model_of(work),
        params,
        callbacks=[Lap(clock, work.cohort)],
    )
    fresh = model_of(work.for_check())
    module = fresh.pytorch_model
    before = {name: value.detach().clone() for name, value in module.named_parameters()}
    PyTorchSGDBridge.do_sgd(fresh, datasets[0], params)
    np.save(out.with_suffix(".npy"), delta_of(before, module))
    clock.write(out)


if __name__ == "__main__":
    main()
