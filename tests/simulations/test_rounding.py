"""A clipping norm far above the updates is refused before a round, with the numbers."""

from __future__ import annotations

import doctest
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from fedsys.config import Config, validate
from fedsys.errors import ConfigError
from simulations import harness, rounding
from simulations.rounding import loss_by_rounding
from simulations.setting import prepare

Configure = Callable[..., Config]
FEW = ("population.partition=iid", "population.clients=50", "cohort.expected=25")


@pytest.mark.parametrize(
    ("protocol", "clip"),
    [("ideal", "1e4"), ("secure", "2e6"), ("float", "1e7"), ("ideal", "1e30")],
)
def test_a_norm_that_rounds_updates_away_is_refused(
    protocol: str, clip: str, configure: Configure, tmp_path: Path
) -> None:
    settings = (*FEW, "privacy.mechanism=none", f"aggregation.protocol={protocol}")
    config = configure(*settings, f"privacy.clip={clip}")
    message = (
        r"privacy\.clip = [\de+]+: updates are summed as multiples of [\d.e+]+, and updates of "
        r"8 clients tried have a median norm of [\d.]+: rounding would change their sum by \d+% of "
        r"its length; set privacy\.clip = ([\d.]+), which clips none of them"
    )
    with pytest.raises(ConfigError, match=message) as refused:
        harness.run(config, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    found = re.search(message, str(refused.value))
    assert found is not None
    advised = configure(*settings, f"privacy.clip={found[1]}")
    assert prepare(advised).notice == ""


def test_what_is_large_or_clips_is_said(configure: Configure) -> None:
    settings = (*FEW, "privacy.mechanism=none")
    large = prepare(configure(*settings, "privacy.clip=500")).notice
    assert re.search(r"privacy\.clip = 500 is large: .* changes their sum by \d+% of its", large)
    small = prepare(configure(*settings, "privacy.clip=0.01")).notice
    assert "privacy.clip = 0.01 clips under mechanism 'none' too" in small
    assert "and 8 of them are longer" in small


def test_without_a_mechanism_nothing_is_clipped_unless_asked(
    configure: Configure, tmp_path: Path
) -> None:
    asked = configure(*FEW, "privacy.mechanism=none", "aggregation.protocol=ideal")
    keys = asked.model_dump(exclude_unset=True)
    del keys["privacy"]["clip"]
    setting = prepare(validate(keys))
    clip = setting.config.privacy.clip
    found = re.search(
        r"this norm is ([\d.]+) times the longest update of 8 clients", setting.notice
    )
    assert found is not None
    assert 8 <= float(found[1]) <= 16
    assert f"privacy.clip = {clip:g}: mechanism 'none' clips only where" in setting.notice
    weights = setting.population.trainer.initial_weights()
    updates = setting.population.train(weights, list(range(50)), round=3)
    assert np.linalg.norm(updates, axis=1).max() < clip
    assert prepare(asked).config.privacy.clip == asked.privacy.clip


def test_under_a_mechanism_nothing_of_the_data_is_told(configure: Configure) -> None:
    notice = prepare(configure("privacy.clip=1e4", "privacy.noise_multiplier=1.0")).notice
    assert "clip" not in notice


def test_what_rounding_changes() -> None:
    rng = np.random.default_rng(0)
    update = rng.normal(size=1000)
    norm = float(np.linalg.norm(update))
    assert loss_by_rounding(update, norm) < 0.01
    assert loss_by_rounding(update, 0.1 * norm) < 0.01, "what is clipped uses the whole grid"
    # Uniform rounding: a step has the standard deviation 1 / sqrt(12).
    expected = 20 / (64 * np.sqrt(12))
    assert loss_by_rounding(update, 20 * norm) == pytest.approx(expected, rel=0.05)
    assert loss_by_rounding(update, 1e6 * norm) == 1.0


def test_the_examples_in_the_module_run() -> None:
    assert doctest.testmod(rounding).attempted


@pytest.mark.parametrize(("cohort", "refused"), [(25, False), (1, True)])
def test_what_rounding_adds_may_cancel_over_a_cohort(
    cohort: int, refused: bool, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Coordinates of up to a step, drawn apart for each client: rounding changes one update by half
    of its length, and the sum of eight by less than a third."""
    settings = ("population.partition=iid", "population.clients=50", "privacy.mechanism=none")
    clip = 500.0
    config = configure(*settings, f"cohort.expected={cohort}", f"privacy.clip={clip}")
    rng, setting = np.random.default_rng(0), prepare(config)
    d = setting.population.trainer.dimension
    step = clip / (64 * np.sqrt(d))

    def updates(*_args: object, **_named: object) -> NDArray[np.float32]:
        drawn: NDArray[np.float32] = (rng.uniform(size=(1, d)) * step).astype(np.float32)
        return drawn

    alone = [loss_by_rounding(updates()[0].astype(np.float64), clip) for _ in range(9)]
    assert min(alone) > 0.4
    monkeypatch.setattr(setting.population, "train", updates)
    monkeypatch.setattr(rounding, "_MOST_LOST", 0.4)
    if refused:
        with pytest.raises(ConfigError, match=r"their sum by [45]\d% of its length"):
            rounding.check_clip(config, setting.plan, setting.population)
    else:
        said = rounding.check_clip(config, setting.plan, setting.population)
        assert re.search(r"their sum by [12]\d% of its length", said)
