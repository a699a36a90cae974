"""NVFlare's simulator with its FedAvg recipe. ``nvflare_rounds.py WORK ROUNDS OUT SITES``

The simulator keeps a process for each site, which is what NVFlare advises where memory allows, and
refuses more than 100 sites; a new process for each client's turn would be its other way. So there
are as many sites as this is told, and each trains its part of the cohort, one client after the
other. Everything else has NVFlare's defaults.
"""

# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import contextlib
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from nvflare.app_opt.pt.recipes.fedavg import FedAvgRecipe
from nvflare.recipe import SimEnv

from simulations.benchmarks.peers import nvflare_client
from simulations.benchmarks.peers.nvflare_client import FIRST_ROUND
from simulations.benchmarks.peers.work import Work, part_of, train_part, updates

_OF_UPDATE, _OF_WEIGHT = 1e-4, 1e-6
"""How much a parameter may differ by, relative to the largest update and weight of its tensor: sums
are rounded in another order. Sites that were weighted wrongly would differ by more."""


def simulate(folder: Path, rounds: int, out: Path, sites: int) -> None:
    """Run federated averaging over the work's cohorts.

    Raises:
        RuntimeError: NVFlare failed, or ended before the last round.
    """
    began = time.perf_counter()
    out.unlink(missing_ok=True)
    module = nvflare_client.__name__
    recipe = FedAvgRecipe(
        name="rounds",
        model={"class_path": f"{module}.Model", "args": {"folder": str(folder)}},
        min_clients=sites,
        num_rounds=rounds + 1,
        train_script=str(nvflare_client.__file__),
        train_args=f"{folder} {rounds} {out} {began} {sites}",
    )
    with tempfile.TemporaryDirectory() as workspace, contextlib.chdir(workspace):
        recipe.execute(SimEnv(num_clients=sites, num_threads=sites, workspace_root=workspace))
    if not out.exists():
        raise RuntimeError(f"NVFlare's simulator did not reach round {rounds}")


def verify(work: Work, sites: int, first: Path) -> None:
    """Compare the model after the first round with the mean of the plain loop's models.

    Raises:
        RuntimeError: They differ, so NVFlare did not compute the same.
    """
    torch.set_num_threads(1)
    model = work.task.init_model(work.seed).train()
    start = {name: value.clone() for name, value in model.state_dict().items()}
    cohort = next(iter(work.cohorts(1)))
    parts = [part_of(cohort, site, sites) for site in range(1, sites + 1)]
    means = [train_part(work, model, start, part) for part in parts]
    for name, found in torch.load(first, weights_only=True).items():
        shares = zip(means, parts, strict=True)
        wanted = torch.stack([mean[name] * (len(part) / len(cohort)) for mean, part in shares]).sum(
            dim=0
        )
        differs = float((found - wanted).abs().max())
        moved, size = float((wanted - start[name]).abs().max()), float(wanted.abs().max())
        if differs > _OF_UPDATE * moved + _OF_WEIGHT * size:
            raise RuntimeError(f"{name}: NVFlare's model differs from the loop's by {differs:.1e}")


def main() -> None:
    """Entry point of the process."""
    folder, rounds, out = Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]).resolve()
    sites = int(sys.argv[4])
    simulate(folder, rounds, out, sites)
    work = Work.read(folder)
    verify(work, sites, out.with_name(FIRST_ROUND))
    np.save(out.with_suffix(".npy"), updates(work))


if __name__ == "__main__":
    main()
