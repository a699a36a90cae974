"""The last model of a simulation client by client: how it serves each of them, and the worst.

These figures are of single clients. They are for people who simulate, and no privacy claim covers
them: a deployment has no such view, and they are never published.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsys import tasks
from fedsys.improvement import less_is_better
from simulations.population import Population
from simulations.setting import Setting

__all__ = ["MOST", "figures_of", "measured", "text_of"]

MOST = 5_000
"""Clients that are looked at; of a larger population, this many of them, drawn from the seed."""
_DIGITS = 6


def measured(setting: Setting, weights: NDArray[np.float32]) -> dict[str, Any]:
    """The content of ``clients.json``.

    Args:
        setting: of the run; `evaluation.clients` is true in it.
        weights: (d,) the last model.
    """
    population, rows = setting.population, setting.rows or setting.population.partition
    chosen = np.arange(population.size)
    if population.size > MOST:
        chosen = np.random.default_rng(population.seed).permutation(population.size)[:MOST]
        chosen.sort()
    found: dict[str, list[float]] = {}
    used: list[int] = []
    for client in chosen.tolist():
        own = _examples(population, rows.indices_of(client))
        if own is None:
            continue
        used.append(client)
        for name, value in population.trainer.evaluate(weights, own).items():
            found.setdefault(name, []).append(float(f"{value:.{_DIGITS}g}"))
    held = setting.config.population.held_out
    return {
        "version": 1,
        "rows": "held out" if held else "trained on",
        "clients": population.size,
        "evaluated": used,
        "metrics": {name: figures_of(name, values) for name, values in found.items()},
    }


def figures_of(name: str, values: list[float]) -> dict[str, Any]:
    """Mean and worst decile of one metric over clients, each counting alike, and the values.

    >>> figures_of("accuracy", [0.0, 0.5, 1.0])["worst_decile"]
    0.1
    >>> figures_of("loss", [0.0, 0.5, 1.0])["worst_decile"]
    0.9
    """
    finite = [value for value in values if np.isfinite(value)]
    share = 0.9 if less_is_better(name) else 0.1
    return {
        "mean": float(np.mean(finite)) if finite else None,
        "worst_decile": float(np.quantile(finite, share)) if finite else None,
        "values": finite,
    }


def text_of(figures: dict[str, Any]) -> str:
    """One line for people."""
    words = [
        f"{name} mean {each['mean']:.4g}, worst decile {each['worst_decile']:.4g}"
        for name, each in figures["metrics"].items()
        if each["mean"] is not None
    ]
    return (
        f"client by client, on rows {figures['rows']} (a simulation's view: no epsilon covers it, "
        f"nothing publishes it): {'; '.join(words) or 'no client has any'}"
    )


def _examples(population: Population, rows: NDArray[np.int64]) -> tasks.Examples | None:
    """A client's rows; None where there are none."""
    import torch

    if not len(rows):
        return None
    if population.by_client is None:
        return population.train_set.take(torch.from_numpy(np.asarray(rows)))
    pool, (own,) = population.by_client.take([np.asarray(rows)])
    return pool.take(torch.from_numpy(np.asarray(own)))
