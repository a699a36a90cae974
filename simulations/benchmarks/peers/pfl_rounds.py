"""pfl-research's backend, FedAvg and PyTorch model. ``pfl_rounds.py WORK ROUNDS OUT``"""

# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.algorithm.fedprox import FedProx, FedProxParams
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.hyperparam import NNTrainHyperParams
from pfl.internal.bridge.pytorch.proximal import PyTorchFedProxBridge
from pfl.internal.bridge.pytorch.sgd import PyTorchSGDBridge
from pfl.metrics import Metrics
from pfl.model.pytorch import PyTorchModel
from torch import Tensor, nn

from simulations.benchmarks.peers.clock import Clock
from simulations.benchmarks.peers.work import Work, delta_of, optimizer_of

_KEPT = 2000


class Module(nn.Module):
    """The task's model with the two methods that pfl requires."""

    def __init__(self, work: Work) -> None:
        super().__init__()
        self.inner, self._task = work.task.init_model(work.seed), work.task

    def loss(self, x: Tensor, y: Tensor, is_eval: bool = False) -> Tensor:
        return self._task.loss(self.inner(x), y).mean()

    def metrics(self, x: Tensor, y: Tensor, is_eval: bool = True) -> dict[str, Any]:
        return {}


class Client(Dataset):  # type: ignore[misc]
    """A client's data, with the work's batches of all epochs in one pass."""

    def __init__(self, work: Work, client: int) -> None:
        super().__init__(work.data(client))
        self._steps = list(work.batches(*self.raw_data))

    def iter(self, batch_size: int | None) -> Iterator[tuple[Tensor, Tensor]]:
        """Prepared batches, as pfl's own dataset keeps them."""
        return iter(self._steps)


class Lap(TrainingProcessCallback):  # type: ignore[misc]
    """Reports each central iteration to the clock."""

    def __init__(self, clock: Clock, work: Work, cohorts: Sequence[Sequence[int]]) -> None:
        self._clock, self._work, self._cohorts = clock, work, cohorts

    def after_central_iteration(
        self, aggregate_metrics: Any, model: Any, *, central_iteration: int
    ) -> tuple[bool, Any]:
        cohort = self._cohorts[central_iteration]
        self._clock.lap(len(cohort), self._work.examples(cohort))
        return False, Metrics()


def model_of(work: Work) -> Any:
    """A fresh pfl model."""
    module = Module(work).train()
    local = functools.partial(optimizer_of, work.local)
    return PyTorchModel(module, local, torch.optim.SGD(module.parameters(), lr=1.0))


def hyperparameters(work: Work) -> Any:
    """The remaining hyperparameters in pfl's form: its model has the optimizer, its data the
    epochs."""
    return NNTrainHyperParams(
        local_batch_size=work.local.batch_size,
        local_num_epochs=1,
        local_learning_rate=work.local.learning_rate,
    )


def simulate(work: Work, rounds: int, clock: Clock) -> None:
    """Run federated averaging, or FedProx, over the work's cohorts."""
    cohorts = list(work.cohorts(rounds))
    order = iter([client for cohort in cohorts for client in cohort])
    # A small population's data is built once and kept; a large one's is built when it is needed.
    client = functools.lru_cache(maxsize=_KEPT)(functools.partial(Client, work))
    facts = {
        "central_num_iterations": rounds,
        "evaluation_frequency": 10**9,
        "train_cohort_size": work.cohort,
        "val_cohort_size": None,
    }
    mu = work.local.proximal_mu
    algorithm = FedProx() if mu else FederatedAveraging()
    params = FedProxParams(**facts, mu=mu) if mu else NNAlgorithmParams(**facts)
    federated = FederatedDataset(client, lambda: next(order))
    model, hyper = model_of(work), hyperparameters(work)
    clock.start()
    algorithm.run(
        params,
        SimulatedBackend(training_data=federated, val_data=None),
        model,
        hyper,
        callbacks=[Lap(clock, work, cohorts)],
    )


def updates(work: Work) -> NDArray[np.float64]:
    """(checked, d) updates of pfl's local training."""
    found = []
    for client in work.checked:
        model, data, hyper = model_of(work), Client(work, client), hyperparameters(work)
        module = model.pytorch_model
        before = {name: value.detach().clone() for name, value in module.named_parameters()}
        if work.local.proximal_mu:
            PyTorchFedProxBridge.do_proximal_sgd(model, data, hyper, work.local.proximal_mu)
        else:
            PyTorchSGDBridge.do_sgd(model, data, hyper)
        found.append(delta_of(before, module))
    return np.stack(found)


def main() -> None:
    """Entry point of the process."""
    folder, rounds, out = Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(int(sys.argv[4]))
    work, clock = Work.read(folder), Clock()
    simulate(work, rounds, clock)
    clock.write(out)  # first: what follows is no part of the measured job
    np.save(out.with_suffix(".npy"), updates(work.for_check()))


if __name__ == "__main__":
    main()
