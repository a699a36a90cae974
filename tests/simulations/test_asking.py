"""Rounds that ask, through the pipeline of training."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.special import ndtr

import fedsys
from fedsys.audit import audit_run, compose
from fedsys.config import Config, validate
from fedsys.errors import ConfigError, DataError, FedsysError
from fedsys.privacy import Signer, read_ledger
from fedsys.privacy.planning import make_plan
from fedsys.queries import Rows, Sheet, parse
from simulations import harness
from simulations.asking import spec_settings
from simulations.randomness import SeededRandomness
from tests.fedsys.audit import forge

Configure = Callable[..., Config]

QUESTIONS: list[dict[str, Any]] = [
    {"ask": "count", "name": "rows", "rows": 40},
    {"ask": "labels", "name": "classes", "classes": 10, "rows": 40},
    {"ask": "mean", "name": "ink", "column": "x20", "low": 0, "high": 1, "rows": 40},
]

PIXEL = {"column": "x20", "low": 0, "high": 1, "rows": 40}
EVERY_QUERY: list[dict[str, Any]] = [
    {"ask": "labels", "name": "classes", "classes": 10, "rows": 500},
    {"ask": "count", "name": "rows", "rows": 40},
    {"ask": "sum", "name": "sum", **PIXEL},
    {"ask": "mean", "name": "mean", **PIXEL},
    {"ask": "variance", "name": "variance", **PIXEL},
    {"ask": "histogram", "name": "histogram", "column": "x20", "edges": [0, 0.2, 0.4, 0.6, 0.8, 1]},
    {"ask": "crosstab", "name": "crosstab", "axes": [
        {"column": "label", "values": [0, 1, 2]}, {"column": "x20", "edges": [0, 0.5, 1]}]},
    {"ask": "examples", "name": "examples", "edges": [0, 5, 10, 20, 40, 1000]},
    {"ask": "devices", "name": "devices", "column": "x20"},
    {"ask": "quantiles", "name": "quantiles", **PIXEL},
    {"ask": "top", "name": "top", "column": "label", "values": [1, 2, 3, 4, 5], "most": 2},
    {"ask": "correlation", "name": "correlation", "columns": [
        {"column": "x20", "low": 0, "high": 1}, {"column": "x21", "low": 0, "high": 1}]},
]  # fmt: skip
"""Everything that can be asked of data."""
EVERY_EVALUATION: list[dict[str, Any]] = [
    *({**each, "name": f"{each['name']} held out"} for each in EVERY_QUERY),
    {"ask": "mean", "name": "accuracy on devices", "column": "accuracy", "low": 0, "high": 1},
    {"ask": "devices", "name": "accuracy by device"},
    {"ask": "confusion", "name": "confusion", "classes": 10, "rows": 30},
    {"ask": "calibration", "name": "calibration", "rows": 30},
]
"""Everything that can be asked of a model on devices' own rows."""


def asking(protocol: str = "ideal", **settings: Any) -> Config:
    tree: dict[str, Any] = {
        "job": {"kind": "query"},
        "population": {"partition": "iid", "clients": 60},
        "privacy": {"epsilon": 2.0},
        "aggregation": {"protocol": protocol},
        "query": {"questions": QUESTIONS},
    }
    for key, value in settings.items():
        section, _, name = key.partition("__")
        tree.setdefault(section, {})[name] = value
    if tree["privacy"].get("mechanism") == "none" or "noise_multiplier" in tree["privacy"]:
        tree["privacy"].pop("epsilon")
    return validate(tree)


