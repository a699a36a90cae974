"""How cost grows: the fit, the table, and one point that is really measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from simulations.benchmarks import growth
from simulations.benchmarks.growth import AXES, BASE, VARIANTS, exponent, table


def points(power: float) -> list[dict[str, Any]]:
    return [
        {
            **BASE["simulation"],
            "subject": "simulation",
            "variant": "ideal",
            "axis": "cohort",
            "cohort": size,
            "cpu_s": 2 + 0.01 * size**power,
            "peak_mb": 300.0,
            "kb": 5.0 * size,
        }
        for size in (30, 100, 300, 1000)
    ]


@pytest.mark.parametrize("power", [0.5, 1.0, 1.3, 2.0])
def test_a_fixed_cost_does_not_hide_the_exponent(power: float) -> None:
    sizes = [30, 100, 300, 1000]
    assert exponent(sizes, [3 + 0.02 * x**power for x in sizes]) == pytest.approx(power, abs=0.03)


def test_what_is_steeper_than_linear_is_marked() -> None:
    assert "2.00 **steep**" in table(points(2.0))
    assert "steep" not in table(points(1.0))


def test_axes_span_a_decade_and_have_a_base() -> None:
    for subject, axes in AXES.items():
        assert set(axes) == set(BASE[subject])
        assert VARIANTS[subject]
        for sizes in axes.values():
            assert max(sizes) >= 10 * min(sizes)


def test_points_are_kept_and_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that holds every point is not measured again."""
    monkeypatch.setattr(growth, "AXES", {"simulation": {"cohort": (30, 100, 300, 1000)}})
    monkeypatch.setattr(growth, "VARIANTS", {"simulation": ("ideal",)})
    monkeypatch.setattr("subprocess.run", lambda *_a, **_k: pytest.fail("measured again"))
    for point in points(1.0):
        (tmp_path / f"simulation_ideal_cohort_{point['cohort']}.json").write_text(json.dumps(point))
    growth.main(["--subjects", "simulation", "--out", str(tmp_path)])
    assert (tmp_path / "growth.png").stat().st_size > 1000


def test_a_simulation_is_measured() -> None:
    point = {"population": 200, "cohort": 40, "d": 805, "rounds": 2}
    found = growth.measure_point(
        {**point, "subject": "simulation", "variant": "ideal", "axis": "rounds"}
    )
    assert found["cpu_s"] > 0
    assert found["peak_mb"] > 10
    assert found["kb"] > 1
