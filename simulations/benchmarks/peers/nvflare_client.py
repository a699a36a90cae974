"""A site of NVFlare's simulator: trains its part of each cohort, one client after the other.

NVFlare runs this file in a process of its own for every site, with ``WORK ROUNDS OUT BEGAN`` as
arguments. The first site keeps the time: a round ends when the site receives the next model.
"""

# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import nvflare.client as flare
import torch
from torch import nn

from fedsys import tasks
from simulations.benchmarks.peers.clock import Clock
from simulations.benchmarks.peers.work import Work, part_of, train_part

__all__ = ["FIRST_ROUND", "Model"]

FIRST_ROUND = "nvflare_first_round.pt"


class Model(nn.Module):
    """The work's model with its initial weights; NVFlare builds it by name, on the server."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        facts = json.loads((Path(folder) / "work.json").read_text())
        self.inner = tasks.load(facts["task"], facts["options"]).init_model(facts["seed"])


def main() -> None:
    """Entry point of a site."""
    folder, rounds, out = Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(1)
    work = Work.read(folder)
    cohorts = list(work.cohorts(rounds))
    model = work.task.init_model(work.seed).train()
    # The simulator is the parent of all sites.
    clock = Clock(root=os.getppid())
    clock.start(float(sys.argv[4]))
    flare.init()
    site, sites = int(flare.get_site_name().removeprefix("site-")), int(sys.argv[5])
    while flare.is_running():
        received = flare.receive()
        if received is None:
            break
        number = received.current_round  # from 0
        start = {
            name.removeprefix("inner."): torch.as_tensor(value)
            for name, value in received.params.items()
        }
        if site == 1 and number:
            clock.lap(work.cohort, work.examples(cohorts[number - 1]))
        if site == 1 and number == 1:
            torch.save(start, out.with_name(FIRST_ROUND))
        if number == rounds:  # one more than asked for, so that the last one's end is seen
            if site == 1:
                clock.write(out)
            mine, mean = [], start
        else:
            mine = part_of(cohorts[number], site, sites)
            mean = train_part(work, model, start, mine)
        flare.send(
            flare.FLModel(
                params={f"inner.{name}": value for name, value in mean.items()},
                # NVFlare weights a site's model by this, so it is the mean over clients.
                meta={"NUM_STEPS_CURRENT_ROUND": max(len(mine), 1)},
            )
        )


if __name__ == "__main__":
    main()
