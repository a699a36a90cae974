"""Configuration: defaults, overrides, and one clear line for everything that is wrong."""

from __future__ import annotations

import doctest
import tomllib
from pathlib import Path

import pytest

from fedsys import config as configuration
from fedsys.config import dump, load, recipes
from fedsys.errors import ConfigError


def test_the_example_runs() -> None:
    assert doctest.testmod(configuration) == (0, 3)


def test_quickstart_is_the_default() -> None:
    assert load(None) == load("quickstart")
    assert load(None).privacy.mechanism == "distributed-gaussian"


@pytest.mark.parametrize("name", sorted(recipes()))
def test_every_recipe_loads_and_survives_a_round_trip(name: str) -> None:
    loaded = load(name)
    assert configuration.validate(tomllib.loads(dump(loaded))) == loaded


def test_epsilon_and_noise_multiplier_replace_each_other() -> None:
    by_epsilon = load(None, ["privacy.epsilon=4"]).privacy
    assert (by_epsilon.epsilon, by_epsilon.noise_multiplier) == (4.0, None)
    by_noise = load(None, ["privacy.epsilon=4", "privacy.noise_multiplier=1"]).privacy
    assert (by_noise.epsilon, by_noise.noise_multiplier) == (4.0, 1.0)
    none = load(None, ["privacy.mechanism=none"]).privacy
    assert (none.epsilon, none.noise_multiplier) == (None, None)


@pytest.mark.parametrize(
    ("override", "fragments"),
    [
        ("rounds.cuont=3", ["rounds.cuont", "did you mean count?"]),
        ("privcy.epsilon=1", ["privcy", "unknown section", "did you mean privacy?"]),
        ("privacy.mechanism=skelam", ["'skelam'", "distributed-gaussian", "allowed are"]),
        ("rounds.count=abc", ["rounds.count = 'abc'", "integer"]),
        ("rounds.count=1.5", ["rounds.count = 1.5", "integer"]),
        ("rounds.count=0", ["rounds.count = 0", "greater than or equal to 1"]),
        ("privacy.delta=1", ["privacy.delta = 1.0", "less than 1"]),
        ("privacy.noise_multiplier=0", ["noise_multiplier = 0.0", "greater than 0"]),
        ("privacy.clip=1e160", ["privacy.clip = 1e+160", "between 1e-30 and 1e30"]),
        ("privacy.clip=1e-40", ["privacy.clip = 1e-40", "between 1e-30 and 1e30"]),
        ("privacy.example_clip=1e300", ["example_clip = 1e+300", "between 1e-30 and 1e30"]),
        ("privacy.epsilon=nan", ["privacy.epsilon = nan", "finite"]),
        ("cohort.cap=3", ["cohort.cap = 3", "cohort.expected = 100"]),
        ("population.clients=10", ["cohort.expected = 100", "population.clients = 10"]),
        ("rounds=3", ["rounds=3", "section.key=value"]),
        ("job.name.first=3", ["job.name", "section"]),
        ("job.name='a b'", ["job.name = 'a b'"]),
        ("aggregation.modulus_bits=5", ["modulus_bits = 5", "8 to 64"]),
        ("aggregation.dropout=0.45", ["0.55", "less than 0.5"]),
        ("cohort.sampling=min-separation", ["cohort.min_separation"]),
    ],
)
def test_what_is_wrong_is_said_in_one_line(override: str, fragments: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load(None, [override])
    message = str(caught.value)
    assert "\n" not in message
    for fragment in fragments:
        assert fragment in message


def test_an_example_that_many_clients_hold_is_not_protected_by_itself() -> None:
    """Thirty-six copies in twenty clients would be charged as one."""
    examples = ["privacy.mechanism=example-gaussian", "privacy.unit=example"]
    dealt = ["population.clients=20", "cohort.expected=20", "population.partition=resampled"]
    load(None, dealt)
    load(None, [*examples, *dealt[:2], "population.partition=iid"])
    with pytest.raises(ConfigError) as caught:
        load(None, [*examples, *dealt])
    message = str(caught.value)
    assert message.startswith("population.partition = 'resampled' with privacy.unit = 'example'")
    assert "\n" not in message


def test_a_mechanism_needs_noise_and_none_refuses_it(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text("[privacy]\nmechanism = 'distributed-gaussian'\n")
    with pytest.raises(ConfigError, match=r"needs privacy\.epsilon"):
        load(path)
    path.write_text("[privacy]\nmechanism = 'none'\nepsilon = 1.0\n")
    with pytest.raises(ConfigError, match="does not give"):
        load(path)


def test_unreadable_sources_say_where_and_what_else(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no such file.*quickstart.*did you mean quickstart"):
        load("quickstrat")
    broken = tmp_path / "broken.toml"
    broken.write_text("a = = 3")
    with pytest.raises(ConfigError, match="not a configuration in TOML"):
        load(broken)
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load(binary)
    with pytest.raises(ConfigError, match="is a directory"):
        load(tmp_path)
    large = tmp_path / "large.toml"
    large.write_text("#" * ((1 << 18) + 1))
    with pytest.raises(ConfigError, match="larger than 256 KiB"):
        load(large)
    slow = tmp_path / "slow.toml"
    slow.write_text("a." * 120_000 + "a = 1")  # Python's own reader takes minutes
    with pytest.raises(ConfigError, match="more than 200 dots"):
        load(slow)
