"""A task together with the means by which another process obtains the same one."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import FunctionType, ModuleType
from typing import Any

from fedsys.errors import ConfigError
from fedsys.tasks.base import Task
from fedsys.tasks.loading import finished, folders, load, look_in
from fedsys.tasks.sources import check_sources, edited, forget, made_by, sources_of

__all__ = ["OBJECT", "Origin", "Recipe"]

OBJECT = "(...)"
"""Suffix of the name of a task that was given as an object: it cannot be built from its name."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The data from which another process builds a task.

    Attributes:
        name: as `fedsys.tasks.load` takes it.
        options: as `fedsys.tasks.load` takes them.
        given: a task that cannot be built from its name, or its pickle; else None.
        sources: SHA-256 of the user's source files with the task's code, by module.
        folders: where modules are looked for, besides the current folder.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    given: bytes | Task | None = field(default=None, repr=False)
    sources: Mapping[str, str] = field(default_factory=dict, repr=False)
    folders: tuple[str, ...] = field(default=(), repr=False)

    def build(self) -> Task:
        """The task.

        Raises:
            ConfigError: it cannot be built here, or its files were edited in the meantime.
        """
        look_in(self.folders)
        if self.given is None:
            task = load(self.name, self.options)
        elif not isinstance(self.given, bytes):
            task = self.given
        else:
            try:
                task = pickle.loads(self.given)  # noqa: S301 - from the process that runs the job
            except (Exception, SystemExit) as error:
                raise ConfigError(
                    f"task {self.name}: the object cannot be unpickled in another process: "
                    f"{type(error).__name__}: {error}; set engine.processes to 1"
                ) from error
        check_sources(self.sources)
        return task


@dataclass(frozen=True, kw_only=True)
class Origin:
    """A task of this process, and where it came from.

    Attributes:
        name: the task's name in the configuration.
        options: the task's options in the configuration.
        task: the task, ready for use.
        built: whether the task can be built from `name` and `options`.
    """

    name: str
    options: Mapping[str, Any]
    task: Task = field(repr=False)
    built: bool

    @classmethod
    def named(cls, name: str, options: Mapping[str, Any] | None = None) -> Origin:
        """The task of a name; its files are read again if they were edited.

        Raises:
            ConfigError: as `fedsys.tasks.load`.
        """
        options = dict(options or {})
        return cls(name=name, options=options, task=load(name, options), built=True)

    @classmethod
    def of(cls, given: object, options: Mapping[str, Any] | None = None) -> Origin:
        """The task that a user passed.

        Args:
            given: a name, a class, or a finished task.
            options: keyword arguments for a class.

        Raises:
            ConfigError: it does not make a task, or its file was edited after it was imported.
        """
        options = dict(options or {})
        if isinstance(given, str):
            return cls.named(given, options)
        made = given if isinstance(given, (type, FunctionType)) else type(given)
        module, within = made.__module__, made.__qualname__
        name = f"{module}:{within}"
        _refuse_old(made, name)
        task = finished(name, given, options)
        reachable = "." not in within and getattr(sys.modules.get(module), within, None) is made
        bare = given is made or (not options and not _state(task))
        if reachable and bare:
            return cls(name=name, options=options, task=task, built=True)
        return cls(name=name + OBJECT, options={}, task=task, built=False)

    @cached_property
    def obstacle(self) -> str:
        """Why another process cannot obtain this task, with the remedy; empty if it can."""
        module = sys.modules.get(type(self.task).__module__)
        if self.name.partition(":")[0] == "__main__" or module is None or _lives_here(module):
            return (
                f"task {self.name} is defined in the notebook or script itself, which other "
                f"processes cannot import; to train in several, write it to a file, say "
                f'mytask.py, and give task="mytask:{_class_name(self.task)}"'
            )
        try:
            self.recipe()
        except ConfigError as reason:
            return str(reason)
        return ""

    def recipe(self, *, pickled: bool = True) -> Recipe:
        """The recipe for another process, or for another GPU of this process.

        Args:
            pickled: whether a task that cannot be built from its name is pickled.

        Raises:
            ConfigError: the task is an object that cannot be pickled.
        """
        names = (self.name.partition(":")[0], type(self.task).__module__)
        sources: dict[str, str] = {}
        for module in (sys.modules[name] for name in names if name in sys.modules):
            sources |= sources_of(module)
        return Recipe(
            name=self.name,
            options=self.options,
            given=self._given(pickled),
            sources=sources,
            folders=folders(),
        )

    def _given(self, pickled: bool) -> bytes | Task | None:
        here = self.name.startswith("__main__:")
        if self.built and not (here and not pickled):
            return None
        return self._pickled if pickled else self.task

    @cached_property
    def _pickled(self) -> bytes:
        try:
            return pickle.dumps(self.task, protocol=pickle.HIGHEST_PROTOCOL)
        except (Exception, SystemExit) as error:  # whatever a user's __reduce__ raises
            raise ConfigError(
                f"task {self.name} cannot be pickled for other processes "
                f"({type(error).__name__}: {error}); to train in several, give a task that is "
                f'built from its name, "module:Class"'
            ) from None


def _refuse_old(made: type | FunctionType, name: str) -> None:
    """Refuse an object whose module has changed since: only a new import reads the file again."""
    module = sys.modules.get(made.__module__)
    stale = [] if module is None else edited(module)
    if stale and module is not None:
        forget([*stale, module])
        what = f"{', '.join(str(each.__file__) for each in stale)} was edited after it was imported"
    elif module is None or not made_by(module, made):
        what = f"module {made.__module__} was imported again since, or forgotten"
    else:
        return
    raise ConfigError(
        f"task {name}: {what}; import it again and make the task again, or give it by name, which "
        f'reads the file: task="{name}"'
    )


def _lives_here(module: ModuleType) -> bool:
    """Whether a module comes from no file that another process could import."""
    return module.__name__ == "__main__" or module.__spec__ is None


def _class_name(task: Task) -> str:
    return type(task).__qualname__.rpartition(".")[2]


def _state(task: Task) -> bool:
    """Whether an instance holds anything that its class does not."""
    return bool(getattr(task, "__dict__", None)) or any(
        hasattr(task, slot)
        for base in type(task).__mro__
        for slot in getattr(base, "__slots__", ())
    )
