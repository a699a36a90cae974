"""Writes a work to files that every engine reads."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from client.training import LocalConfig
from client.training.schedule import batches
from fedsys import tasks
from fedsys.config import Config
from fedsys.tasks.partition import Resampled
from fedsys.wire.assignment import batch_seed
from simulations.benchmarks.peers.work import Work, cohorts
from simulations.setting import partition_of

__all__ = ["deal"]

_CHECKED = 4


def deal(
    job: Config,
    data: Path,
    folder: Path,
    *,
    rounds: int,
    everyone: bool,
    checked: int = _CHECKED,
) -> Work:
    """Write the pool of examples, and the rows that clients visit, as files in `folder`.

    A population may be too large to list. Then only the clients in the cohorts of the first
    `rounds` rounds are listed.

    Args:
        job: States the model, data and hyperparameters.
        data: Folder with data files.
        folder: Folder to write to.
        rounds: Largest number of rounds that an engine will run.
        everyone: Whether to list the whole population, for an engine that draws its own cohorts.
        checked: Clients whose updates are compared.

    Raises:
        FedsysError: The data is missing, or too little for the population.
    """
    task = tasks.load(job.task.name, job.task.options)
    held = task.clients(tasks.DataSource.locate(data))
    partition = partition_of(job, held)
    population = partition.clients
    size = min(job.cohort.expected, population)
    drawn = list(cohorts(job.job.seed, population, size, rounds))
    ids = np.arange(population) if everyone else np.unique(np.concatenate(drawn))
    local = LocalConfig(**job.local.model_dump())
    order = [
        np.concatenate(
            [
                np.zeros(0, dtype=np.int64),
                *batches(partition.indices_of(client), batch_seed(job.job.seed, 1, client), local),
            ]
        )
        for client in ids.tolist()
    ]
    np.save(folder / "x.npy", held.train.x.numpy())
    np.save(folder / "y.npy", held.train.y.numpy())
    np.save(folder / "ids.npy", ids)
    np.save(folder / "offsets.npy", np.cumsum([0, *map(len, order)], dtype=np.int64))
    np.save(folder / "order.npy", np.concatenate(order))
    options = dict(job.task.options)
    description = {
        "task": job.task.name,
        "options": options,
        "check_options": {**options, "dropout": False} if job.task.name == "cifar10" else options,
        "seed": job.job.seed,
        "clients": population,
        "cohort": size,
        "checked": drawn[0][:checked],
        "examples_per_client": _mean_size(partition),
        "local": job.local.model_dump(),
    }
    (folder / "work.json").write_text(json.dumps(description))
    return Work.read(folder)


def _mean_size(partition: tasks.Partition) -> float:
    if isinstance(partition, Resampled):
        return float(partition.size)
    sizes = [len(partition.indices_of(client)) for client in range(partition.clients)]
    return float(np.mean(sizes))
