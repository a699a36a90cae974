"""``fedsys agent inspect``, and an agent that trains from a graph: nothing here imports torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedsys.cli.terminal import say

if TYPE_CHECKING:
    from client.graphs.worker import GraphData

__all__ = ["graph_worker", "inspect"]


def inspect(
    file: Annotated[Path, typer.Argument(help="A graph that `fedsys task export` wrote.")],
    nodes: Annotated[bool, typer.Option("--nodes", help="List every operator too.")] = False,
) -> None:
    """Check a graph as an agent would, and describe it; no part of it is run."""
    from collections import Counter

    from fedsys.graphs import read_graph
    from fedsys.printable import printable

    vetted = read_graph(file)
    graph = vetted.graph
    say(f"task      {printable(graph.task)}")
    say(f"options   {printable(dict(graph.options), 4096)}")
    say(f"computes  {' and '.join(graph.outputs)} of batches of {graph.batch_size}")
    for name, type_ in graph.inputs.items():
        say(f"input     {name}: {type_}")
    say(
        f"a step    {vetted.memory / 1e6:.1f} MB, {vetted.work / 1e6:,.1f} MFLOP, "
        f"{len(graph.nodes)} operators"
    )
    counts = Counter(node.operator for node in graph.nodes)
    say("operators " + ", ".join(f"{name} {count}" for name, count in sorted(counts.items())))
    if nodes:
        for node in graph.nodes:
            made = ", ".join(f"{name}: {vetted.values[name].type}" for name in node.outputs)
            attributes = "".join(f" {key}={value}" for key, value in node.attributes.items())
            say(f"  {made} = {node.operator}({', '.join(node.inputs)}){attributes}")
    say(f"sha256    {vetted.sha256}")


def graph_worker(graph: Path, *, data: str, engine: str, threads: int) -> GraphData:
    """The owner's data with a graph that trains on it."""
    from client.graphs.engine import check_engine
    from client.graphs.worker import GraphData
    from fedsys.graphs import read_graph

    return GraphData(read_graph(graph), data, engine=check_engine(engine), threads=threads)
