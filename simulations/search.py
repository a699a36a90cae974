"""The keys that a search varies, and their ranges: ``local.learning_rate=log:0.01..1``.

>>> from fedsys.config import load
>>> space = parse("server.momentum=0..0.95", load("quickstart"))
>>> space.low, space.high, space.log
(0.0, 0.95, False)
>>> parse("local.optimizer=sgd,adam", load("quickstart")).choices
('sgd', 'adam')
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsys.config import Config, dump, validate
from fedsys.durable import make_folder, write_atomically
from fedsys.errors import ConfigError, RunFolderError
from fedsys.improvement import less_is_better
from fedsys.run_folder import RunFolder, disk_errors

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

__all__ = ["OPTIONS", "Search", "Space", "Value", "parse", "setting", "with_settings"]

VERSION = 2
"""Of ``search.json``."""

Value = bool | int | float | str

_FREE = ("local.", "server.", "job.seed", "privacy.clip", "privacy.adaptive_", "engine.")
OPTIONS = "task.options."
"""Keys of the task's own, such as the sizes of its model."""
_EXAMPLE_COST = ("local.epochs", "local.batch_size")


@dataclass(frozen=True, kw_only=True)
class Space:
    """The values that one key may take: a range, or `choices`.

    Attributes:
        key: ``section.name``.
        text: The range or choices as written.
        low: Least value; an int where the key takes whole numbers.
        high: Greatest value, inclusive.
        log: Whether values are drawn on a logarithmic scale.
        choices: The allowed values, where there is no range.
    """

    key: str
    text: str
    low: float = 0
    high: float = 0
    log: bool = False
    choices: tuple[Value, ...] = ()

    def distribution(self) -> BaseDistribution:
        """The same space as an Optuna distribution."""
        from optuna.distributions import (
            CategoricalDistribution,
            FloatDistribution,
            IntDistribution,
        )

        if self.choices:
            return CategoricalDistribution(self.choices)
        if isinstance(self.low, int) and isinstance(self.high, int):
            return IntDistribution(self.low, self.high, log=self.log)
        return FloatDistribution(self.low, self.high, log=self.log)


@dataclass(frozen=True, kw_only=True)
class Search:
    """What a search optimizes, and over which keys.

    Attributes:
        base: the configuration that is varied.
        spaces: the values of each key.
        metric: of a trial's last evaluation.
        minimize: whether less of it is better; None where nothing says so, which no search can
            begin with.
    """

    base: Config
    spaces: tuple[Space, ...]
    metric: str
    minimize: bool | None

    @classmethod
    def of(
        cls, base: Config, over: Sequence[str], metric: str, *, minimize: bool | None = None
    ) -> Search:
        """Read ``--over`` and ``--metric``.

        Args:
            base: the configuration that is varied.
            over: each ``KEY=SPACE``.
            metric: of a trial's last evaluation.
            minimize: whether less of it is better; None where its name has to tell.

        Raises:
            ConfigError: They do not fit the configuration, or the trials' privacy costs would not
                add up.
        """
        if not over:
            raise ConfigError(
                "--over is missing: say what to vary, local.learning_rate=log:0.01..1"
            )
        if base.evaluation.stop.metric and base.privacy.mechanism != "none":
            raise ConfigError(
                f"evaluation.stop.metric = '{base.evaluation.stop.metric}': would make what a "
                f"trial costs in privacy depend on its results, and then costs do not add up; "
                f"remove evaluation.stop, or set privacy.mechanism = 'none'"
            )
        if base.evaluation.data == "none":
            raise ConfigError("evaluation.data = 'none': a search needs evaluations to compare")
        spaces = tuple(parse(text, base) for text in over)
        keys = [space.key for space in spaces]
        if len(set(keys)) < len(keys):
            raise ConfigError(f"--over names a key twice: {', '.join(keys)}")
        _require_same_cost(spaces, base)
        if minimize is None:
            minimize = less_is_better(metric)
        return cls(base=base, spaces=spaces, metric=metric, minimize=minimize)

    @property
    def over(self) -> list[str]:
        """The ``--over`` arguments as written."""
        return [f"{space.key}={space.text}" for space in self.spaces]

    def store(self, folder: Path) -> None:
        """Write ``config.toml`` and ``search.json`` into a new or empty folder.

        Raises:
            RunFolderError: The folder is not empty, or cannot be written.
        """
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise RunFolderError(
                f"{folder}: is there already; go on with that search with --resume, or choose "
                f"another --out"
            )
        with disk_errors(folder):
            make_folder(folder)
            write_atomically(folder / "config.toml", dump(self.base).encode())
            words = {
                "version": VERSION,
                "over": self.over,
                "metric": self.metric,
                "minimize": self.minimize,
            }
            write_atomically(folder / "search.json", json.dumps(words, indent=2).encode() + b"\n")

    @classmethod
    def stored(cls, folder: Path) -> Search:
        """Read what `store` wrote.

        Raises:
            RunFolderError: There is no search in the folder, or it does not read back.
        """
        stored, file = RunFolder(folder), folder / "search.json"
        if not file.is_file():
            raise RunFolderError(f"{folder}: no search to go on with here (search.json is missing)")
        words = stored.read_object(file)
        try:
            if words["version"] != VERSION:
                raise ValueError(f"version {words['version']} instead of {VERSION}")
            if not isinstance(words["minimize"], bool):
                raise TypeError("minimize is neither true nor false")
            return cls.of(
                stored.read_config(),
                list(words["over"]),
                str(words["metric"]),
                minimize=words["minimize"],
            )
        except (ValueError, KeyError, TypeError) as error:
            raise RunFolderError(f"{folder}: search.json does not read back: {error}") from None


