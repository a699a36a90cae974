"""What the engine would choose for a configuration on this machine, found by measuring it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedsys.config import Config

__all__ = ["EngineChoice", "choose_engine"]


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineChoice:
    """What ``[engine]`` would hold after a run.

    Attributes:
        path: path of local training.
        chunk: number of clients trained at once.
        processes: number of processes in parallel.
        threads: number of threads per process.
        device: training device.
        refused: why each other path cannot be used.
        clients_per_second: measured, by path and chunk; empty where one path was enough.
    """

    path: str
    chunk: int
    processes: int
    threads: int
    device: str
    refused: Mapping[str, str] = field(default_factory=dict)
    clients_per_second: Mapping[str, float] = field(default_factory=dict)

    @property
    def facts(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {name: getattr(self, name) for name in self.__slots__}

    def __str__(self) -> str:
        several = "process" if self.processes == 1 else "processes"
        layout = f"{self.processes} {several}"
        if self.threads:
            layout += f" x {self.threads} thread{'s' if self.threads > 1 else ''}"
        return f"path {self.path}, {self.chunk} clients at once, {layout}, on {self.device}"


def choose_engine(config: Config, *, data: Path | None, device: str) -> EngineChoice:
    """Prepares the job as `fedsys simulate` does, and releases it again.

    Raises:
        FedsysError: the job cannot run; the message says why.
    """
    from simulations.setting import prepare

    setting = prepare(config, data=data, device=device)
    with setting.engine:
        engine, trainer = setting.config.engine, setting.population.trainer
        choice = trainer.choice
        return EngineChoice(
            path=engine.path,
            chunk=engine.chunk,
            processes=engine.processes,
            threads=engine.threads,
            device=str(trainer.device),
            refused={} if choice is None else dict(choice.refused),
            clients_per_second={}
            if choice is None
            else {f"{path}/{at}": rate for (path, at), rate in choice.clients_per_second.items()},
        )
