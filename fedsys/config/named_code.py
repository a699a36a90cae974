"""What a stored configuration would import or connect to, and whether the user named it too.

A run's folder may come from anybody. ``task.name``, ``server.strategy``, ``local.procedure``,
``population.partition`` and ``evaluation.metrics`` of the form ``package.module:Attr`` are code,
and ``engine.address`` is a cluster that answers with pickles: a command that reads them from a
folder uses them only if its user named the same.

>>> from fedsys.config import load
>>> stored = load("quickstart", ["task.name=subprocess:Popen"])
>>> NamedCode.of(stored).options
'--task subprocess:Popen'
>>> NamedCode(task="subprocess:Popen").require(stored, "runs/mine")
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from fedsys.config.tree import Config
from fedsys.errors import ConfigError

__all__ = ["NamedCode"]


@dataclass(frozen=True, kw_only=True, slots=True)
class NamedCode:
    """What the user named.

    Attributes:
        task: a task, as in ``task.name``; None if none was named.
        strategy: a strategy, as in ``server.strategy``; None if none was named.
        cluster: a Ray cluster, as in ``engine.address``; None if none was named.
        code: procedures, partitions and metrics, wherever they stand.
    """

    task: str | None = None
    strategy: str | None = None
    cluster: str | None = None
    code: tuple[str, ...] = ()

    @classmethod
    def of(cls, config: Config) -> NamedCode:
        """All that has to be named for this configuration."""
        return cls(
            task=config.task.name if ":" in config.task.name else None,
            strategy=config.server.strategy if ":" in config.server.strategy else None,
            cluster=config.engine.address or None if config.engine.backend == "ray" else None,
            code=tuple(name for name in dict.fromkeys(_others(config)) if ":" in name),
        )

    @property
    def options(self) -> str:
        """The command line's options that name the same; empty if there is nothing to name."""
        named = (
            ("--task", self.task),
            ("--strategy", self.strategy),
            ("--backend", self.cluster),
            *(("--code", name) for name in self.code),
        )
        return " ".join(
            f"{option} {shlex.quote(name)}" for option, name in named if name is not None
        )

    def require(self, config: Config, where: object) -> None:
        """Refuses a stored configuration that names what the user did not, before anything of it
        is imported.

        Args:
            config: from a folder.
            where: the folder, for the message.

        Raises:
            ConfigError: something was not named, or another thing was.
        """
        wanted = NamedCode.of(config)
        rows = (
            ("--task", self.task, wanted.task, config.task.name),
            ("--strategy", self.strategy, wanted.strategy, config.server.strategy),
            ("--backend", self.cluster, wanted.cluster, config.engine.backend),
        )
        for option, given, needed, stored in rows:
            if given is not None and given not in (needed, stored):
                raise ConfigError(f"{option} {given}: {where} was made with {needed or stored}")
        for name in self.code:
            if name not in wanted.code:
                found = ", ".join(wanted.code) or "no procedure, partition or metric of its own"
                raise ConfigError(f"--code {name}: {where} was made with {found}")
        lacking = NamedCode(
            task=wanted.task if self.task is None else None,
            strategy=wanted.strategy if self.strategy is None else None,
            cluster=wanted.cluster if self.cluster is None else None,
            code=tuple(name for name in wanted.code if name not in self.code),
        )
        if lacking.options:
            raise ConfigError(
                f"{where}: its config.toml names custom code; if you trust it, add "
                f"{lacking.options}"
            )


def _others(config: Config) -> tuple[str, ...]:
    """Names that are code if they have a colon, besides the task's and the strategy's."""
    return (config.local.procedure, config.population.partition, *config.evaluation.metrics)
