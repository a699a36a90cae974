"""Checks that the modules with a task's code still match their files.

A notebook's process outlives edits of the files that it imported, and the processes that train
import those files later. Without a check, clients would train the new code while the coordinator
evaluates the old. Only the user's own modules are checked: the standard library, installed packages
and the built-in tasks do not change while a process runs.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import site
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

from fedsys.errors import ConfigError

__all__ = ["check_sources", "edited", "forget", "made_by", "own_modules", "sources_of"]

_OURS = ("fedsys", "server", "client", "secure_agg", "simulations")

_CLOCK_ERROR = 2.0
"""Seconds by which a process's start time, which is counted from the boot, may be off."""


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """A module's source when it was last known to match the module.

    Attributes:
        spec: the module's spec from that import; a reload makes another one.
        sha256: SHA-256 of the file.
    """

    spec: Any
    sha256: str


_seen: dict[str, _Seen] = {}


def own_modules(module: ModuleType) -> list[ModuleType]:
    """`module` and the user's modules that it imports, directly or not; imported ones first."""
    found: dict[str, ModuleType] = {}

    def visit(each: ModuleType, path: frozenset[str]) -> None:
        name = each.__name__
        if name in found or name in path or not _is_own(each):
            return
        for imported in _imports(each):
            visit(imported, path | {name})
        found[name] = each

    visit(module, frozenset())
    return list(found.values())


def edited(module: ModuleType) -> list[ModuleType]:
    """Those of `own_modules` whose files were edited after they were imported.

    The first time that a module is seen, the time of its import is unknown. If its file is newer
    than this process, the functions in memory are compared with those in the file; a change of a
    constant before that first time, without a change of lines, goes unnoticed.
    """
    return [each for each in own_modules(module) if not _is_current(each)]


def forget(modules: list[ModuleType]) -> None:
    """Make the next import of these modules read their files; old objects stay intact."""
    for module in modules:
        name = module.__name__
        _seen.pop(name, None)
        if sys.modules.get(name) is module:
            del sys.modules[name]
        parent, _, last = name.rpartition(".")
        if parent in sys.modules and getattr(sys.modules[parent], last, None) is module:
            delattr(sys.modules[parent], last)
    importlib.invalidate_caches()


def made_by(module: ModuleType, made: type | FunctionType) -> bool:
    """Whether a class or function is this module's, not that of an earlier import of its file."""
    names = {"": made} if isinstance(made, FunctionType) else vars(made)
    return all(
        function.__globals__ is vars(module)
        for function in _functions(names, module.__name__, set())
        if function.__module__ == module.__name__
        and function.__code__.co_filename == getattr(module, "__file__", None)
    )


def sources_of(module: ModuleType) -> dict[str, str]:
    """SHA-256 of the files of `own_modules`, by module name, as they were imported."""
    found = {}
    for each in own_modules(module):
        if _is_current(each) and each.__name__ in _seen:
            found[each.__name__] = _seen[each.__name__].sha256
    return found


def check_sources(expected: Mapping[str, str]) -> None:
    """Raise ConfigError if a file differs from what `sources_of` found in another process."""
    for name, sha256 in expected.items():
        module = sys.modules.get(name)
        source = None if module is None else _source(module)
        if module is not None and (source is None or _sha256(source) != sha256):
            raise ConfigError(
                f"{module.__file__}: was edited after the run had imported it, so that the "
                f"processes would train different code; start the run again"
            )


def _is_own(module: ModuleType) -> bool:
    name = module.__name__
    path = getattr(module, "__file__", None)
    if name == "__main__" or name.partition(".")[0] in _OURS or not str(path).endswith(".py"):
        return False
    return not any(Path(str(path)).resolve().is_relative_to(folder) for folder in _installed())


@cache
def _installed() -> tuple[Path, ...]:
    """Folders of the standard library and of installed packages."""
    paths = sysconfig.get_paths()
    folders = [paths[key] for key in ("stdlib", "platstdlib", "purelib", "platlib")]
    folders += [*site.getsitepackages(), site.getusersitepackages()]
    return tuple(Path(folder).resolve() for folder in folders)


def _imports(module: ModuleType) -> Iterator[ModuleType]:
    """Modules that its source names in import statements, if they are loaded."""
    source = _source(module)
    if source is None:
        return
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):  # it is being edited: the import will report it
        return
    package = getattr(module, "__package__", None) or ""
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                try:
                    base = importlib.util.resolve_name("." * node.level + base, package)
                except ImportError:
                    continue
            names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        for name in names:
            if name in sys.modules:
                yield sys.modules[name]


def _source(module: ModuleType) -> bytes | None:
    try:
        return Path(str(module.__file__)).read_bytes()
    except OSError:
        return None


def _sha256(source: bytes) -> str:
    return hashlib.sha256(source).hexdigest()


def _is_current(module: ModuleType) -> bool:
    source = _source(module)
    if source is None:  # a file that is gone cannot be imported anywhere else either
        return True
    name, sha256 = module.__name__, _sha256(source)
    seen = _seen.get(name)
    if seen is not None and seen.spec is module.__spec__:
        return seen.sha256 == sha256
    if not _older_than_process(module) and not _same_code(module, source):
        return False
    _seen[name] = _Seen(spec=module.__spec__, sha256=sha256)
    return True


def _older_than_process(module: ModuleType) -> bool:
    import psutil

    try:
        changed = Path(str(module.__file__)).stat().st_mtime
    except OSError:
        return False
    return changed < float(psutil.Process().create_time()) - _CLOCK_ERROR


def _same_code(module: ModuleType, source: bytes) -> bool:
    """Whether every function of the module in memory is also in its source, at the same line."""
    path = str(module.__file__)
    if type(getattr(module.__spec__, "loader", None)) is not SourceFileLoader:
        return True  # pytest, for one, rewrites what it imports: there is nothing to compare with
    try:
        whole = compile(source, path, "exec", dont_inherit=True)
    except (SyntaxError, ValueError):
        return False
    known = {_key(code) for code in _nested(whole)}
    return all(
        _key(function.__code__) in known
        for function in _functions(vars(module), module.__name__, set())
        if function.__code__.co_filename == path
    )


def _functions(names: Mapping[str, Any], module: str, met: set[int]) -> Iterator[FunctionType]:
    for value in list(names.values()):
        if id(value) in met:
            continue
        met.add(id(value))
        if isinstance(value, property):
            value = value.fget
        value = getattr(value, "__func__", value)
        value = getattr(value, "__wrapped__", value)
        if isinstance(value, FunctionType):
            yield value
        elif isinstance(value, type) and value.__module__ == module:
            yield from _functions(vars(value), module, met)


def _nested(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _nested(constant)


def _key(code: CodeType) -> tuple[Any, ...]:
    """The parts of a function's code that follow from its source alone."""
    constants = tuple(
        _key(each) if isinstance(each, CodeType) else (type(each).__name__, repr(each))
        for each in code.co_consts
    )
    names = (code.co_names, code.co_varnames, code.co_freevars)
    return (code.co_qualname, code.co_firstlineno, code.co_code, constants, names)
