"""From a name in the configuration to a `Task`: built in, or the user's own."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable, Mapping
from contextlib import redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any

from fedsys.errors import ConfigError, FedsysError
from fedsys.tasks.base import Task
from fedsys.tasks.options import nearest
from fedsys.tasks.sources import edited, forget, own_modules

__all__ = ["builtin_names", "finished", "folders", "load", "look_beside", "look_in"]

_BUILTIN = {
    "digits": ("fedsys.tasks.digits", "Digits"),
    "mnist": ("fedsys.tasks.mnist", "Mnist"),
    "cifar10": ("fedsys.tasks.cifar10", "Cifar10"),
    "shakespeare": ("fedsys.tasks.shakespeare", "Shakespeare"),
    "tabular": ("fedsys.tasks.tabular", "Tabular"),
    "images": ("fedsys.tasks.images", "Images"),
    "leaf": ("fedsys.tasks.leaf", "Leaf"),
    "hf": ("fedsys.tasks.hf", "task_of"),
    "synthetic": ("fedsys.tasks.synthetic", "Synthetic"),
}
_MEMBERS = ("name", "init_model", "loss", "metrics", "clients")


def builtin_names() -> tuple[str, ...]:
    """The tasks that ship with the product."""
    return tuple(_BUILTIN)


_beside: list[str] = []


def look_beside(config: object) -> None:
    """Look for modules in the folder of a configuration's file too, before the current one.

    Args:
        config: the file; anything else, such as a recipe's name, changes nothing. The folder's
            code will be run, so it has to be the user's own, never that of a run to be checked.
    """
    if isinstance(config, (str, Path)) and Path(config).suffix == ".toml":
        file = Path(config)
        if file.is_file():
            look_in([str(file.resolve().parent)])


def look_in(folders: Iterable[str]) -> None:
    """Look for modules in these folders, before others and before the current one."""
    for folder in folders:
        if folder in _beside:
            _beside.remove(folder)
        _beside.insert(0, folder)


def folders() -> tuple[str, ...]:
    """Where modules are looked for, in an order that `look_in` takes."""
    return tuple(reversed(_beside))


def load(name: str, options: Mapping[str, Any] | None = None) -> Task:
    """Finds and builds a task.

    >>> load("digits").name
    'digits'

    Args:
        name: A built-in task's name, or ``"package.module:Attr"``. The module is also looked for
            next to the configuration (`look_beside`) and in the current folder, and is imported
            again if its file, or that of one of the user's own modules that it imports, was edited
            since. `Attr` is a class or a function that makes a task (it is called with the options
            as keyword arguments), or a task.
        options: The table ``[task] options``.

    Raises:
        ConfigError: there is no such task; the message suggests the nearest name.
    """
    options = dict(options or {})
    if name in _BUILTIN:
        module, attribute = _BUILTIN[name]
        built: Task = getattr(importlib.import_module(module), attribute)(options)
        return built
    if ":" not in name:
        raise ConfigError(
            f"task.name = {name!r}: no such task{nearest(name, _BUILTIN)}; built in are "
            f'{", ".join(_BUILTIN)}; your own is written "package.module:Attr"'
        )
    return finished(name, _resolve(name), options)


def _resolve(name: str) -> Any:
    module_name, _, attribute = name.partition(":")
    places = list(dict.fromkeys([*_beside, str(Path.cwd())]))
    sys.path[:0] = places
    try:
        with redirect_stdout(sys.stderr):  # which belongs to what the command prints
            module = _current(module_name)
    except (Exception, SystemExit) as error:
        files = [path.stem for place in places for path in Path(place).glob("*.py")]
        missing = isinstance(error, ModuleNotFoundError) and error.name == module_name
        hint = nearest(module_name, files) if missing else ""
        raise ConfigError(
            f"task.name = {name!r}: importing {module_name} failed: "
            f"{type(error).__name__}: {error}{hint} (looked in {', '.join(places)} and the "
            f"installed packages)"
        ) from error
    finally:
        del sys.path[: len(places)]
        # Imports within methods run later; at the end of the path they shadow nothing.
        sys.path.extend(place for place in places if place not in sys.path)
    try:
        return getattr(module, attribute)
    except AttributeError:
        if module_name == "__main__":
            raise ConfigError(
                f"task.name = {name!r}: was defined in a notebook or script that is not running "
                f"here; define it there again, or put it into a module of its own"
            ) from None
        if attribute.endswith("(...)"):
            raise ConfigError(
                f"task.name = {name!r}: the run was given a task as an object, which its name "
                f"cannot rebuild; give the same again: fedsys.resume(folder, task=...)"
            ) from None
        public = [each for each in vars(module) if not each.startswith("_")]
        raise ConfigError(
            f"task.name = {name!r}: {module_name} ({module.__file__}) has no "
            f"{attribute!r}{nearest(attribute, public)}"
        ) from None


def _current(name: str) -> ModuleType:
    """The module of that name, as its file is now.

    A module that has to be imported again is a new object: objects made from the old one stay
    intact.
    """
    module = importlib.import_module(name)
    stale = edited(module)
    if not stale:
        return module
    # A module that imported a stale one would keep the stale names: import all of them again.
    forget(own_modules(module))
    module = importlib.import_module(name)
    edited(module)  # notes what was read
    return module


def finished(name: str, found: Any, options: Mapping[str, Any]) -> Task:
    """The task that `found` is, or that it makes from the options.

    Raises:
        ConfigError: it is neither a task nor makes one.
    """
    if isinstance(found, type) or not all(hasattr(found, member) for member in _MEMBERS):
        if not callable(found):
            raise ConfigError(f"task.name = {name!r}: neither a task nor something that makes one")
        try:
            found = found(**options)
        except FedsysError:
            raise
        except (Exception, SystemExit) as error:  # whatever a user's code raises
            words = " ".join(str(error).split())[:200]
            raise ConfigError(
                f"task.name = {name!r}: cannot be built with options {options}: "
                f"{type(error).__name__}: {words}"
            ) from error
    elif options:
        raise ConfigError(
            f"task.options: {name!r} is a finished task and takes none; name its class instead"
        )
    lacking = [member for member in _MEMBERS if not hasattr(found, member)]
    if lacking:
        raise ConfigError(
            f"task.name = {name!r}: lacks {', '.join(lacking)}; a task has {', '.join(_MEMBERS)}"
        )
    task: Task = found
    return task
