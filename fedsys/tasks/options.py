"""Reads a task's ``[task] options`` strictly: unknown keys and wrong types are refused."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from fedsys.errors import ConfigError

__all__ = ["Options", "nearest"]

T = TypeVar("T", str, int, float, bool)


def nearest(name: str, known: Iterable[str]) -> str:
    """`` (did you mean X?)``, or nothing if no known name is near."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean {close[0]}?)" if close else ""


class Options:
    """A task's options, taken one by one.

    >>> options = Options("mnist", {"model": "cnn"}, known=("model",))
    >>> options.choice("model", "mlp", ("mlp", "cnn"))
    'cnn'

    Raises:
        ConfigError: a key is not in `known`; the message suggests the nearest one.
    """

    def __init__(self, task: str, given: Mapping[str, Any], known: Iterable[str]) -> None:
        self._task, self._given, self._known = task, dict(given), tuple(known)
        for key in self._given:
            if key not in self._known:
                allowed = ", ".join(self._known) or "none"
                raise ConfigError(
                    f"task.options.{key}: unknown to task {task}{nearest(key, self._known)}; "
                    f"allowed are {allowed}"
                )

    def get(self, key: str, default: T) -> T:
        """The value of `key`, of the default's type (an integer passes for a float)."""
        value = self._given.get(key, default)
        kind = type(default)
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            raise ConfigError(
                f"task.options.{key} = {value!r}: task {self._task} takes a {kind.__name__}"
            )
        return value

    def required(self, key: str, meaning: str) -> str:
        """A string that has no default."""
        if key not in self._given:
            raise ConfigError(f"task.options.{key} is missing: task {self._task} needs {meaning}")
        return self.get(key, "")

    def count(self, key: str, default: int, *, low: int = 1, high: int = 10**7) -> int:
        """An integer in [low, high]."""
        value = self.get(key, default)
        if not low <= value <= high:
            raise ConfigError(f"task.options.{key} = {value}: allowed are {low} to {high}")
        return value

    def fraction(self, key: str, default: float) -> float:
        """A number strictly between 0 and 1."""
        value = self.get(key, default)
        if not 0 < value < 1:
            raise ConfigError(f"task.options.{key} = {value}: must lie between 0 and 1")
        return value

    def names(self, key: str) -> tuple[str, ...]:
        """A list of strings, empty by default."""
        value = self._given.get(key, [])
        if not isinstance(value, list | tuple) or not all(isinstance(v, str) for v in value):
            raise ConfigError(f"task.options.{key} = {value!r}: must be a list of strings")
        return tuple(value)

    def choice(self, key: str, default: str, allowed: tuple[str, ...]) -> str:
        """One of `allowed`."""
        value = self.get(key, default)
        if value not in allowed:
            raise ConfigError(
                f"task.options.{key} = {value!r}: allowed are {', '.join(allowed)}"
                f"{nearest(value, allowed)}"
            )
        return value
