"""``fedsys export --quantize --prune``: the smaller model, and its figures before and after."""

from __future__ import annotations

import copy
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedsys.cli.terminal import say

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fedsys.tasks import Examples, Task

__all__ = ["Smaller", "print_figures", "smaller"]

_REPEATED, _WARMING, _ROWS = 30, 5, 64


@dataclass(frozen=True, kw_only=True)
class Smaller:
    """A model made smaller.

    Attributes:
        model: computes with it; in evaluation mode.
        state: for a file of weights: integers under their parameter's name, scales next to them.
        facts: what was done, as metadata.
    """

    model: nn.Module
    state: Mapping[str, Tensor]
    facts: Mapping[str, str]


def smaller(
    model: nn.Module, state: Mapping[str, Tensor], *, quantize: bool, prune: float | None
) -> Smaller:
    """Prunes, then quantizes.

    Args:
        model: with the weights of `state`; it is not changed.
        state: the model's ``state_dict``.
        quantize: whether to store matrices as 8-bit integers.
        prune: the fraction of their weights to set to zero; None for none.

    Raises:
        ConfigError: there is nothing to make smaller, or the fraction is none.
    """
    from fedsys.errors import ConfigError
    from fedsys.release.smaller import WithInt8, dequantized, pruned, quantized

    made, facts = dict(state), {}
    if prune is not None:
        made = pruned(made, prune)
        facts["fedsys.pruned"] = f"{prune:g}"
    own = copy.deepcopy(model)
    if not quantize:
        own.load_state_dict(made)
        return Smaller(model=own.eval(), state=made, facts=facts)
    small = quantized(made)
    clashing = [name for name in small if f"{name}.scale" in made]
    if clashing:
        raise ConfigError(f"--quantize int8: the model has an entry {clashing[0]}.scale already")
    facts["fedsys.quantized"] = "int8: weight = values * scale, a scale for each row"
    own.load_state_dict(dequantized(made, small))
    stored = {name: small[name].values if name in small else each for name, each in made.items()}
    stored |= {f"{name}.scale": each.scale for name, each in small.items()}
    return Smaller(model=WithInt8(own.eval(), small), state=stored, facts=facts)


def print_figures(
    task: Task,
    test: Examples,
    before: tuple[nn.Module, bytes],
    after: tuple[nn.Module, bytes],
    whole: list[str],
) -> None:
    """Prints the metrics on the test data, the sizes of the files and the time of one batch.

    Args:
        task: has loss and metrics.
        test: the coordinator's own test data.
        before: the model, and its file.
        after: the smaller model, and its file.
        whole: further figures, as in ``evaluation.metrics``.
    """
    from client.training.evaluation import evaluate
    from client.training.whole_metrics import whole_metrics
    from fedsys.tasks import conformed

    rows = []
    for model, content in (before, after):
        placed = conformed(before[0], test)
        figures = evaluate(task, model, placed, whole=whole_metrics(whole))
        milliseconds = _milliseconds(model, placed[:_ROWS])
        rows.append((figures, len(content), len(zlib.compress(content, 6)), milliseconds))
    (first, size, zipped, took), (second, small, small_zipped, takes) = rows
    for name in first:
        say(f"{name:<20} {first[name]:.4f} -> {second[name]:.4f}  (test data)")
    say(f"{'bytes':<20} {size:,} -> {small:,}")
    say(f"{'bytes, compressed':<20} {zipped:,} -> {small_zipped:,}  (zlib)")
    count = min(_ROWS, len(test))
    say(f"{'latency':<20} {took:.3f} -> {takes:.3f} ms  ({count} rows, torch, this machine)")


def _milliseconds(model: nn.Module, rows: Examples) -> float:
    """The median time of one batch."""
    import torch

    took = []
    with torch.inference_mode():
        for _ in range(_WARMING + _REPEATED):
            started = time.perf_counter()
            model(rows.x)
            took.append(time.perf_counter() - started)
    return 1000 * sorted(took[_WARMING:])[_REPEATED // 2]