def parse(text: str, base: Config) -> Space:
    """Read ``KEY=LOW..HIGH``, ``KEY=log:LOW..HIGH``, ``KEY=A,B,...`` or ``KEY=A|B|...``.

    Args:
        text: The argument of ``--over``.
        base: The configuration that is varied; both ends of the range must be valid in it.

    Raises:
        ConfigError: The text is not valid; names the key, its value and what is allowed.
    """
    key, equals, written = text.partition("=")
    key, written = key.strip(), written.strip()
    if not equals or "." not in key:
        raise ConfigError(f"--over {text}: expected section.key=LOW..HIGH or section.key=A,B")
    log = written.startswith("log:")
    low, dots, high = written.removeprefix("log:").partition("..")
    if dots:
        return _range(text, key, (_value(low), _value(high)), log, base)
    choices = tuple(_value(part) for part in written.split("|" if "|" in written else ","))
    if log or len(choices) < 2 or len(set(choices)) < len(choices):
        raise ConfigError(
            f"--over {text}: expected a range, {key}=0.1..1 or {key}=log:0.001..1, or two or more "
            f"different values, {key}=A,B"
        )
    for choice in choices:
        with_settings(base, {key: choice})
    return Space(key=key, text=written, choices=choices)


def _range(text: str, key: str, ends: tuple[Value, Value], log: bool, base: Config) -> Space:
    taken = [_taken(with_settings(base, {key: end}), key) for end in ends]
    numbers = [end for end in taken if isinstance(end, (int, float)) and not isinstance(end, bool)]
    if len(numbers) < 2 or not all(map(math.isfinite, numbers)):
        raise ConfigError(f"--over {text}: the ends of a range are numbers")
    low, high = numbers
    if not low < high:
        raise ConfigError(f"--over {text}: the range is empty; write {key}=LOW..HIGH")
    if log and low <= 0:
        raise ConfigError(f"--over {text}: log: needs a lower end above 0, not {low:g}")
    if isinstance(low, float) or isinstance(high, float):
        low, high = float(low), float(high)
    return Space(key=key, text=text.partition("=")[2].strip(), low=low, high=high, log=log)


def _value(text: str) -> Value:
    """The value as TOML reads it; the bare text where it is not TOML."""
    try:
        value = tomllib.loads(f"v = {text.strip()}")["v"]
    except tomllib.TOMLDecodeError:
        return text.strip()
    return value if isinstance(value, (bool, int, float, str)) else text.strip()


def _taken(config: Config, key: str) -> Any:
    """The configuration's value of a key."""
    node: Any = config.model_dump()
    for part in key.split("."):
        node = node.get(part) if isinstance(node, dict) else None
    return node


def with_settings(base: Config, settings: dict[str, Value]) -> Config:
    """`base` with some keys replaced.

    Raises:
        ConfigError: They are not valid.
    """
    tree = tomllib.loads(dump(base))
    for key, value in settings.items():
        *sections, name = key.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
            if not isinstance(node, dict):
                raise ConfigError(f"{key}: {section} is a value, not a section")
        node[name] = value
    return validate(tree)


def setting(key: str, value: Value) -> str:
    """``key=value`` for people and for ``--set``.

    >>> setting("local.learning_rate", 0.1), setting("local.optimizer", "sgd")
    ('local.learning_rate=0.1', 'local.optimizer="sgd"')
    """
    return f"{key}={json.dumps(value)}"


def _require_same_cost(spaces: Sequence[Space], base: Config) -> None:
    """Refuse to vary anything that changes a trial's privacy cost.

    The trials' total is their composition. A trial's settings depend on the results of the trials
    before it, and under such adaptivity Rényi divergences add up only if each trial's cost was
    fixed beforehand (Mironov 2017, Proposition 1; Feldman and Zrnic 2021).

    Raises:
        ConfigError: A key changes the cost of a trial.
    """
    privacy = base.privacy
    if privacy.mechanism == "none":
        return
    for space in spaces:
        free = space.key.startswith(_FREE)
        if space.key.startswith(OPTIONS):
            # A step costs what its noise multiplier says, whatever the model's size; that all
            # values give the same population is checked when the data has been read.
            free = bool(space.choices) and privacy.noise_multiplier is not None
            if not free:
                raise ConfigError(
                    f"--over {space.key}={space.text}: list the values, {space.key}=8|16, and set "
                    f"privacy.noise_multiplier in place of privacy.epsilon: a trial's cost has to "
                    f"be the same for every one of them"
                )
        if privacy.unit == "example" and space.key in _EXAMPLE_COST:
            free = False
        if not free:
            raise ConfigError(
                f"--over {space.key}={space.text}: would make what a trial costs in privacy depend "
                f"on the trials before it, and then costs do not add up; fix it with --set, or "
                f"tune it with --set privacy.mechanism=none on data that need no protection"
            )
