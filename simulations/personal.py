"""What each virtual client has of a run: its own examples, and what it kept, with the last model.

These figures are of single clients. They are for people who simulate, and no privacy claim covers
them: a deployment has no such view.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from fedsys import tasks
from fedsys.errors import ConfigError
from fedsys.run_folder import RunFolder
from simulations.client_states import NAME, ClientStates
from simulations.setting import partition_of

__all__ = ["Figures", "evaluate_clients"]

_EVER = 1 << 31


@dataclass(frozen=True, kw_only=True)
class Figures:
    """One figure of each client.

    Attributes:
        values: By client.
    """

    values: dict[int, float]

    @property
    def mean(self) -> float:
        """Over clients, each counting alike."""
        return float(np.mean(list(self.values.values())))

    @property
    def worst_decile(self) -> float:
        """The figure below which a tenth of the clients are."""
        return float(np.quantile(list(self.values.values()), 0.1))


def evaluate_clients(
    path: Path,
    evaluate: Callable[[nn.Module, tasks.Examples, dict[str, Tensor]], float],
    *,
    clients: Sequence[int] | None = None,
    data: Path | None = None,
    task: tasks.Task | None = None,
    partition: str | None = None,
) -> Figures:
    """Evaluate a finished run's model for each client.

    Args:
        path: The run's folder.
        evaluate: Called with a copy of the model, a client's examples and what it kept in
            ``local.state``; it may train the model first, and returns the client's figure.
        clients: Which clients; by default all that hold examples.
        data: Folder with data files, searched before ``$FEDSYS_DATA``.
        task: The task that the run was given as an object; None loads a shipped one by
            its name.
        partition: The name of the run's partition, where that is the user's own code.

    Raises:
        ConfigError: The run's task or partition is custom code, and was not given.
        FedsysError: The run or its data cannot be read.
    """
    folder = RunFolder.open(path)
    config = folder.read_config()
    if task is None and ":" in config.task.name:
        raise ConfigError(
            f"{path}: its task {config.task.name} is custom code; if you trust it, give it: "
            f"evaluate_clients(folder, ..., task=...)"
        )
    if ":" in config.population.partition and config.population.partition != partition:
        raise ConfigError(
            f"{path}: its partition {config.population.partition} is custom code; if you trust it, "
            f"name it: evaluate_clients(folder, ..., partition={config.population.partition!r})"
        )
    task = task or tasks.load(config.task.name, config.task.options)
    held = tasks.read_data(task, tasks.DataSource.locate(data))
    dealt = partition_of(config, held)
    weights = torch.load(folder.model, weights_only=True)
    states = ClientStates(path / NAME)
    found: dict[int, float] = {}
    for client in range(dealt.clients) if clients is None else clients:
        rows = torch.from_numpy(np.asarray(dealt.indices_of(client)))
        if not len(rows):
            continue
        model = task.init_model(config.job.seed)
        model.load_state_dict(weights)
        own = held.train.take(rows)
        with tasks.seeded(config.job.seed + client):
            found[client] = float(evaluate(model, own, states.load(client, _EVER)))
    states.close()
    return Figures(values=found)
