"""Which procedure trains a client: the configuration's, the task's own, or the plain one."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from client.training.local import LocalConfig
from client.training.procedure.fednova import FedNova
from client.training.procedure.local import Local
from client.training.procedure.scaffold import Scaffold
from fedsys.current_folder import importable_here
from fedsys.errors import ConfigError, FedsysError
from fedsys.privacy.encoding.parts import Block
from fedsys.tasks import Examples, Task

__all__ = ["BUILTIN", "Plain", "Procedure", "procedure_named", "procedure_of"]

_MEMBER = "local_update"


@dataclass(frozen=True, kw_only=True)
class Procedure:
    """A local procedure, ready for use.

    Attributes:
        name: For messages.
        run: Trains a model in place.
        sends: The blocks that it sends, from the model and ``[local]``.
        object: What holds it: the task, or what the configuration names.
    """

    name: str
    run: Callable[[nn.Module, Examples, Local], object]
    sends: Callable[[nn.Module, LocalConfig], Mapping[str, Block]]
    object: Any


class Plain:
    """Training as ``[local]`` says, and nothing more. Option: ``epochs``, see `Local.epochs`."""

    def local_update(self, model: nn.Module, examples: Examples, local: Local) -> None:
        """See `Local.train`."""
        local.train(model, examples, epochs=local.epochs())


BUILTIN: Mapping[str, Callable[[], Any]] = {
    "train": Plain,
    "scaffold": Scaffold,
    "fednova": FedNova,
}


def procedure_of(task: Task, local: LocalConfig) -> Procedure | None:
    """The procedure for these clients; None where a path without one does the same.

    Raises:
        ConfigError: the configuration names one that is not there.
    """
    if local.procedure:
        return procedure_named(local.procedure)
    if hasattr(task, _MEMBER):
        return _made(f"task {task.name}", task)
    return None if local.plain else _made("train", Plain())


def procedure_named(name: str) -> Procedure:
    """The procedure of a name.

    Raises:
        ConfigError: there is none.
    """
    if name in BUILTIN:
        return _made(name, BUILTIN[name]())
    module_name, colon, attribute = name.partition(":")
    if not colon:
        raise ConfigError(
            f"local.procedure = {name!r}: no such procedure; built in are {', '.join(BUILTIN)}; "
            f'your own is written "package.module:Attr"'
        )
    try:
        with importable_here():
            module = importlib.import_module(module_name)
        found = getattr(module, attribute)
    except (Exception, SystemExit) as error:  # whatever a user's code raises
        words = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"local.procedure = {name!r} cannot be loaded: {type(error).__name__}: {words}"
        ) from error
    try:
        return _made(name, found() if isinstance(found, type) else found)
    except FedsysError:
        raise
    except (Exception, SystemExit) as error:  # whatever a user's code raises
        words = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"local.procedure = {name!r}: its class cannot be built without arguments: "
            f"{type(error).__name__}: {words}"
        ) from error


def _made(name: str, found: Any) -> Procedure:
    run = getattr(found, _MEMBER, found)
    if not callable(run):
        raise ConfigError(
            f"local.procedure = {name!r}: neither a function of (model, examples, local) nor "
            f"something with {_MEMBER}(model, examples, local)"
        )
    sends = getattr(found, "sends", None) or {}

    def declared(model: nn.Module, config: LocalConfig) -> Mapping[str, Block]:
        blocks = sends(model, config) if callable(sends) else sends
        if not isinstance(blocks, Mapping) or not all(
            isinstance(key, str) and isinstance(block, Block) for key, block in blocks.items()
        ):
            raise ConfigError(
                f"{name}: sends has to be a dict of names to fedsys.tasks.Block(shape=, clip=)"
            )
        return dict(blocks)

    return Procedure(name=name, run=run, sends=declared, object=found)
