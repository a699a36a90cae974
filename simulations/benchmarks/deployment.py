"""Costs of a deployment, against Flower's: stages, models, a thousand agents, a secure round.

    python -m simulations.benchmarks.deployment --out build/deployment

fedsys runs with mutual TLS (`simulations.benchmarks.wire`); flwr 1.42, where the extra `flower` is
installed, runs on a SuperLink without TLS (`simulations.benchmarks.flower_superlink`). They take
turns, so that other load on the machine affects both. Every turn is a fresh start, and the figures
are medians of the turns. Prints a table, and writes ``deployment.json`` with every turn.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fedsys.installation import how_to_install
from simulations.benchmarks import flower_superlink, secure_round, wire

__all__ = ["compare", "table"]

Figures = dict[str, Any]
Measure = Callable[..., Figures]
_ROWS = (
    ("empty_stage_ms", "empty stage, median, ms"),
    ("empty_stage_worst_ms", "empty stage, worst, ms"),
    ("10_mb_down_s", "10 MB to one agent, s"),
    ("10_mb_down_and_up_s", "10 MB to one agent and back, s"),
    ("100_mb_down_s", "100 MB to one agent, s"),
    ("100_mb_down_and_up_s", "100 MB to one agent and back, s"),
    ("rss_mb", "memory of the server, MB"),
    ("rss_of_an_agent_mb", "memory of a SuperNode, MB"),
    ("rss_of_all_at_most_mb", "memory of all of Flower, at most, MB"),
    ("idle_cpu_percent", "server's CPU when idle, % of a core"),
    ("connect_seconds", "until all are connected, s"),
)


def compare(
    engines: dict[str, Measure], agents: Sequence[int], *, turns: int, megabytes: list[int]
) -> list[Figures]:
    """Measure every engine with every number of agents, in turns.

    Args:
        engines: Measuring functions, by name.
        agents: Numbers of agents; models are sent only with the first number.
        turns: Number of turns of each engine.
        megabytes: Sizes of models.

    Returns:
        One entry for each turn: engine, turn, figures and the machine's load.
    """
    found = []
    for turn in range(turns):
        for number in agents:
            sizes = megabytes if number == agents[0] else []
            for name, measure in engines.items():
                figures = measure(number, megabytes=sizes)
                found.append(
                    {
                        "engine": name,
                        "turn": turn,
                        "load": round(os.getloadavg()[0], 1),
                        **figures,
                    }
                )
                print(json.dumps(found[-1]), flush=True)
    return found


def table(lines: Sequence[Figures]) -> str:
    """Medians of the turns, as Markdown."""
    columns = sorted({(line["agents"], line["engine"]) for line in lines})
    heads = [f"{engine}, {agents} agents" for agents, engine in columns]
    found = ["| | " + " | ".join(heads) + " |", "| --- |" + " ---: |" * len(heads)]
    for key, title in _ROWS:
        cells = []
        for agents, engine in columns:
            values = [
                line[key]
                for line in lines
                if (line["agents"], line["engine"]) == (agents, engine) and key in line
            ]
            cells.append(_readable(statistics.median(values)) if values else "")
        if any(cells):
            found.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(found)


def _readable(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def main() -> None:
    """Measure everything and print the table; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--agents", type=int, nargs="*", default=[3, 20], help="against Flower")
    parser.add_argument("--alone", type=int, nargs="*", default=[200, 1000])
    parser.add_argument("--megabytes", type=int, nargs="*", default=[10, 100])
    parser.add_argument("--stages", type=int, default=20)
    parser.add_argument("--flower-stages", type=int, default=3, help="each takes seconds")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--secure", type=int, default=100, help="agents in the secure round, or 0")
    parser.add_argument("--dimension", type=int, default=1_000_000)
    parser.add_argument("--out", type=Path, default=Path("build/deployment"))
    given = parser.parse_args()

    def ours(agents: int, *, megabytes: list[int]) -> Figures:
        return wire.measure(agents, stages=given.stages, megabytes=megabytes)

    def flower(agents: int, *, megabytes: list[int]) -> Figures:
        return flower_superlink.measure(agents, stages=given.flower_stages, megabytes=megabytes)

    engines: dict[str, Measure] = {"fedsys": ours}
    if importlib.util.find_spec("flwr") is not None:
        engines["flwr"] = flower
    else:
        print(f"flwr is not installed: fedsys alone; install it: {how_to_install('flower')}")
    lines = compare(engines, given.agents, turns=given.turns, megabytes=given.megabytes)
    lines += compare({"fedsys": ours}, given.alone, turns=given.turns, megabytes=[])
    secure = None
    if given.secure:
        secure = secure_round.measure(given.secure, dimension=given.dimension)
        print(json.dumps(secure), flush=True)
    given.out.mkdir(parents=True, exist_ok=True)
    body = {"machine": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    path = given.out / "deployment.json"
    path.write_text(json.dumps({**body, "turns": lines, "secure_round": secure}, indent=1))
    print("\n" + table(lines))
    print(f"\n{path}")


if __name__ == "__main__":
    main()
