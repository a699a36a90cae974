"""`fedsys privacy`: what it prints is what the package computes, and bad numbers exit with 2."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fedsys.cli.privacy import app
from fedsys.errors import FedsysError, MechanismError
from fedsys.privacy import make_plan, planned_outsider

WORKED = (
    "--sampling-rate 0.05 --rounds 200 --delta 1e-5 --dim 60000 "
    "--mechanism distributed-gaussian --cohort 50"
)


def _run(arguments: str) -> str:
    result = CliRunner().invoke(app, arguments.split())
    if isinstance(result.exception, FedsysError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def _json(arguments: str) -> dict[str, Any]:
    body = json.loads(_run(arguments + " --json"))
    assert isinstance(body, dict)
    return body


def test_epsilon_of_the_worked_example() -> None:
    wide = _json(f"epsilon --noise-multiplier 1 {WORKED}")
    assert wide["reported"] == pytest.approx(4.77, abs=0.01)
    assert wide["epsilon"]["outsider"]["pld"] == wide["reported"]
    assert wide["epsilon"]["outsider"]["rdp"] > wide["reported"]
    assert wide["epsilon"]["participant"]["pld"] == pytest.approx(14.1, abs=0.1)
    assert wide["epsilon"]["server"]["gaussian"] == pytest.approx(49.7, abs=0.1)
    assert wide["modulus_bits"] == 24
    assert set(wide["delta_noise"]) == {"outsider", "participant", "server"}
    assert wide["noise_multiplier"] == 1.0
    assert {"fedsys", "dp-accounting"} <= set(wide["versions"])
    assert (wide["population"], wide["cap"], wide["min_survivors"]) == (1000, 99, 12)
    narrow = _json(f"epsilon --noise-multiplier 1 {WORKED} --encoding narrow --bits 16")
    assert narrow["reported"] == pytest.approx(4.77, abs=0.01)
    assert narrow["modulus_bits"] == 16


def test_epsilon_equals_the_packages() -> None:
    plan = make_plan(
        mechanism="central-gaussian",
        population=1437,
        expected_cohort=100,
        rounds=40,
        dimension=650,
        clip=1.0,
        delta=1e-5,
        noise_multiplier=0.7,
    )
    body = _json(
        "epsilon --mechanism central-gaussian --noise-multiplier 0.7 --population 1437 "
        "--cohort 100 --rounds 40 --delta 1e-5 --dim 650"
    )
    assert body["reported"] == planned_outsider(plan)
    assert body["accountant"] == "pld"
    assert body["epsilon"]["server"] == {"gaussian": "inf"}
    assert body["epsilon"]["outsider"]["rdp"] > body["reported"]


def test_without_a_cohort_the_outsider_alone_is_known() -> None:
    body = _json(
        "epsilon --mechanism central-gaussian --noise-multiplier 1.386 --sampling-rate 0.1 "
        "--rounds 100 --delta 1e-5"
    )
    assert body["reported"] == pytest.approx(4.0, abs=0.005)
    assert body["epsilon"]["participant"] is None
    assert body["epsilon"]["server"] is None
    text = _run("epsilon --noise-multiplier 1 --sampling-rate 0.1 --rounds 10 --delta 1e-5")
    assert "give --cohort" in text


@pytest.mark.parametrize(("target", "sigma"), [(1, 3.942), (8, 0.936)])
def test_calibrate_meets_published_points(target: float, sigma: float) -> None:
    body = _json(
        f"calibrate --mechanism central-gaussian --epsilon {target} --sampling-rate 0.1 "
        "--rounds 100 --delta 1e-5"
    )
    assert body["noise_multiplier"] == pytest.approx(sigma, abs=1e-3)
    assert body["reported"] <= target


def test_calibrate_and_epsilon_are_inverse() -> None:
    found = _json(f"calibrate --epsilon 3 {WORKED}")["noise_multiplier"]
    back = _json(f"epsilon --noise-multiplier {found!r} {WORKED}")["reported"]
    assert 2.999 < back <= 3.0


@pytest.mark.parametrize("cohort", [pytest.param("", marks=pytest.mark.slow), " --cohort 50"])
@pytest.mark.parametrize("mechanism", ["distributed-gaussian", "central-gaussian"])
def test_a_hopeless_target_takes_no_search_among_hopeless_noise(
    cohort: str, mechanism: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An epsilon of a million: few loss distributions are computed, and none of a huge grid."""
    from fedsys.privacy.accounting import pld

    single, sizes = pld._single, []

    def counted(multiplier: float, rate: float, width: float) -> Any:
        found = single(multiplier, rate, width)
        sizes.append(found._pmf_remove.size)
        return found

    monkeypatch.setattr(pld, "_single", counted)
    body = _json(
        f"calibrate --epsilon 1e6 --sampling-rate 0.05 --rounds 200 --delta 1e-5 --dim 60000 "
        f"--mechanism {mechanism}{cohort}"
    )
    assert 0.01 <= body["noise_multiplier"] < 0.2
    assert body["reported"] <= 1e6
    assert len(sizes) < 200
    assert sum(sizes) < 20_000_000