def summary(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return found


def failed(folder: Path) -> set[str]:
    return {each.name for each in audit_run(folder).claims if each.holds is False}


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDSYS_HOME", str(tmp_path_factory.mktemp("home")))
        out = tmp_path_factory.mktemp("runs") / "query"
        return harness.run(asking(), out=out).folder


def test_a_query_is_a_round_of_its_kind_whose_audit_holds(asked: Path) -> None:
    view = read_ledger(asked / "ledger.jsonl")
    (record,) = view.rounds
    assert view.header["kind"] == record.reserve["kind"] == "query"
    assert set(record.body) >= {"aggregate_sha256", "answer_sha256"}
    assert not (asked / "model.pt").exists()
    audit = audit_run(asked)
    held = {each.name: each.holds for each in audit.claims}
    assert audit.passed
    assert held["Kind of rounds"] is held["Answers"] is True
    assert audit.curve[-1].spent.outsider == pytest.approx(2.0, rel=1e-3)
    rows = summary(asked)["query"]["answers"][0]["estimates"][0]
    middle, half = (rows["low"] + rows["high"]) / 2, (rows["high"] - rows["low"]) / 2
    assert abs(1437 - middle) <= 2.6 * half  # 5.1 deviations: false alarms in 4 of 10^7 runs


@pytest.mark.parametrize("spoil", ["value", "released", "kind", "name"])
def test_an_answer_that_does_not_follow_from_the_sum_is_noticed(
    asked: Path, tmp_path: Path, spoil: str
) -> None:
    run = Path(shutil.copytree(asked, tmp_path / "run"))
    stated = summary(run)
    query = stated["query"]
    if spoil == "value":
        query["answers"][1]["estimates"][0]["value"] += 1
    elif spoil == "released":
        query["released"][0] *= 1.001
    elif spoil == "kind":
        del stated["query"]
    else:
        query["answers"][2]["name"] = "other"
    (run / "summary.json").write_text(json.dumps(stated))
    assert "Answers" in failed(run)


def test_a_round_that_was_reserved_as_another_kind_is_noticed(asked: Path, tmp_path: Path) -> None:
    """Though the coordinator signs it again with its own key."""
    run = Path(shutil.copytree(asked, tmp_path / "run"))
    lines = forge.entries(run)
    spoiled = [(k, {**b, "kind": "train"} if k == "reserve" else b) for k, b in lines]
    head = forge.sign_again(run, spoiled, Signer.load_or_create())
    forge.edit_json(run, lambda body: body.update(ledger_head=head))
    assert "Kind of rounds" in failed(run)


def test_secure_and_ideal_give_the_same_answers_to_the_bit(tmp_path: Path) -> None:
    found = []
    for protocol in ("secure", "ideal"):
        run = harness.run(
            asking(
                protocol,
                cohort__expected=40,
                privacy__noise_multiplier=3.0,
                query__questions=EVERY_QUERY,
            ),
            out=tmp_path / protocol,
            randomness=SeededRandomness(b"questions"),
        )
        found.append(summary(run.folder)["query"]["released"])
        body = read_ledger(run.folder / "ledger.jsonl").rounds[0].body
        found.append(body["answer_sha256"])
    assert found[:2] == found[2:]


def central_multiplier(epsilon: float, delta: float) -> float:
    """Of the Gaussian mechanism, from its closed form (Balle and Wang 2018, theorem 8)."""

    def excess(z: float) -> float:
        a = 1 / z
        second = math.exp(epsilon) * ndtr(-a / 2 - epsilon / a)
        return float(ndtr(a / 2 - epsilon / a) - second) - delta

    return float(brentq(excess, 1e-2, 1e3))


@pytest.mark.parametrize("protocol", ["secure", "ideal", "float"])
def test_the_error_is_within_five_percent_of_the_central_mechanism(protocol: str) -> None:
    """Each question alone, against sensitivity times the noise that a trusted curator would add."""
    sheet = Sheet.of(parse([{"ask": "labels", "name": "classes", "classes": 10}]), population=1000)
    plan = make_plan(
        mechanism="distributed-gaussian",
        population=1000,
        expected_cohort=1000.0,
        rounds=1,
        dimension=sheet.dimension,
        clip=1.0,
        delta=1e-5,
        epsilon=1.0,
        encoding="float" if protocol == "float" else "wide",
        corrupt=0.1 if protocol == "secure" else None,
        dropout=0.1,
    )
    deviation = plan.build_mechanism().noise_deviation
    (measured,) = sheet.measured(np.zeros((1, sheet.size)), deviation, 1.0, 1000)
    central = central_multiplier(1.0, 1e-5)
    assert central <= measured.deviation <= 1.05 * central


def test_float_and_ideal_differ_by_rounding_alone(tmp_path: Path) -> None:
    found = []
    for protocol in ("float", "ideal"):
        config = asking(protocol, privacy__mechanism="none")
        folder = harness.run(config, out=tmp_path / protocol).folder
        found.append(np.array(summary(folder)["query"]["released"]))
    assert np.abs(found[0] - found[1]).max() < 1e-5


def test_queries_compose_to_less_than_their_sum(asked: Path, tmp_path: Path) -> None:
    others = [harness.run(asking(), out=tmp_path / str(number)).folder for number in range(2)]
    composed = compose([asked, *others])
    spent = composed.curve[-1].spent.outsider
    assert composed.passed
    assert spent < 0.8 * 6.0


def test_a_model_that_is_bad_for_one_group_is_found_at_epsilon_one() -> None:
    """1000 devices, of which 150 have an accuracy near .3 and the others near .9: in 2000 rounds
    the number of devices below .5 is significantly above 0 in every one, and the interval of the
    tenth percentile ends at .7 at most. For a fair model neither happens."""
    rng = np.random.default_rng(2)
    plan = make_plan(
        mechanism="distributed-gaussian", population=1000, expected_cohort=1000.0, rounds=1,
        dimension=400, clip=1.0, delta=1e-5, epsilon=1.0,
    )  # fmt: skip
    sheet = Sheet.of(parse([{"ask": "devices", "name": "fairness"}]), population=1000)
    deviation = plan.build_mechanism().noise_deviation
    device = np.repeat(np.arange(1000), 20)
    found = {}
    for name, bad in (("unfair", 150), ("fair", 0)):
        chance = np.where(device < bad, 0.3, 0.9)
        right = (rng.random(len(device)) < chance).astype(float)
        rows = Rows.of({"accuracy": right}, device=device, devices=1000)
        mean = sheet.contributions(rows).sum(axis=0)[: sheet.size] / 1000
        noisy = mean + rng.normal(0, deviation, (2000, sheet.size))
        (measured,) = sheet.measured(noisy, deviation, 1.0, 1000)
        below = measured.sums[:, :5].sum(axis=1)
        found[name] = below > 5 * measured.deviation * math.sqrt(5)
        answer = sheet.answers(noisy[0], deviation=deviation, rate=1.0, population=1000)[0]
        tenth = next(each for each in answer.estimates if each.label == "quantile 0.1")
        assert tenth.high is not None
        assert (tenth.high < 0.75) == bool(bad)
    assert found["unfair"].all()
    assert not found["fair"].any()


def test_an_evaluation_looks_at_held_out_rows_of_a_run(tmp_path: Path) -> None:
    held: dict[str, Any] = {"population.held_out": 0.25, "population.partition": "iid"}
    trained = fedsys.simulate(
        "quickstart",
        {
            **held,
            "population.clients": 40,
            "cohort.expected": 20,
            "rounds.count": 1,
            "aggregation.protocol": "ideal",
            "privacy.mechanism": "none",
            "engine.processes": 1,
            "engine.path": "loop",
            "engine.chunk": 32,
        },
        out=tmp_path / "train",
        progress=False,
    )
    answers = fedsys.query(
        "digits",
        [
            {"ask": "count", "name": "rows", "rows": 100},
            {"ask": "mean", "name": "accuracy", "column": "accuracy", "low": 0, "high": 1,
             "rows": 50},
            {"ask": "confusion", "name": "confusion", "classes": 10, "rows": 50},
        ],
        {"privacy.mechanism": "none", "aggregation.protocol": "ideal", "cohort.expected": 40},
        of=trained.folder,
        out=tmp_path / "evaluate",
    )  # fmt: skip
    assert answers.run.audit().passed
    rows = answers["rows"].value()
    assert rows == pytest.approx(1437 * 0.25, rel=0.1)
    right = sum(answers["confusion"].value(f"{c}, {c}") for c in range(10))
    assert right / rows == pytest.approx(answers["accuracy"].value(), abs=0.01)
    with pytest.raises(ConfigError, match="held_out"):
        fedsys.query(
            "digits",
            [{"ask": "count", "name": "rows"}],
            {"privacy.epsilon": 1.0, "population.held_out": 0.1},
            of=trained.folder,
            out=tmp_path / "other",
        )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "asks nothing"),
        ("[[questions]]\nask = 'count'\nname = 'n'\n[task]\nname = 'mnist'", "leave one out"),
        ("[[questions]\n", "TOML"),
        ("[[questions]]\nask = 'count'\nname = 'n'\n[[query.questions]]\nask = 'count'", "twice"),
    ],
)
def test_a_file_that_does_not_ask_is_refused(tmp_path: Path, text: str, said: str) -> None:
    spec = tmp_path / "spec.toml"
    spec.write_text(text)
    with pytest.raises(FedsysError, match=said):
        spec_settings(spec, task="digits", of=None)


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        ({"rounds__count": 2}, ConfigError, "rounds.count = 2"),
        ({"privacy__clip": 2.0}, ConfigError, "privacy.clip"),
        ({"cohort__participation": 0.5}, ConfigError, "cohort.participation"),
        ({"aggregation__encoding": "narrow"}, ConfigError, "aggregation.encoding"),
        ({"privacy__mechanism": "banded-mf"}, ConfigError, "banded-mf"),
        ({"job__kind": "evaluate"}, ConfigError, "--of RUN"),
        ({"job__kind": "train", "cohort__expected": 60}, ConfigError, "job.kind to 'query'"),
        (
            {"query__questions": [{"ask": "top", "name": "t", "column": "pet", "values": ["cat"]}]},
            DataError,
            "column 'pet': task digits has label, x0 to x63",
        ),
    ],
)
def test_what_cannot_be_asked_with_is_refused_before_anything_is_written(
    tmp_path: Path, settings: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        harness.run(asking(**settings), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
