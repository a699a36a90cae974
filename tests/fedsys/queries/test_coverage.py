"""The intervals of every question in 20,000 seeded rounds: 95 % where they are exact, no fewer
where they are conservative and say so.

A band of .8 % is 5.2 standard errors at 95 %: a check has a false alarm with probability 2e-7, or
1e-7 where only the lower end is checked. Coverage is compared over about 130 numbers, which are not
independent; those that are checked from both sides are averaged over a question's numbers, so that
fewer than 30 checks remain, and from below each number is allowed 1.2 % (1e-14).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedsys.queries import Measured, Sheet, parse
from fedsys.queries.blocks import Block
from fedsys.queries.histograms import DevicesBlock, HistogramBlock
from fedsys.queries.ladder import QuantilesBlock
from fedsys.queries.moments import CorrelationBlock, VarianceBlock
from tests.fedsys.queries.test_sheet import EVERY, rows_of

RUNS, DEVICES, SLACK = 20_000, 1000, 0.008
Floats = NDArray[np.float64]


def inside(ends: tuple[Floats, Floats], truth: Floats | float) -> Floats:
    low, high = ends
    found: Floats = np.mean((low - 1e-9 <= truth) & (truth <= high + 1e-9), axis=0)
    return np.atleast_1d(found)


def quantile_of(reached: Floats, share: float, edges: Floats) -> float:
    """A point in the bin that holds the quantile."""
    at = int(np.argmax(reached / reached[-1] >= share))
    return float(edges[at - 1] + edges[at]) / 2


def conservative(block: Block, truth: Measured, noisy: Measured) -> Floats:
    """Coverage of numbers whose intervals are whole bins, or hold together."""
    found = []
    if isinstance(block, QuantilesBlock):
        reached = block.below(truth.sums)[0][0]
        for share in (0.1, 0.5, 0.9):
            ends = block.quantile_interval(noisy, share)
            found.append(inside(ends, quantile_of(reached, share, block.edges)))
        for at in (6, 8):
            few = Measured(
                sums=noisy.sums[:4000], deviation=noisy.deviation, rate=noisy.rate,
                population=noisy.population,
            )  # fmt: skip
            share_of = float(reached[at] / reached[-1])
            found.append(inside(block.share_interval(few, at), share_of) + SLACK)
    if isinstance(block, DevicesBlock):
        reached = np.concatenate([[0.0], np.cumsum(truth.sums[0])])
        for share in (0.1, 0.5):
            wanted = quantile_of(reached, share, np.linspace(0, 1, block.size + 1))
            found.append(inside(block.quantile_interval(noisy, share), wanted))
    if isinstance(block, HistogramBlock):
        _, low, high = block.interval(noisy, block.size)
        every = ((low <= truth.sums + 1e-9) & (truth.sums <= high + 1e-9)).all(axis=-1)
        found.append(np.atleast_1d(every.mean()))
    return np.concatenate(found) if found else np.ones(1)


@pytest.mark.slow
@pytest.mark.parametrize(("noise", "rate"), [(2.0, 1.0), (10.0, 1.0), (2.0, 0.3)])
@pytest.mark.parametrize("table", EVERY, ids=lambda table: str(table["name"]))
def test_every_interval_covers(table: dict[str, Any], noise: float, rate: float) -> None:
    rng = np.random.default_rng(11)
    sheet = Sheet.of(parse([{**table, **({"levels": 2} if table["ask"] == "quantiles" else {})}]),
                     population=DEVICES)  # fmt: skip
    (block,) = sheet.blocks
    exact = sheet.exact(rows_of(DEVICES, rng, 3000))
    mean = exact.sum(axis=0) / DEVICES
    seen: Any = np.broadcast_to(mean, (RUNS, sheet.size))
    if rate < 1:
        shares = [
            (rng.random((2000, DEVICES), dtype=np.float32) < rate).astype(np.float32)
            @ exact.astype(np.float32)
            for _ in range(RUNS // 2000)
        ]
        seen = np.concatenate(shares) / (rate * DEVICES)
    deviation = noise / (rate * DEVICES)
    drawn = seen + rng.normal(0, deviation, (RUNS, sheet.size))
    (truth,) = sheet.measured(mean[None], 1e-30, 1.0, DEVICES)
    (noisy,) = sheet.measured(drawn, deviation, rate, DEVICES)
    assert conservative(block, truth, noisy).min() >= 0.95 - SLACK
    if isinstance(block, QuantilesBlock):
        return
    right = block.interval(truth)[0]  # type: ignore[attr-defined]
    _, low, high = block.interval(noisy)  # type: ignore[attr-defined]
    found = inside((low, high), right[0]).reshape(-1)
    if isinstance(block, CorrelationBlock):
        found = found[1:2]  # the diagonal is known
    asymptotic = isinstance(block, VarianceBlock | CorrelationBlock)
    if asymptotic and noise > 2:
        return  # sums that are not well above the noise: nothing is claimed
    assert found.min() >= 0.95 - 1.5 * SLACK, found
    if table["ask"] in ("calibration", "mean"):  # a ratio of few rows may be anything
        found = found[found <= 0.96]
    elif not asymptotic:  # an interval that is cut at 0 covers an empty bin more often
        found = found[right[0].reshape(-1) > 1e-9]
    if rate == 1 and found.size:
        assert abs(found.mean() - 0.95) <= SLACK, found
    else:
        assert found.size == 0 or found.mean() >= 0.95 - SLACK, found
