"""Settings from Python: NumPy's numbers, paths, tables, None, and what is no setting."""

from __future__ import annotations

import doctest
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedsys.config import dump, load, overrides
from fedsys.errors import ConfigError


def test_the_example_runs() -> None:
    assert doctest.testmod(overrides) == (0, 2)


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("rounds.count", np.int64(3), "3"),
        ("rounds.count", np.array(3), "3"),
        ("rounds.count", torch.tensor(3), "3"),
        ("local.learning_rate", np.float64(0.25), "0.25"),
        ("local.learning_rate", np.float32(0.25), "0.25"),
        ("local.learning_rate", np.int64(2), "2"),
        ("task.options", {"path": Path("a") / "b", "sizes": (np.int8(1), 2)}, None),
        ("task.name", np.str_("mnist"), '"mnist"'),
    ],
)
def test_values_count_as_what_they_hold(key: str, value: Any, text: str | None) -> None:
    found = load(None, values={key: value})
    if text is None:
        assert found.task.options == {"path": str(Path("a") / "b"), "sizes": [1, 2]}
    else:
        assert found == load(None, [f"{key}={text}"])
    assert load_again(dump(found)) == found, "nothing but what TOML holds"


def load_again(text: str) -> object:
    import tomllib

    from fedsys.config import validate

    return validate(tomllib.loads(text))


def test_none_is_the_default_and_tables_are_their_keys() -> None:
    assert load(None, values={"faults.dropout": None}).faults.dropout == 0.0
    assert load(None, values={"cohort.cap": None}).cohort.cap is None
    assert load(None, values={"no.such.key": None}) == load(None)
    nested = load(None, values={"rounds": {"count": 3}, "privacy": {"epsilon": 4}})
    assert nested == load(None, ["rounds.count=3", "privacy.epsilon=4"])
    assert nested.privacy.noise_multiplier is None


def test_text_stays_text() -> None:
    assert load(None, values={"job.name": "3"}).job.name == "3"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"rounds.count": object()},
            r"settings\['rounds.count'\]: a object is not a setting; give",
        ),
        ({"task.options": {"f": print}}, r"settings\['task.options'\]\['f'\]: a builtin_function"),
        ({"rounds": 3}, r"settings\['rounds'\]: expected section.key=value"),
        ({"rounds.count": np.array([1, 2])}, "rounds.count"),
        ({"rounds.cuont": 3}, r"rounds.cuont.*did you mean"),
        ({"job.name": "a", "job.name.first": 3}, r"settings\['job.name.first'\]: name is a value"),
    ],
)
def test_what_no_configuration_holds_names_its_key(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(None, values=values)
