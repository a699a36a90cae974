"""The hash of a task's code: of everything that its distribution brings, as it was imported.

A task of one's own is a package, and any of its modules can change what is trained. So the hash
covers all files of the distribution that the task's module was installed with (modules and data
alike), or, where it is not installed, of its top-level package and of the user's own modules that
it imports. A built-in task is covered with all of ``fedsys/tasks``. What other distributions bring,
numpy for one, is not covered.

The hash is taken once, when the module has just been imported. A process whose files have changed
since would run other code than a new one: it is told to start again.
"""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from types import ModuleType

from fedsys.errors import Cause, ConfigError, PolicyRefusal
from fedsys.tasks.base import Task
from fedsys.tasks.sources import edited, own_modules
from fedsys.wire.task_hash import MOST_BYTES, MOST_FILES, counts, digest_of, hash_of

__all__ = ["TaskCode", "code_of"]

_BUILTIN = "fedsys.tasks"


@dataclass(frozen=True, kw_only=True)
class TaskCode:
    """The code that a process imported.

    Attributes:
        entry: ``module:Class``.
        files: SHA-256 of each file, as hex, by its name.
    """

    entry: str
    files: Mapping[str, str] = field(repr=False)
    _places: Mapping[str, Path] = field(repr=False)
    _stamps: Mapping[str, tuple[int, int]] = field(repr=False)

    @property
    def sha256(self) -> str:
        """Of all of it."""
        return hash_of(self.entry, self.files)

    def require_unchanged(self) -> None:
        """See that a new process would import the same.

        Raises:
            PolicyRefusal: a file changed or went since it was imported. (A new one is none of what
                was imported.)
        """
        changed = [name for name in self._places if self._changed(name)]
        if changed:
            raise PolicyRefusal(
                f"the files of task {self.entry} changed since this process imported them "
                f"({', '.join(changed[:5])}): restart it, so that it runs what its hash says",
                cause=Cause.TASK,
            )

    def _changed(self, name: str) -> bool:
        path = self._places[name]
        try:
            if _stamp(path) == self._stamps[name]:
                return False
            return _sha256(path) != self.files[name]
        except OSError:
            return True


_taken: dict[str, tuple[object, TaskCode]] = {}


def code_of(task: Task, procedure: object = None, named: str = "") -> TaskCode:
    """The code of a task as this process imported it, and that of a local procedure with it.

    Args:
        task: the task.
        procedure: a function or an object of the owner's own that trains; None for none.
        named: its name in configurations.

    Raises:
        ConfigError: its files cannot be found, so that nobody could approve them.
        PolicyRefusal: they changed between import and now.
    """
    made = type(task)
    entry = f"{made.__module__}:{made.__qualname__}"
    code = _code_in(sys.modules[made.__module__], entry)
    if procedure is not None:
        where = getattr(procedure, "__module__", None) or type(procedure).__module__
        other = _code_in(sys.modules[where], named)
        code = TaskCode(
            entry=f"{entry} {named}",
            files={**code.files, **other.files},
            _places={**code._places, **other._places},
            _stamps={**code._stamps, **other._stamps},
        )
    return code


def _code_in(module: ModuleType, entry: str) -> TaskCode:
    key = module.__name__
    spec, code = _taken.get(key, (None, None))
    if code is None or spec is not module.__spec__:
        stale = edited(module)
        if stale:
            raise PolicyRefusal(
                f"{stale[0].__file__}: was edited after it was imported: restart this process",
                cause=Cause.TASK,
            )
        code = _take(module, entry)
        _taken[key] = (module.__spec__, code)
    else:
        code.require_unchanged()
    return TaskCode(entry=entry, files=code.files, _places=code._places, _stamps=code._stamps)


def _take(module: ModuleType, entry: str) -> TaskCode:
    places = dict(_files_of(module))
    if not places:
        raise ConfigError(
            f"task {entry}: the files of {module.__name__} are not available, so nobody can "
            f"approve it; install the task from a wheel, or as source"
        )
    try:
        stamps = {name: _stamp(path) for name, path in places.items()}
        files = {name: _sha256(path) for name, path in places.items()}
    except OSError as error:
        raise ConfigError(f"task {entry}: {error.filename}: {error.strerror}") from None
    return TaskCode(entry=entry, files=files, _places=places, _stamps=stamps)


def _files_of(module: ModuleType) -> Iterator[tuple[str, Path]]:
    """Name and place of every file of a module's distribution, or of what stands for it."""
    if module.__name__.startswith(f"{_BUILTIN}."):
        yield from _package(Path(str(sys.modules[_BUILTIN].__file__)).parent, _BUILTIN)
        return
    top = module.__name__.partition(".")[0]
    own = own_modules(module)
    found = {} if own else dict(_distribution(top, module))  # its own lie outside of site-packages
    if not found:
        for each in own or [module]:
            path = getattr(each, "__file__", None)
            if path is None:
                continue
            first = each.__name__.partition(".")[0]
            package = getattr(sys.modules.get(first), "__path__", None)
            if package is None:
                found[f"{each.__name__}.py"] = Path(path)
            else:
                for folder in package:
                    found.update(_package(Path(folder), first))
    yield from found.items()


def _distribution(top: str, module: ModuleType) -> Iterator[tuple[str, Path]]:
    """The files of the installed distribution that the module comes from; none for one that is not
    installed, or in place (editable)."""
    here = Path(str(getattr(module, "__file__", ""))).resolve()
    for name in importlib.metadata.packages_distributions().get(top, ()):
        listed = importlib.metadata.distribution(name).files or []
        places = {str(PurePosixPath(each)): Path(str(each.locate())) for each in listed}
        if any(place.resolve() == here for place in places.values()):
            for each, place in places.items():
                parts = PurePosixPath(each).parts
                if not parts[0].endswith(".dist-info") and counts(parts):
                    yield each, place
            return


def _package(folder: Path, name: str) -> Iterator[tuple[str, Path]]:
    """All files below a package's folder."""
    base, count, size = PurePosixPath(*name.split(".")), 0, 0
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if not counts(parts) or not path.is_file():
            continue
        count, size = count + 1, size + path.stat().st_size
        if count > MOST_FILES or size > MOST_BYTES:
            raise ConfigError(
                f"{folder}: more than {MOST_FILES} files or 1 GiB in a task's package; keep data "
                f"and environments out of it"
            )
        yield str(base.joinpath(*parts)), path


def _stamp(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_mtime_ns, found.st_size


def _sha256(path: Path) -> str:
    with path.open("rb") as content:
        return digest_of(content)
