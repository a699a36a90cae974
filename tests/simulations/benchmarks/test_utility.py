"""Privacy-utility curves: jobs that differ in their mechanism alone, and what is made of them."""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path
from typing import Any

import pytest

from fedsys.config import Config, load
from fedsys.errors import FedsysError
from fedsys.report.comparison import build_comparison
from simulations import harness
from simulations.benchmarks import utility
from simulations.benchmarks.utility import Grid, job_of, measure
from simulations.benchmarks.utility_curves import CURVES, NO_NOISE, gaps, plot, table
from simulations.benchmarks.utility_page import page_of
from simulations.randomness import SeededRandomness

DATA = os.environ.get("FEDSYS_DATA", "")
TINY = (
    "population.clients=1400", "cohort.expected=100", "rounds.count=2", "engine.processes=1",
    "engine.path=batched", "engine.chunk=128", "aggregation.protocol=ideal", "faults.dropout=0.0",
)  # fmt: skip
MAY_DIFFER = {
    "privacy": {"mechanism", "epsilon", "noise_multiplier", "max_participations"},
    "aggregation": {"encoding", "modulus_bits", "noise"},
    "cohort": {"sampling", "min_separation"},
}


def rest(config: Config) -> dict[str, Any]:
    """Everything that must not depend on the mechanism."""
    tree = config.model_dump()
    for section, keys in MAY_DIFFER.items():
        tree[section] = {key: value for key, value in tree[section].items() if key not in keys}
    return tree


def made_up(**points: tuple[float, ...]) -> list[dict[str, Any]]:
    """Runs at epsilon 4 with these accuracies in percent; underscores stand for hyphens."""
    return [
        {
            "mechanism": name.replace("_", "-"),
            "target": "inf" if name == NO_NOISE else "4",
            "seed": seed,
            "accuracy": accuracy / 100,
            "epsilon": {"outsider": 4.0, "participant": 9.0, "server": None},
            "accountant": "rdp",
            "noise_multiplier": 1.0,
            "population": 6000,
            "cohort": 600.0,
            "rounds": 40,
            "dimension": 10,
            "clip": 0.2,
            "delta": 1e-5,
            "cpu_seconds": 1.0,
        }
        for name, accuracies in points.items()
        for seed, accuracy in enumerate(accuracies)
    ]


def results_of(runs: list[dict[str, Any]]) -> dict[str, Any]:
    host = {"processor": "P", "cores": 2, "torch": "2"}
    return {"base": "", "command": "C", "machine": host, "runs": runs}


@pytest.mark.parametrize("mechanism", [*CURVES, NO_NOISE])
def test_jobs_differ_in_mechanism_alone(mechanism: str) -> None:
    job, recipe = job_of("mnist-private", mechanism, 2.0, 0), load("mnist-private")
    assert rest(job) == rest(recipe)
    assert job.privacy.epsilon == (None if mechanism == NO_NOISE else 2.0)


def test_the_recipe_is_one_of_the_runs() -> None:
    assert job_of("mnist-private", "distributed-gaussian", 4.0, 0) == load("mnist-private")


def test_min_separation_takes_as_many_clients_and_never_runs_short() -> None:
    """6,000 clients, 600 a round: back after ten rounds, four times in forty."""
    cohort = (job := job_of("mnist-private", "banded-mf", 1.0, 0)).cohort
    assert (cohort.sampling, cohort.min_separation) == ("min-separation", 10)
    assert job.privacy.max_participations == 4


def test_every_mechanism_runs_to_its_budget_and_no_run_is_made_twice(tmp_path: Path) -> None:
    path = tmp_path / "utility.json"
    grid = Grid(recipe="quickstart", settings=TINY, epsilons=(4.0, math.inf))
    first = measure(grid, path)
    assert {(run["mechanism"], run["target"]) for run in first["runs"]} == {
        (NO_NOISE, "inf"),
        *((name, "4") for name in CURVES),
    }
    for run in first["runs"]:
        assert (run["rounds"], run["status"]) == (2, "completed")
        outsider = run["epsilon"]["outsider"]
        assert outsider is None if run["target"] == "inf" else 3.9 < outsider <= 4.0
    assert set(first["gaps"]) == set(CURVES) - {"central-gaussian"}
    seen = [run["accuracy"] for run in first["runs"]]
    again = measure(
        Grid(recipe="quickstart", settings=TINY, mechanisms=("central-gaussian",), epsilons=(4.0,),
             seeds=2),
        path,
    )  # fmt: skip
    assert [run["accuracy"] for run in again["runs"]][:-1] == seen
    assert (again["runs"][-1]["mechanism"], again["runs"][-1]["seed"]) == ("central-gaussian", 1)
    assert json.loads(path.read_text()) == again