@pytest.mark.parametrize("delta", ["1e-12", "1e-14", "1e-15", "1e-20", "1e-25"])
@pytest.mark.parametrize("mechanism", ["central-gaussian", "distributed-gaussian"])
def test_small_deltas_are_answered(mechanism: str, delta: str) -> None:
    job = f"--mechanism {mechanism} --dim 1000 --cohort 100 --sampling-rate 0.01 --rounds 100"
    body = _json(f"epsilon --noise-multiplier 1 --delta {delta} {job}")
    assert 2 < body["reported"] < 15
    # delta_released lies below 1e-12: a Rényi bound takes over from the loss distribution
    assert body["accountant"] == "rdp"
    found = _json(f"calibrate --epsilon 8 --delta {delta} {job}")
    assert 0.3 < found["noise_multiplier"] < 3


def test_no_mechanism_says_so() -> None:
    body = _json(
        "epsilon --mechanism none --noise-multiplier 1 --sampling-rate 0.1 --rounds 9 --delta 1e-5"
    )
    assert body["reported"] == "inf"


def test_plan_compares_and_draws(tmp_path: Path) -> None:
    plot = tmp_path / "plan.svg"
    arguments = (
        "plan --population 3400 --dim 50890 --epsilon 4 --delta 1e-5 --cohort 50 --cohort 400 "
        "--rounds 50 --rounds 200"
    )
    body = _json(f"{arguments} --plot {plot}")
    assert [(row["cohort"], row["rounds"]) for row in body["rows"]] == [
        (50, 50),
        (50, 200),
        (400, 50),
        (400, 200),
    ]
    for row in body["rows"]:
        assert row["reported"] <= 4.0
        assert row["upload_bytes_a_round"] == 3 * 50890  # 24 bits hold the sum
        assert set(row["epsilon"]) == {"outsider", "participant", "server"}
        noise = row["noise_multiplier"] * math.sqrt(50890) / row["cohort"]
        assert row["noise_norm_over_clip"] == pytest.approx(noise)
    assert plot.read_text().lstrip().startswith("<?xml")
    table = _run(arguments)
    assert "outsider" in table
    assert "participant" in table


def test_plan_says_what_it_refuses() -> None:
    text = _run("plan --population 1000 --dim 100 --epsilon 4 --delta 1e-5 --cohort 5 --cohort 80")
    assert "too small" in text
    with pytest.raises(MechanismError, match="too small"):
        _run("plan --population 1000 --dim 100 --epsilon 4 --delta 1e-5 --cohort 5")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--noise-multiplier 0 --sampling-rate .1 --rounds 9 --delta 1e-5", "noise_multiplier"),
        ("--noise-multiplier nan --sampling-rate .1 --rounds 9 --delta 1e-5", "noise_multiplier"),
        (
            "--mechanism central-gaussian --noise-multiplier 1e-320 --population 1000 --cohort 100 "
            "--rounds 9 --delta 1e-5",
            "below 0.01",
        ),
        ("--noise-multiplier 1 --sampling-rate 1.1 --rounds 9 --delta 1e-5", "--sampling-rate"),
        ("--noise-multiplier 1 --sampling-rate nan --rounds 9 --delta 1e-5", "--sampling-rate"),
        ("--noise-multiplier 1 --sampling-rate .1 --rounds 0 --delta 1e-5", "--rounds"),
        ("--noise-multiplier 1 --sampling-rate .1 --rounds 9 --delta 1", "--delta"),
        ("--noise-multiplier 1 --rounds 9 --delta 1e-5", "give --sampling-rate"),
        ("--noise-multiplier 1 --population 9 --cohort 50 --rounds 9 --delta 1e-5", "exceeds"),
        ("--noise-multiplier 1 --sampling-rate .1 --cohort 5 --rounds 9 --delta 1e-5", "too small"),
        (f"--noise-multiplier 1 {WORKED} --bits 12", "too small"),
        (f"--noise-multiplier 1 {WORKED} --population 77", "leave one of them out"),
        (f"--noise-multiplier 1 {WORKED} --mechanism magic", "must be one of"),
        (
            "--noise-multiplier 1 --sampling-rate .1 --rounds 9 --delta 1e-5 --encoding narrow",
            "give --cohort",
        ),
    ],
)
def test_bad_numbers_are_one_line_and_exit_2(arguments: str, message: str) -> None:
    with pytest.raises(MechanismError, match=message) as caught:
        _run(f"epsilon {arguments}")
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


def test_an_unwritable_plot_is_a_clear_line(tmp_path: Path) -> None:
    with pytest.raises(FedsysError, match="cannot be written"):
        _run(
            "plan --population 3400 --dim 100 --epsilon 4 --delta 1e-5 --cohort 100 --rounds 20 "
            f"--plot {tmp_path}/missing/plan.png"
        )


def test_the_quorum_of_secure_aggregation_costs_delta() -> None:
    job = "--cohort 100 --population 1437 --rounds 40 --delta 1e-5 --dropout 0.1"
    plain = _json(f"epsilon --noise-multiplier 1 {job}")
    secure = _json(f"epsilon --noise-multiplier 1 {job} --corrupt 0.1")
    assert secure["delta_abort"] > plain["delta_abort"]
    assert secure["reported"] == pytest.approx(plain["reported"], rel=1e-4)
    with pytest.raises(MechanismError, match="misses the quorum"):
        _run(
            "epsilon --noise-multiplier 1 --corrupt 0.1 --cohort 30 --population 900 --rounds 40 "
            "--delta 1e-5 --dropout 0.2"
        )
