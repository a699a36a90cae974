"""Flower's simulation engine on Ray, one CPU per client. ``flower_rounds.py WORK ROUNDS OUT``"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

from simulations.benchmarks.peers.clock import Clock
from simulations.benchmarks.peers.flower_client import client_app
from simulations.benchmarks.peers.work import Work, updates


class WholeCohorts(FedAvg):
    """FedAvg that goes on only if every client of the cohort trained: a rate counts them all.

    Attributes:
        examples: Examples that the last round's clients hold; Flower draws its own cohorts.
    """

    examples = 0

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Aggregate the replies.

        Raises:
            RuntimeError: Some clients failed.
        """
        replies = list(replies)
        failed = [reply for reply in replies if reply.has_error()]
        if failed:
            raise RuntimeError(
                f"round {server_round}: {len(failed)} of {len(replies)} clients failed, the first "
                f"for {failed[0].error.reason}"
            )
        metrics = [reply.content.metric_records["metrics"] for reply in replies]
        self.examples = int(sum(found["num-examples"] for found in metrics))  # type: ignore[misc]
        return super().aggregate_train(server_round, replies)


def server_app(work: Work, rounds: int, clock: Clock) -> ServerApp:
    """A server app that runs FedAvg with cohorts of the work's size."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        strategy = WholeCohorts(
            fraction_train=work.cohort / work.clients,
            fraction_evaluate=0.0,
            min_train_nodes=work.cohort,
            min_available_nodes=work.clients,
        )

        def lap(number: int, arrays: Any) -> MetricRecord:
            if number:
                clock.lap(work.cohort, strategy.examples)
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
    clock.write(out)  # first: what follows is no part of the measured job
    np.save(out.with_suffix(".npy"), updates(work))


if __name__ == "__main__":
    main()
