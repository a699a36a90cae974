"""Loads the modules of a package's names when the names are first used."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from typing import Any

__all__ = ["on_use"]


def on_use(
    package: str, names: Mapping[str, Iterable[str]], *, modules: Iterable[str] = ()
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` of a package, as in PEP 562.

    The package hides them from type checkers, which assume that a module with a ``__getattr__`` has
    every name::

        if TYPE_CHECKING:
            from shapes.circle import Circle
        else:
            __getattr__, __dir__ = on_use(__name__, {"circle": ("Circle",)})

    Args:
        package: the package's ``__name__``.
        names: by module of the package, the names that it defines.
        modules: modules of the package that are public names themselves.

    Returns:
        A function that loads a name's module and binds the name in the package, and raises
        AttributeError for any other name; and one that lists the package's names, loaded or not.
    """
    module_of = {name: module for module, its in names.items() for name in its}
    own = frozenset(modules)

    def load(name: str) -> Any:
        if name in own:
            return import_module(f"{package}.{name}")
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        found = getattr(import_module(f"{package}.{module_of[name]}"), name)
        setattr(sys.modules[package], name, found)
        return found

    def known() -> list[str]:
        return sorted({*vars(sys.modules[package]), *module_of, *own})

    return load, known