def test_runs_of_other_settings_are_not_mixed(tmp_path: Path) -> None:
    path = tmp_path / "utility.json"
    path.write_text(json.dumps({"base": "of something else", "runs": []}))
    with pytest.raises(FedsysError, match="other settings"):
        measure(Grid(recipe="quickstart", settings=TINY), path)


def test_a_gap_is_told_and_judged() -> None:
    runs = made_up(
        central_gaussian=(90.0, 92.0), distributed_gaussian=(91.0, 91.5), banded_mf=(88.0, 90.0)
    )
    assert gaps(runs) == {"distributed-gaussian": {"4": 0.25}, "banded-mf": {"4": -2.0}}
    text = table(results_of(runs + made_up(none=(93.0,))))
    assert "| central Gaussian | 2 | 91.0 (90.0–92.0) | 93.0 |" in text
    assert "distributed, wide: at most 0.25 points from central (ε = 4, +0.25): within" in text
    assert "banded-mf, unamplified: at most 2.00 points from central (ε = 4, -2.00): not" in text
    assert "| central Gaussian | RDP | 4 | 9 | ∞ | 1 |" in text


def test_the_page_shows_what_the_table_says(tmp_path: Path) -> None:
    """Chart, findings and both tables; nothing on it is fetched, and names are escaped."""
    runs = made_up(
        none=(95, 96),
        central_gaussian=(94, 95),
        distributed_gaussian=(92, 93),
        narrow_16=(94, 94.5),
    )
    results: dict[str, Any] = {
        "runs": runs,
        "base": "[job]\nname = '<script>'",
        "command": "python -m simulations.benchmarks.utility --data DIR",
        "machine": {"processor": "a <b>chip</b>", "cores": 2, "torch": "2"},
    }
    page = build_comparison(tmp_path / "report.html", page_of(results)).read_text()
    assert results["command"] in page
    assert "&lt;script&gt;" in page
    assert "a &lt;b&gt;chip" in page
    assert "<script" not in page
    assert not re.search(r"""(?:src|href)=["'](?!#)""", page)
    assert "94.5" in page
    assert "94.0–95.0" in page
    assert "distributed, wide: at most 2.00 points from central noise (at ε = 4, −2.00)" in page
    assert page.count("within 1 point") == 1
    assert page.count('<svg class="chart"') == 2
    assert "∞" in page
    assert "prefers-color-scheme: dark" in page


@pytest.mark.parametrize(("kind", "magic"), [("png", b"\x89PNG"), ("svg", b"<?xml")])
def test_the_plot_is_a_picture_without_a_date(tmp_path: Path, kind: str, magic: bytes) -> None:
    results = results_of(made_up(central_gaussian=(90.0, 91.0), none=(92.0,)))
    drawn = []
    for name in ("a", "b"):
        plot(results, path := tmp_path / f"{name}.{kind}")
        drawn.append(path.read_bytes())
    assert drawn[0].startswith(magic)
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--mechanisms", "central"], "--mechanisms: unknown central"),
        (["--epsilons", "1,0"], "--epsilons: '0'"),
        (["--epsilons", "few"], "--epsilons: 'few'"),
        (["--seeds", "0"], "--seeds: 0"),
        (["--recipe", "mnist-privat"], "mnist-privat"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path: Path, arguments: list[str], said: str) -> None:
    with pytest.raises(SystemExit) as refused:
        utility.main([*arguments, "--out", str(tmp_path)])
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.slow
@pytest.mark.skipif(not DATA, reason="FEDSYS_DATA does not name a folder with the real data files")
def test_distributed_noise_costs_less_than_a_point_on_mnist(tmp_path: Path) -> None:
    """The same seeds for both: the same cohorts, so that only the noise and its size differ."""
    accuracy = {}
    for mechanism in ("central-gaussian", "distributed-gaussian"):
        result = harness.run(
            job_of("mnist-private", mechanism, 4.0, 0),
            out=tmp_path / mechanism,
            randomness=SeededRandomness(bytes(32)),
        )
        accuracy[mechanism] = result.metrics["accuracy"]
    assert min(accuracy.values()) > 0.9
    assert abs(accuracy["central-gaussian"] - accuracy["distributed-gaussian"]) < 0.01
