"""Flower's simulation engine on Ray, one CPU a client. ``flower_rounds.py WORK ROUNDS OUT``"""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

from simulations.benchmarks.peers.work import Clock, Work, delta_of, train_client


@functools.cache
def _work(folder: str) -> tuple[Work, torch.nn.Module]:
    torch.set_num_threads(1)
    work = Work.read(Path(folder))
    return work, work.task.init_model(work.seed).train()


def client_app(folder: str) -> ClientApp:
    """Trains whichever client a node stands for."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        work, model = _work(folder)
        model.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
        client = int(context.node_config["partition-id"])
        train_client(work, model, client)
        content = RecordDict(
            {
                "arrays": ArrayRecord(model.state_dict()),
                "metrics": MetricRecord({"num-examples": len(work.rows(client)[0])}),
            }
        )
        return Message(content=content, reply_to=message)

    return app


def server_app(work: Work, rounds: int, clock: Clock) -> ServerApp:
    """FedAvg over the stated cohort."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        strategy = FedAvg(
            fraction_train=work.cohort / work.clients,
            fraction_evaluate=0.0,
            min_train_nodes=work.cohort,
            min_available_nodes=work.clients,
        )

        def lap(number: int, arrays: Any) -> MetricRecord:
            if number:
                clock.lap(work.cohort)
            else:
                clock.start()
            return MetricRecord()

        initial = ArrayRecord(work.task.init_model(work.seed).state_dict())
        strategy.start(grid=grid, initial_arrays=initial, num_rounds=rounds, evaluate_fn=lap)

    return app


def main() -> None:
    """Entry point of the process."""
    folder, rounds, out = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    cpus = len(os.sched_getaffinity(0))
    work, clock = Work.read(Path(folder)), Clock()
    run_simulation(
        server_app=server_app(work, rounds, clock),
        client_app=client_app(folder),
        num_supernodes=work.clients,
        backend_config={
            "init_args": {"num_cpus": cpus, "include_dashboard": False},
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        },
    )
    work = work.for_check()
    fresh = work.task.init_model(work.seed).train()
    before = {name: value.detach().clone() for name, value in fresh.named_parameters()}
    train_client(work, fresh, 0)
    np.save(out.with_suffix(".npy"), delta_of(before, fresh))
    clock.write(out)


if __name__ == "__main__":
    main()
