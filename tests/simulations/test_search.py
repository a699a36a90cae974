"""What may be varied, and how it is written."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from fedsys.config import load
from fedsys.errors import ConfigError, RunFolderError
from simulations import search
from simulations.search import Search, parse

BASE = load("quickstart")
EXAMPLES = ["privacy.mechanism=example-gaussian", "privacy.unit=example"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("local.learning_rate=log:0.01..1", FloatDistribution(0.01, 1.0, log=True)),
        ("server.momentum=0..0.95", FloatDistribution(0.0, 0.95)),
        ("local.epochs=1..4", IntDistribution(1, 4)),
        ("local.batch_size=log:1..64", IntDistribution(1, 64, log=True)),
        ("local.optimizer=sgd,adam", CategoricalDistribution(("sgd", "adam"))),
        ("local.batch_size=1,4,16", CategoricalDistribution((1, 4, 16))),
        ("privacy.clip = 0.1 .. 1", FloatDistribution(0.1, 1.0)),
    ],
)
def test_a_space_is_read_as_it_is_meant(text: str, expected: object) -> None:
    assert parse(text, BASE).distribution() == expected


@pytest.mark.parametrize(
    ("over", "words"),
    [
        ("local.learning_rate", "expected section.key=LOW..HIGH"),
        ("learning_rate=0..1", "expected section.key=LOW..HIGH"),
        ("local.learning_rat=0.1..1", "did you mean learning_rate?"),
        ("local.learning_rate=0..1", "local.learning_rate = 0.0: input should be greater than 0"),
        ("server.momentum=0..1", "server.momentum = 1.0: input should be less than 1"),
        ("server.momentum=log:0..0.9", "log: needs a lower end above 0"),
        ("server.momentum=0.9..0.1", "the range is empty"),
        ("local.epochs=1..2.5", "local.epochs = 2.5"),
        ("local.optimizer=sgd..adam", "the ends of a range are numbers"),
        ("local.optimizer=sgd", "two or more different values"),
        ("local.optimizer=sgd,sgd", "two or more different values"),
        ("local.optimizer=sdg,adam", "did you mean sgd?"),
        ("local.learning_rate.x=0..1", "learning_rate is a value, not a section"),
    ],
)
def test_a_space_that_does_not_fit_is_one_line(over: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Search.of(BASE, [over], "accuracy")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "over"),
    [
        ([], "privacy.noise_multiplier=0.5..2"),
        ([], "cohort.expected=50..100"),
        ([], "rounds.count=10..40"),
        ([], "aggregation.modulus_bits=32,40"),
        (EXAMPLES, "local.epochs=1..2"),
    ],
)
def test_what_a_trial_costs_is_not_varied(settings: list[str], over: str) -> None:
    with pytest.raises(ConfigError, match="then costs do not add up"):
        Search.of(load("quickstart", settings), [over], "accuracy")


def test_the_size_of_a_model_is_varied_where_a_step_costs_the_same() -> None:
    (space,) = Search.of(BASE, ["task.options.hidden=8|16|32"], "accuracy").spaces
    assert space.choices == (8, 16, 32)
    for settings, over in (
        (["privacy.epsilon=4"], "task.options.hidden=8|16"),
        ([], "task.options.hidden=8..16"),
    ):
        with pytest.raises(ConfigError, match="list the values"):
            Search.of(load("quickstart", settings), [over], "accuracy")


def test_a_search_does_not_stop_its_trials_early() -> None:
    base = load("quickstart", ["evaluation.stop.metric=loss"])
    with pytest.raises(ConfigError, match=r"remove evaluation\.stop"):
        Search.of(base, ["server.momentum=0..0.5"], "accuracy")


def test_without_privacy_anything_is_varied() -> None:
    base = load("quickstart", ["privacy.mechanism=none"])
    assert Search.of(base, ["cohort.expected=50..100"], "accuracy").over == [
        "cohort.expected=50..100"
    ]


def test_a_search_says_what_it_needs() -> None:
    with pytest.raises(ConfigError, match="--over is missing"):
        Search.of(BASE, [], "accuracy")
    with pytest.raises(ConfigError, match="names a key twice"):
        Search.of(BASE, ["server.momentum=0..0.5", "server.momentum=0..0.9"], "accuracy")
    with pytest.raises(ConfigError, match="needs evaluations"):
        Search.of(load("quickstart", ["evaluation.data=none"]), ["server.momentum=0..0.9"], "loss")


def test_a_search_is_stored_and_read_back(tmp_path: Path) -> None:
    wanted = Search.of(
        BASE, ["local.learning_rate=log:0.01..1", "local.optimizer=sgd,adam"], "loss"
    )
    wanted.store(tmp_path / "new")
    assert Search.stored(tmp_path / "new") == wanted
    assert wanted.minimize
    with pytest.raises(RunFolderError, match="go on with that search with --resume"):
        wanted.store(tmp_path / "new")
    with pytest.raises(RunFolderError, match="no search to go on with"):
        Search.stored(tmp_path)
    (tmp_path / "new" / "search.json").write_text('{"version": 3}')
    with pytest.raises(RunFolderError, match="version 3 instead of 2"):
        Search.stored(tmp_path / "new")


@pytest.mark.parametrize(
    ("metric", "minimize"),
    [
        ("loss", True),
        ("mae", True),
        ("val_rmse", True),
        ("error", True),
        ("MSE", True),
        ("accuracy", False),
        ("top5_accuracy", False),
        ("macro-f1", False),
        ("r2", False),
    ],
)
def test_a_known_metric_has_a_direction(metric: str, minimize: bool) -> None:
    assert Search.of(BASE, ["server.momentum=0..0.5"], metric).minimize is minimize
    other = Search.of(BASE, ["server.momentum=0..0.5"], metric, minimize=not minimize)
    assert other.minimize is not minimize


@pytest.mark.parametrize(
    "metric", ["quality", "within_10", "neg_loss", "error_score", "glossy", "terror", "lossless"]
)
def test_an_unknown_metric_needs_one(metric: str, tmp_path: Path) -> None:
    assert Search.of(BASE, ["server.momentum=0..0.5"], metric).minimize is None
    for minimize in (True, False):
        search = Search.of(BASE, ["server.momentum=0..0.5"], metric, minimize=minimize)
        search.store(tmp_path / str(minimize))
        assert Search.stored(tmp_path / str(minimize)) == search


def test_the_examples_in_the_module_run() -> None:
    result = doctest.testmod(search)
    assert result.attempted
    assert not result.failed
