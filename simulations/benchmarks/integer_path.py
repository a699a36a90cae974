"""What the integer path adds to `float`: nanoseconds for each client and coordinate.

    python -m simulations.benchmarks.integer_path

``noise``: every client's share is drawn and added to the sum, at the deviations of W5, W2 and of
12 million weights. ``clip and sum``: updates are clipped, rounded and added, all of them below
the norm or all of them above. CPU time of one thread; parts take turns, and the medians of the
turns are printed, so that other work on the machine disturbs them little.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import torch

from client.privatize.integers import add_clipped_integers
from fedsys.privacy.noise import noise_sampler
from fedsys.privacy.randomness import AesCtrStream
from simulations.benchmarks.machine import machine, one_core

__all__ = ["main", "measure"]

_COMMAND = "python -m simulations.benchmarks.integer_path"
_DEVIATIONS = {"W5": 140.0, "W2": 1_460.0, "12 million weights": 40_000.0}


def measure(*, clients: int, dimension: int, turns: int) -> dict[str, float]:
    """Nanoseconds a client and coordinate of each part, medians of the turns."""
    parts = _parts(clients, dimension)
    found: dict[str, list[float]] = {name: [] for name in parts}
    with one_core():
        for turn in range(turns + 1):  # the first builds tables and warms up
            for name, part in parts.items():
                spent = part()
                if turn:
                    found[name].append(1e9 * spent / (clients * dimension))
    return {name: statistics.median(each) for name, each in found.items()}


def _parts(clients: int, dimension: int) -> Mapping[str, Callable[[], float]]:
    """By name, a call that returns the CPU seconds of its part."""
    total = np.zeros(dimension, dtype=np.int64)
    whole = torch.zeros(dimension, dtype=torch.float64)
    drawn = torch.randn((clients, dimension), generator=torch.Generator().manual_seed(0))
    drawn /= drawn.norm(dim=1, keepdim=True)

    def noise(deviation: float) -> float:
        streams = [AesCtrStream(client.to_bytes(32, "big")) for client in range(clients)]
        began = time.thread_time()
        noise_sampler(deviation).add_sum(total, streams)
        return time.thread_time() - began

    def clipped(norm: float) -> float:
        updates = drawn.clone()  # clipping may overwrite them
        began = time.thread_time()
        add_clipped_integers(whole, updates, clip=norm)
        return time.thread_time() - began

    return {
        **{
            f"noise and its sum, sigma {deviation:,.0f} ({name})": partial(noise, deviation)
            for name, deviation in _DEVIATIONS.items()
        },
        "clip and sum, rows below the norm": partial(clipped, 2.0),
        "clip and sum, clipped rows": partial(clipped, 0.5),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--clients", type=int, default=25)
    parser.add_argument("--dimension", type=int, default=50_890)
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args(arguments)
    if min(options.clients, options.dimension, options.turns) < 1:
        raise SystemExit("--clients, --dimension and --turns must be 1 or more")
    found = measure(clients=options.clients, dimension=options.dimension, turns=options.turns)
    print("| part | ns |\n| --- | ---: |")
    for name, value in found.items():
        print(f"| {name} | {value:.2g} |")
    where = machine()
    print(
        f"\n{options.clients} clients of {options.dimension:,} coordinates; {where['processor']}, "
        f"load {where['load']:.1f}; `{' '.join([_COMMAND, *sys.argv[1:]])}`"
    )


if __name__ == "__main__":
    main()
