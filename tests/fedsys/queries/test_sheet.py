"""Contributions are bounded whatever the rows are; answers are right, and their intervals cover."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedsys.queries import Answer, Column, Measured, Rows, Sheet, parse
from fedsys.queries.histograms import HistogramBlock, quantile_ends
from fedsys.queries.ladder import QuantilesBlock
from fedsys.queries.moments import CountBlock, MeanBlock, VarianceBlock

AGE = {"column": "age", "low": 0, "high": 100}
TEXTS = ("cat", "dog", "owl")
EVERY: list[dict[str, Any]] = [
    {"ask": "count", "name": "count", "rows": 5},
    {"ask": "sum", "name": "sum", **AGE, "rows": 5},
    {"ask": "mean", "name": "mean", **AGE, "rows": 5},
    {"ask": "variance", "name": "variance", **AGE, "rows": 5},
    {"ask": "histogram", "name": "ages", "column": "age", "edges": [0, 20, 40, 60, 100], "rows": 5},
    {"ask": "histogram", "name": "pets", "column": "pet", "values": ["cat", "dog"], "l2": 1.5,
     "rows": 5},
    {"ask": "labels", "name": "labels", "classes": 4, "rows": 5},
    {"ask": "crosstab", "name": "cross", "axes": [
        {"column": "pet", "values": ["cat", "dog", "owl"]},
        {"column": "age", "edges": [0, 50, 100]}],
     "rows": 5},
    {"ask": "examples", "name": "examples", "edges": [0, 1, 2, 5, 100]},
    {"ask": "devices", "name": "devices", "column": "accuracy"},
    {"ask": "quantiles", "name": "quantiles", **AGE, "rows": 5},
    {"ask": "top", "name": "top", "column": "pet", "values": ["cat", "dog", "owl"], "most": 2,
     "rows": 5},
    {"ask": "correlation", "name": "correlation", "columns": [
        AGE, {"column": "income", "low": 0, "high": 60}], "rows": 5},
    {"ask": "confusion", "name": "confusion", "classes": 4, "rows": 5},
    {"ask": "calibration", "name": "calibration", "rows": 5},
]  # fmt: skip


def rows_of(devices: int, rng: np.random.Generator, many: int) -> Rows:
    device = np.sort(rng.integers(0, devices, many))
    age = rng.normal(40, 12, many)
    label = rng.integers(0, 4, many).astype(float)
    right = rng.random(many) < 0.8
    return Rows.of(
        {
            "age": age,
            "income": age / 2 + rng.normal(0, 8, many),
            "pet": Column(values=rng.integers(0, 3, many).astype(float), texts=TEXTS),
            "label": label,
            "predicted": np.where(right, label, (label + 1) % 4),
            "accuracy": right.astype(float),
            "confidence": np.clip(rng.normal(0.75, 0.1, many), 0, 1),
        },
        device=device,
        devices=devices,
    )


def norms(vectors: NDArray[Any]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = np.sqrt(np.square(vectors.astype(np.float64)).sum(axis=1))
    return found


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_no_rows_whatever_make_a_contribution_longer_than_its_bound(data: st.DataObject) -> None:
    table = data.draw(st.sampled_from(EVERY))
    many = data.draw(st.integers(0, 12))
    number = st.one_of(
        st.sampled_from([0.0, 1.0, 100.0, -1e30, 1e30, math.inf, -math.inf, math.nan]),
        st.floats(-200, 200),
    )
    names = ("age", "income", "label", "predicted", "accuracy", "confidence")
    columns: dict[str, Any] = {
        name: np.array(data.draw(st.lists(number, min_size=many, max_size=many)), dtype=float)
        for name in names
    }
    codes = data.draw(
        st.lists(st.sampled_from([0.0, 1.0, 2.0, math.nan]), min_size=many, max_size=many)
    )
    columns["pet"] = Column(values=np.array(codes, dtype=float), texts=TEXTS)
    rows = Rows.of(columns, device=np.zeros(many, dtype=np.int64), devices=1)
    sheet = Sheet.of(parse([table]), population=50)
    (block,) = sheet.blocks
    assert norms(block.contribute(rows))[0] <= block.sensitivity * (1 + 1e-12)
    for uniform in (0.0, 1 - 2**-53):
        placed = sheet.contributions(rows, np.full((1, sheet.size), uniform))
        assert np.isfinite(placed).all()
        assert norms(placed)[0] <= 1
        assert np.abs(placed * sheet.grid - np.rint(placed * sheet.grid)).max() < 1e-3


def test_the_bounds_are_reached() -> None:
    """None of the sensitivities could be smaller."""
    extreme = {
        "age": [100.0], "income": [60.0], "pet": [0.0], "label": [0.0], "predicted": [0.0],
        "accuracy": [1.0], "confidence": [1.0],
    }  # fmt: skip
    columns: dict[str, Any] = {k: np.repeat(v, 7) for k, v in extreme.items()}
    columns["pet"] = Column(values=np.zeros(7), texts=TEXTS)
    rows = Rows.of(columns, device=np.zeros(7, dtype=np.int64), devices=1)
    for table in EVERY:
        (block,) = Sheet.of(parse([table]), population=1).blocks
        assert norms(block.contribute(rows))[0] == pytest.approx(block.sensitivity), table["name"]


def test_weights_share_the_norm_as_lagrange_says() -> None:
    tables = [{"ask": "count", "name": str(w), "weight": w} for w in (1.0, 4.0, 9.0)]
    sheet = Sheet.of(parse(tables), population=10)
    squares = np.square(sheet.shares)
    assert squares == pytest.approx(np.array([1, 2, 3]) / 6)

    def loss(part: NDArray[np.float64]) -> float:
        return float((np.array([1.0, 4.0, 9.0]) / part).sum())

    rng = np.random.default_rng(0)
    others = rng.dirichlet(np.ones(3), size=2000)
    assert min(map(loss, others)) >= loss(squares)


def test_without_noise_the_answers_are_those_of_the_data() -> None:
    rng = np.random.default_rng(3)
    rows = rows_of(400, rng, 1200)
    weights = rows.weights(5)
    age, label = rows.columns["age"].values, rows.columns["label"].values
    clipped = np.clip(age, 0, 100)
    sheet = Sheet.of(parse(EVERY), population=400)
    mean = sheet.exact(rows).sum(axis=0) / 400
    found = {
        each.name: each for each in sheet.answers(mean, deviation=1e-12, rate=1.0, population=400)
    }
    total = weights.sum()
    average = float((weights * clipped).sum() / total)
    variance = float((weights * clipped**2).sum() / total - average**2)
    assert found["count"].value() == pytest.approx(total)
    assert found["sum"].value() == pytest.approx((weights * clipped).sum())
    assert found["mean"].value() == pytest.approx(average)
    assert found["variance"].value("variance") == pytest.approx(variance, rel=1e-6)
    for at in range(4):
        assert found["labels"].value(str(at)) == pytest.approx(weights[label == at].sum())
    held = np.bincount(rows.per_device, minlength=5)
    assert found["examples"].value("0 to 1") == pytest.approx(held[0])
    assert found["examples"].value("1 to 2") == pytest.approx(held[1])
    order = np.sort(age)
    for share in (0.25, 0.5, 0.75):
        near = np.quantile(order, share)
        assert found["quantiles"].value(f"quantile {share:g}") == pytest.approx(near, abs=2)
    columns = np.stack([clipped, np.clip(rows.columns["income"].values, 0, 60)])
    expected = np.cov(columns, aweights=weights, ddof=0)
    r = expected[0, 1] / math.sqrt(expected[0, 0] * expected[1, 1])
    assert found["correlation"].value("age, income") == pytest.approx(r)
    pet, predicted = rows.columns["pet"].values, rows.columns["predicted"].values
    for low, high in ((0, 20), (20, 40), (40, 60), (60, 100)):
        within = (clipped >= low) & (clipped < high)
        assert found["ages"].value(f"{low} to {high}") == pytest.approx(weights[within].sum())
    kept = np.zeros((400, 2))
    for device, value, weight in zip(rows.device, pet, weights, strict=True):
        if value < 2:
            kept[device, int(value)] += weight
    kept *= np.minimum(1, 1.5 / np.maximum(np.linalg.norm(kept, axis=1), 1e-9))[:, None]
    totals = [weights[pet == at].sum() for at in range(3)]
    for at, name in enumerate(("cat", "dog", "owl")):
        if at < 2:
            assert found["pets"].value(name) == pytest.approx(kept[:, at].sum())
        young = weights[(pet == at) & (clipped < 50)].sum()
        assert found["cross"].value(f"{name}, 0 to 50") == pytest.approx(young)
    assert found["cross"].notes == ("each cell is named by pet, then age",)
    assert found["confusion"].notes == ("each cell is named by label, then predicted",)
    top = {each.label: each.value for each in found["top"].estimates}
    best = sorted(zip(("cat", "dog", "owl"), totals, strict=True), key=lambda each: -each[1])
    assert list(top) == [name for name, _ in best[:2]]
    assert list(top.values()) == pytest.approx([total for _, total in best[:2]])
    for true, said in itertools.product(range(4), range(4)):
        both = weights[(label == true) & (predicted == said)].sum()
        assert found["confusion"].value(f"{true}, {said}") == pytest.approx(both, abs=1e-9)
    right, confidence = rows.columns["accuracy"].values, rows.columns["confidence"].values
    some = (confidence >= 0.7) & (confidence < 0.8)
    inside = {"rows": weights[some].sum()} | {
        name: np.average(values[some], weights=weights[some])
        for name, values in (("accuracy", right), ("confidence", confidence))
    }
    for name, value in inside.items():
        assert found["calibration"].value(f"0.7 to 0.8: {name}") == pytest.approx(value)
    means = [right[rows.device == device].mean() for device in np.flatnonzero(rows.per_device)]
    bins = np.clip(np.floor(np.array(means) * 10 + 1e-9), 0, 9).astype(int)
    for at, many in enumerate(np.bincount(bins, minlength=10)):
        name = f"{at / 10:g} to {(at + 1) / 10:g}"
        assert found["devices"].value(name) == pytest.approx(many, abs=1e-6)


RUNS = 25_000
SLACK = 0.008


def covered(block: Any, truth: Measured, noisy: Measured) -> NDArray[np.float64]:
    value = block.interval(truth)[0]
    _, low, high = block.interval(noisy)
    found: NDArray[np.float64] = np.mean((low <= value) & (value <= high), axis=0)
    return np.atleast_1d(found)


@pytest.mark.parametrize(("noise", "rate"), [(4.0, 1.0), (15.0, 1.0), (4.0, 0.3)])
def test_intervals_cover_in_many_rounds(noise: float, rate: float) -> None:
    """At 95 % a band of .8 % is 5.8 standard errors of 25,000 runs: fewer than 40 checks in all
    have a false alarm with probability below 40 x 7e-9 < 1e-6."""
    rng = np.random.default_rng(11)
    tables = [each for each in EVERY if each["name"] in ("count", "mean", "variance", "labels")]
    tables.append({**EVERY[10], "levels": 2})
    rows = rows_of(1000, rng, 3000)
    sheet = Sheet.of(parse(tables), population=1000)
    exact = sheet.exact(rows)
    mean = exact.sum(axis=0) / 1000
    seen: Any = np.broadcast_to(mean, (RUNS, sheet.size))
    if rate < 1:
        taken = rng.random((RUNS, 1000), dtype=np.float32) < rate
        seen = taken.astype(np.float32) @ exact.astype(np.float32) / (rate * 1000)
    deviation = noise / (rate * 1000)
    drawn = seen + rng.normal(0, deviation, (RUNS, sheet.size))
    truths = sheet.measured(mean[None], 1e-30, 1.0, 1000)
    for block, truth, noisy in zip(
        sheet.blocks, truths, sheet.measured(drawn, deviation, rate, 1000), strict=True
    ):
        if isinstance(block, QuantilesBlock):
            _check_quantile(block, truth, noisy)
            continue
        found = covered(block, truth, noisy)
        kinds = (CountBlock, MeanBlock, HistogramBlock, VarianceBlock)
        assert isinstance(block, kinds)
        assert found.min() >= 0.95 - SLACK, (type(block).__name__, found)
        if rate == 1:
            assert found.max() <= 0.95 + SLACK, (type(block).__name__, found)


def _check_quantile(block: QuantilesBlock, truth: Measured, noisy: Measured) -> None:
    """Conservative, since it names whole bins: at least 95 %."""
    share = 0.5
    reached = block.below(truth.sums)[0][0]
    at = int(np.argmax(reached / reached[-1] >= share))
    inside = (block.edges[at - 1] + block.edges[at]) / 2
    low, high = quantile_ends(*block.tests(noisy, share), block.edges)
    assert np.mean((low <= inside) & (inside <= high)) >= 0.95 - SLACK


def test_post_processing_keeps_counts_non_negative_and_shares_monotone() -> None:
    rng = np.random.default_rng(5)
    sheet = Sheet.of(parse(EVERY), population=100)
    noisy = rng.normal(0, 0.05, sheet.size)
    found: dict[str, Answer] = {
        each.name: each for each in sheet.answers(noisy, deviation=0.05, rate=0.5, population=100)
    }
    for name in ("count", "labels", "ages", "pets", "cross", "top", "examples", "confusion"):
        for each in found[name].estimates:
            assert each.value >= 0
            assert each.low is not None
            assert each.high is not None
            assert 0 <= each.low <= each.high
    shares = [e.value for e in found["quantiles"].estimates if e.label.startswith("below")]
    assert all(a <= b for a, b in itertools.pairwise(shares))
    matrix = np.array([e.value for e in found["correlation"].estimates]).reshape(2, 2)
    assert np.linalg.eigvalsh(matrix).min() >= -1e-9
    assert {each.interval for each in found.values()} == {"conservative"}
