"""A cohort that several processes train in parts gives the mean that one loop gives."""

from __future__ import annotations

from pathlib import Path

import torch

from fedsys import config
from simulations.benchmarks.peers.deal import deal
from simulations.benchmarks.peers.work import part_of, train_client, train_part


def test_parts_weighted_by_their_clients_are_the_mean(tmp_path: Path) -> None:
    small = ["population.clients=50", "cohort.expected=7", "task.options.examples=500"]
    job, sites = config.load("w5", small), 3
    work = deal(job, tmp_path, tmp_path, rounds=2, everyone=False)
    cohort = next(iter(work.cohorts(1)))
    start = {name: value.clone() for name, value in work.task.init_model(0).state_dict().items()}
    wanted = {name: torch.zeros_like(value) for name, value in start.items()}
    for client in cohort:
        model = work.task.init_model(0).train()
        train_client(work, model, client)
        for name, value in model.state_dict().items():
            wanted[name] += value / len(cohort)
    parts = [part_of(cohort, site, sites) for site in range(1, sites + 1)]
    assert sorted(client for part in parts for client in part) == sorted(cohort)
    model = work.task.init_model(0).train()
    means = [train_part(work, model, start, part) for part in parts]
    for name, value in wanted.items():
        shares = zip(means, parts, strict=True)
        found = sum(mean[name] * (len(part) / len(cohort)) for mean, part in shares)
        assert torch.allclose(torch.as_tensor(found), value, rtol=0, atol=1e-6)
