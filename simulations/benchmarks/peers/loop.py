"""A plain loop: one model, one client after the other, in float32. ``loop.py WORK ROUNDS OUT``"""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import numpy as np
import torch

from simulations.benchmarks.peers.clock import Clock
from simulations.benchmarks.peers.work import Work, train_client, updates


def main() -> None:
    """Entry point of the process."""
    folder, rounds, out = Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(int(sys.argv[4]))
    work, clock = Work.read(folder), Clock()
    model = work.task.init_model(work.seed).train()
    clock.start()
    for cohort in work.cohorts(rounds):
        start = copy.deepcopy(model.state_dict())
        total = {name: torch.zeros_like(value) for name, value in start.items()}
        for client in cohort:
            model.load_state_dict(start)
            train_client(work, model, client)
            for name, value in model.state_dict().items():
                total[name] += value - start[name]
        model.load_state_dict({name: start[name] + total[name] / len(cohort) for name in start})
        clock.lap(len(cohort), work.examples(cohort))
    np.save(out.with_suffix(".npy"), updates(work))
    clock.write(out)


if __name__ == "__main__":
    main()
