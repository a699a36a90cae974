"""``fedsys export``: a run's model for other programs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedsys.cli.task_options import TaskOfRun
from fedsys.cli.terminal import say

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from fedsys.release.model import ReleasedModel
    from fedsys.tasks import Examples, Task

__all__ = ["export"]


def export(
    run: Annotated[Path, typer.Argument(help="A run's folder, private or published.")],
    out: Annotated[
        Path, typer.Argument(help="A new file: .onnx, .pt2 (torch.export) or .safetensors.")
    ],
    task: TaskOfRun = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Folder with data files.", show_default="$FEDSYS_DATA"),
    ] = None,
    quantize: Annotated[
        str | None, typer.Option(metavar="int8", help="Store matrices as 8-bit integers.")
    ] = None,
    prune: Annotated[
        float | None,
        typer.Option(metavar="FRACTION", help="Set this fraction of the weights, the least, to 0."),
    ] = None,
) -> None:
    """Write a model that carries its epsilon, delta and ledger head; the run is audited first.

    The epsilon is the outsider's, including tuning runs that the ledger states. A smaller model
    (--quantize, --prune) is printed with accuracy, size and latency before and after.

    A recurrent model is unrolled, which takes minutes as .pt2 and longer as .onnx.
    """
    from fedsys.cli.extras import require
    from fedsys.durable import write_atomically
    from fedsys.errors import ConfigError
    from fedsys.release.formats import FORMATS, as_safetensors
    from fedsys.release.model import ReleasedModel

    kind = out.suffix
    if kind not in FORMATS:
        raise ConfigError(f"{out}: the suffix selects the format; use one of {', '.join(FORMATS)}")
    if out.exists():
        raise ConfigError(f"{out}: already exists; give another file")
    if not out.parent.is_dir():
        raise ConfigError(f"{out}: there is no folder {out.parent}")
    if quantize not in (None, "int8"):
        raise ConfigError(f"--quantize {quantize}: allowed is int8")
    require(*_PACKAGES[kind], extra="export")
    released = ReleasedModel.of(run)
    if quantize is not None or prune is not None:
        shown = _Shown.of(run, released, task, data)
        content = shown.smaller(kind, quantize=quantize is not None, prune=prune)
    elif kind == ".safetensors":
        content = as_safetensors(released.state, released.facts)
    else:
        shown = _Shown.of(run, released, task, data)
        content = shown.content(shown.model, kind, released.facts)
    try:
        write_atomically(out, content)
    except OSError as error:
        raise ConfigError(f"{out}: {(error.strerror or str(error)).lower()}") from None
    facts = released.facts
    say(
        f"{out}: {len(content):,} bytes; outsider's epsilon {float(facts['fedsys.epsilon']):.4f} "
        f"at delta {facts['fedsys.delta']}{_with_tuning(facts)}; ledger head "
        f"{facts['fedsys.ledger_head'][:16]}"
    )


def _with_tuning(facts: Mapping[str, str]) -> str:
    if facts["fedsys.tuning_runs"] == "0":
        return ""
    own = float(facts["fedsys.epsilon_of_this_run"])
    return f", including {facts['fedsys.tuning_runs']} tuning runs (this run alone: {own:.4f})"


_PACKAGES: dict[str, tuple[str, ...]] = {
    ".onnx": ("onnx", "onnxscript"),
    ".pt2": (),
    ".safetensors": ("safetensors",),
}


@dataclass(frozen=True, kw_only=True)
class _Shown:
    """A released model with its task's code and test data."""

    released: ReleasedModel
    task: Task
    test: Examples
    model: nn.Module

    @classmethod
    def of(cls, run: Path, released: ReleasedModel, named: str | None, data: Path | None) -> _Shown:
        """Imports the task, which the user has to have named if it is not built in."""
        from dataclasses import replace

        from fedsys import tasks
        from fedsys.config.named_code import NamedCode
        from fedsys.errors import ConfigError

        config = released.config
        wanted = NamedCode.of(config)
        try:
            replace(wanted, task=named).require(config, run)
        except ConfigError as error:
            raise ConfigError(f"{error}, or export the weights as .safetensors") from None
        task = tasks.load(config.task.name, config.task.options)
        test = tasks.read_data(task, tasks.DataSource.locate(data)).test
        model = released.fill(tasks.init_model(task, config.job.seed, test))
        return cls(released=released, task=task, test=test, model=model)

    def content(
        self, model: nn.Module, kind: str, facts: Mapping[str, str], *, optimize: bool = True
    ) -> bytes:
        """A file with the whole computation."""
        import torch

        from fedsys import tasks
        from fedsys.release.formats import as_onnx, as_pt2

        three = tasks.conformed(self.model, self.test.take(torch.zeros(3, dtype=torch.int64)))
        if kind == ".onnx":
            return as_onnx(model, three.x, facts, optimize=optimize)
        return as_pt2(model, three.x, facts)

    def smaller(self, kind: str, *, quantize: bool, prune: float | None) -> bytes:
        """The file of the smaller model; prints the figures of both."""
        from fedsys.cli.export_smaller import print_figures, smaller
        from fedsys.release.formats import as_safetensors

        plain, state = dict(self.released.facts), self.released.state
        made = smaller(self.model, state, quantize=quantize, prune=prune)
        facts = plain | dict(made.facts)
        if kind == ".safetensors":
            before, after = as_safetensors(state, plain), as_safetensors(made.state, facts)
        else:
            before = self.content(self.model, kind, plain)
            after = self.content(made.model, kind, facts, optimize=not quantize)
        figures = self.released.config.evaluation.metrics
        whole = [name for name in figures if ":" not in name]  # a run's word imports nothing
        print_figures(self.task, self.test, (self.model, before), (made.model, after), whole)
        return after
