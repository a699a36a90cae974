"""The training process: reads one request, confines itself, trains, answers and exits.

The request comes on standard input, the answer goes to standard output; the examples come as a file
descriptor, which is mapped and closed. From then on no file, socket or process can be opened
(`client.graphs.sandbox`); only then is the graph parsed for the first time.
"""

from __future__ import annotations

import sys

import numpy as np

from client.graphs.engine import check_engine, engine_of, preload
from client.graphs.example_trainer import ExampleGraphTrainer, PrivateSteps
from client.graphs.sandbox import confine, die_with_parent
from client.graphs.trainer import GraphTrainer
from client.graphs.wire import mapped, read_header, read_whole, write
from client.training.example_privacy import ExamplePrivacy
from client.training.local import LocalConfig
from fedsys.graphs import Limits, vet
from fedsys.privacy.randomness import KEY_BYTES

__all__ = ["main"]


def main() -> None:
    """Answer the one request on standard input."""
    die_with_parent()
    request = read_header(sys.stdin.buffer)
    graph = read_whole(sys.stdin.buffer, request["graph"])
    weights = np.frombuffer(read_whole(sys.stdin.buffer, request["weights"]), "<f4")
    rows = np.frombuffer(read_whole(sys.stdin.buffer, request["rows"]), "<i8")
    given = request["private"]
    private = None
    if given is not None:
        key = read_whole(sys.stdin.buffer, KEY_BYTES)
        private = PrivateSteps(privacy=ExamplePrivacy(**given), key=key)
    x, y = mapped(request["examples"], request)
    engine = check_engine(request["engine"])
    preload(engine)
    walls = confine(memory=request["memory"], seconds=request["seconds"])
    try:
        vetted = vet(graph, Limits(memory=request["memory"]))
        runs, local = engine_of(engine, vetted, request["threads"]), LocalConfig(**request["local"])
        losses: list[float] = []
        trainer: GraphTrainer | ExampleGraphTrainer
        if private is None:
            trainer = GraphTrainer(vetted.graph, runs, local, x, y)
            update, losses = trainer.update(weights, rows, request["seed"])
        else:  # losses of examples stay where they are
            trainer = ExampleGraphTrainer(vetted.graph, runs, local, x, y)
            update = trainer.update(weights, rows, private)
    except Exception as error:  # what does not fit together: one line for the agent
        write(sys.stdout.buffer, {"error": _line(f"{type(error).__name__}: {error}")})
        return
    answer = {
        "walls": walls,
        "losses": [losses[0], losses[-1]] if losses else [],
        "failed": _line(f"{trainer.failed} times, first with {trainer.failure}")
        if trainer.failed
        else "",
    }
    write(sys.stdout.buffer, answer, [update.astype("<f4").tobytes()])
    sys.stdin.buffer.read()  # stays alive until the agent has read this process's peak memory


def _line(text: str) -> str:
    return " ".join(text.split())[:400]
