"""The client app of a Flower actor, in its own module because Ray imports it by name."""

from __future__ import annotations

import functools
from pathlib import Path

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from simulations.benchmarks.peers.work import Work, train_client

__all__ = ["client_app"]


@functools.cache
def _work(folder: str) -> tuple[Work, torch.nn.Module]:
    torch.set_num_threads(1)
    work = Work.read(Path(folder))
    return work, work.task.init_model(work.seed).train()


def client_app(folder: str) -> ClientApp:
    """A client app that trains the client a node stands for."""
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
                "metrics": MetricRecord({"num-examples": work.examples([client])}),
            }
        )
        return Message(content=content, reply_to=message)

    return app
