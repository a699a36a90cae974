"""Canaries through the real pipeline: what goes in comes out, and weak noise is caught."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom
from typer.testing import CliRunner

from fedsys.audit import audit_canaries, audit_run
from fedsys.audit.empirical import CANARIES, read_canaries
from fedsys.cli.app import app
from fedsys.config import Config, load
from fedsys.errors import AuditInputError, ConfigError
from fedsys.privacy import AesCtrStream, Entropy
from fedsys.privacy.ledger import read_private
from fedsys.privacy.noise import noise_sampler
from fedsys.records import AuditResult, Claim
from simulations.benchmarks import honest_canaries
from simulations.canaries import Canaries, run
from simulations.randomness import SeededRandomness
from tests.fedsys.audit.conftest import failures, job

BOUND = "Empirical lower bound on epsilon (one-run)"
CLIENTS = 1437


def seeded(seed: int) -> Entropy:
    return AesCtrStream(seed.to_bytes(32, "big"))


def found(result: AuditResult, name: str) -> Claim:
    return next(claim for claim in result.claims if claim.name == name)


@pytest.mark.parametrize(("count", "dimension"), [(8, 8), (5, 650), (650, 650)])
def test_directions_are_orthogonal_and_told_by_their_scores(count: int, dimension: int) -> None:
    canaries = Canaries.plant(count, dimension=dimension, norm=2.0, entropy=seeded(1))
    updates = canaries.updates(range(count)).astype(np.float64)
    expected = np.diag(np.where(canaries.included, 4.0, 0.0))
    np.testing.assert_allclose(updates @ updates.T, expected, atol=1e-5)
    weights = np.arange(1.0, count + 1)
    told = canaries.scores(weights @ updates)
    np.testing.assert_allclose(told, 2 * weights * canaries.included, atol=1e-3)
    assert np.abs(updates).max() <= 2.0 * math.sqrt(2 / dimension) + 1e-5


def test_coins_are_fair_and_drawn_anew() -> None:
    first = Canaries.plant(5000, dimension=5000, norm=1.0, entropy=seeded(2))
    again = Canaries.plant(5000, dimension=5000, norm=1.0, entropy=seeded(3))
    low, high = binom.ppf([5e-7, 1 - 5e-7], 5000, 0.5)
    assert low <= first.included.sum() <= high
    assert low <= (first.included != again.included).sum() <= high
    assert len(set(first.rows.tolist())) == 5000


@pytest.mark.parametrize("protocol", ["ideal", "secure"])
def test_without_noise_a_score_is_the_number_of_rounds_that_summed_the_canary(
    protocol: str, tmp_path: Path
) -> None:
    """Through training, clipping, ring, masks, dropouts and decoding, real clients taken off."""
    config = job("privacy.mechanism=none", f"aggregation.protocol={protocol}", "rounds.count=3")
    folder = run(config, canaries=200, out=tmp_path / "run", entropy=seeded(4)).folder
    outcome = read_canaries(folder / CANARIES)
    summed = np.zeros(200)
    private, _ = read_private(folder / "private.jsonl")
    for line in private.values():
        for client in line["survivors"]:
            if client >= CLIENTS:
                summed[client - CLIENTS] += 1
    np.testing.assert_allclose(outcome.scores, summed * outcome.included, atol=0.05)
    assert 0 < summed.sum() < 3 * 200


def test_an_honest_run_is_audited_with_its_canaries(tmp_path: Path) -> None:
    config = job("rounds.count=2", "cohort.expected=200", "aggregation.noise=once")
    folder = run(config, canaries=300, out=tmp_path / "run").folder
    result = audit_canaries(folder)
    assert failures(result) == set()
    assert found(result, BOUND).holds is True
    assert "caught in" in found(result, "Power of the one-run audit").rederived
    assert "estimate" in found(result, "Empirical estimate of epsilon (one-shot)").rederived
    header = json.loads((folder / "ledger.jsonl").read_text().splitlines()[0])["body"]
    assert header["plan"]["population"] == CLIENTS + 300
    assert header["plan"]["expected_cohort"] == round(200 * (CLIENTS + 300) / CLIENTS)
    assert header["plan"]["colluders"] == 300
    assert "300 of them are canaries" in header["population"]["known"]
    assert (folder / CANARIES).stat().st_mode & 0o077 == 0
    assert failures(audit_run(folder)) == set()


def test_a_run_without_canaries_says_how_to_plant_some(run: Path) -> None:
    with pytest.raises(AuditInputError, match=r"fedsys simulate --canaries M"):
        audit_canaries(run)


@pytest.fixture(scope="module")
def planted(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDSYS_HOME", str(home))
        config = job("rounds.count=1", "aggregation.noise=once")
        return run(config, canaries=20, out=tmp_path_factory.mktemp("planted") / "run").folder


def claims_of(path: Path, planted: Path, change: Callable[[list[str]], list[str]]) -> AuditResult:
    original = path.read_text()
    path.write_text("".join(line + "\n" for line in change(original.splitlines())))
    try:
        return audit_canaries(planted)
    finally:
        path.write_text(original)


@pytest.mark.parametrize(
    "change",
    [
        lambda lines: lines[:-1],
        lambda lines: [*lines, lines[-1]],
        lambda lines: lines[1:],
        lambda lines: [],
        lambda lines: [lines[0].replace('"version": 1', '"version": 2'), *lines[1:]],
        lambda lines: [lines[0].replace('"guesses": 6', '"guesses": 7'), *lines[1:]],
        lambda lines: [lines[0].replace('"guesses": 6', '"guesses": 600'), *lines[1:]],
        lambda lines: [lines[0].replace('"dimension": 650', '"dimension": 65'), *lines[1:]],
        lambda lines: [lines[0].replace('"canaries": 20', '"canaries": 1e12'), *lines[1:]],
        lambda lines: [lines[0].replace('"ledger_head": "', '"ledger_head": "0'), *lines[1:]],
        lambda lines: [*lines[:-1], '{"included": 1, "score": 0.0, "cosine": 0.0}'],
        lambda lines: [*lines[:-1], '{"included": true, "score": "1", "cosine": 0.0}'],
        lambda lines: [*lines[:-1], '{"included": true, "score": 1e999, "cosine": 0.0}'],
        lambda lines: [*lines[:-1], "garbage"],
    ],
)
def test_a_spoiled_outcome_is_refused(
    planted: Path, change: Callable[[list[str]], list[str]]
) -> None:
    assert failures(claims_of(planted / CANARIES, planted, change)) == {"Canaries of this run"}


def test_scores_that_refute_the_claim_fail(planted: Path) -> None:
    """As if nothing had been added to them, many times over."""

    def plain(lines: list[str]) -> list[str]:
        head = json.loads(lines[0]) | {"canaries": 600, "guesses": 300}
        canary = [
            json.dumps({"included": bool(i % 2), "score": float(i % 2), "cosine": 0.01 * (i % 2)})
            for i in range(600)
        ]
        return [json.dumps(head), *canary]

    result = claims_of(planted / CANARIES, planted, plain)
    assert failures(result) == {BOUND}
    assert "300 of 300 guesses right" in found(result, BOUND).rederived


@pytest.mark.parametrize(
    ("settings", "count", "words"),
    [
        ((), 651, "650 parameters"),
        ((), 1, "from 2 to 650"),
        (("aggregation.protocol=float",), 10, "aggregation.protocol"),
        (("privacy.adaptive_quantile=0.5",), 10, "adaptive"),
    ],
)
def test_what_cannot_be_planted_is_refused(
    settings: tuple[str, ...], count: int, words: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=words):
        run(job(*settings), canaries=count, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def one_release(clients: int) -> Config:
    """Everybody in one release at epsilon 2, on the MLP of 50,890 parameters."""
    return load(
        "quickstart",
        [
            "task.name=synthetic",
            f"task.options={{examples={clients}}}",
            "population.partition=iid",
            f"population.clients={clients}",
            f"cohort.expected={clients}",
            "rounds.count=1",
            "privacy.epsilon=2.0",
            "privacy.clip=1.0",
            "aggregation.protocol=ideal",
            "aggregation.noise=once",
            "faults.dropout=0.0",
            "evaluation.data=none",
            "engine.path=batched",
            "engine.chunk=64",
        ],
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("seed", "weaker"), [(1, 1.0), (2, 1.0), (3, 2.5), (4, 2.5)])
def test_ten_thousand_canaries_catch_weak_noise_and_pass_honest_noise(
    seed: int, weaker: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """m = 10 000, r = 300, one release at a claimed epsilon of 2."""
    monkeypatch.setattr(
        importlib.import_module("fedsys.privacy.mechanisms.shares"),
        "noise_sampler",
        lambda sigma: noise_sampler(sigma / weaker),
    )
    folder = run(
        one_release(100),
        canaries=10_000,
        out=tmp_path / "run",
        randomness=SeededRandomness(seed.to_bytes(4, "big")),
        entropy=seeded(seed),
    ).folder
    result = audit_canaries(folder)
    bound = found(result, BOUND)
    assert bound.holds is (weaker == 1.0), bound
    assert "divided by 2.5 is caught in" in found(result, "Power of the one-run audit").rederived
    share = found(result, "Power of the one-run audit").rederived.split("2.5 is caught in ")[1]
    assert int(share.split("%")[0]) >= 90
    assert failures(result) - {BOUND} == {"Randomness"}  # seeded, as only tests may be


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_secure_job_is_attacked_by_the_sums_of_the_ideal_protocol(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As people run it: `fedsys simulate --canaries`, then `fedsys audit --empirical`."""
    monkeypatch.setenv("FEDSYS_HOME", str(tmp_path / "home"))
    settings = (
        "population.partition=iid",
        "population.clients=100",
        "cohort.expected=50",
        "rounds.count=2",
        "aggregation.protocol=secure",
        "faults.dropout=0.05",
        "engine.path=batched",
        "engine.chunk=64",
    )
    out = tmp_path / "run"
    arguments = ["simulate", "quickstart", "--canaries", "200", "--out", str(out), "--quiet"]
    for setting in settings:
        arguments += ["--set", setting]
    planted = CliRunner().invoke(app, arguments)
    assert planted.exit_code == 0, planted.output
    header = json.loads((out / "ledger.jsonl").read_text().splitlines()[0])["body"]
    assert header["protocol"] == "ideal", "no committee withstands 200 colluders"
    assert "quorum" not in header["delta_parts"]
    audited = CliRunner().invoke(app, ["audit", str(out), "--empirical", "--json"])
    assert audited.exit_code == 0, audited.output
    claims = {claim["name"]: claim for claim in json.loads(audited.output)["claims"]}
    assert claims[BOUND]["holds"] is True
    assert "60 guesses right about 200 canaries" in claims[BOUND]["rederived"]


def test_an_honest_run_is_measured_by_the_whole_pipeline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDSYS_HOME", str(tmp_path / "home"))
    found = honest_canaries.measure(canaries=100, epsilon=2.0)
    assert not found.refuted
    assert 0 <= found.bound < 2
    assert "noise divided by 2 is caught in" in found.power


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_honest_runs_are_rarely_refuted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most one in twenty; fails such an audit with probability below 1e-6.

    `simulations/RESULTS.md` has 200 runs of the same.
    """
    monkeypatch.setenv("FEDSYS_HOME", str(tmp_path / "home"))
    runs = 40
    refuted = sum(honest_canaries.measure(canaries=600, epsilon=2.0).refuted for _ in range(runs))
    assert refuted <= binom.ppf(1 - 1e-6, runs, 0.05)
