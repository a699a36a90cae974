"""``fedsys export``: a run's model for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedsys.cli.terminal import say

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fedsys.release.model import ReleasedModel

__all__ = ["export"]


def export(
    run: Annotated[Path, typer.Argument(help="A run's folder, private or published.")],
    out: Annotated[
        Path, typer.Argument(help="A new file: .onnx, .pt2 (torch.export) or .safetensors.")
    ],
    task: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:ATTR",
            help="Import this task, which the run names; only if you trust it.",
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Folder with data files.", show_default="$FEDSYS_DATA"),
    ] = None,
) -> None:
    """Write a model that carries its epsilon, delta and ledger head; the run is audited first.

    The epsilon is the outsider's, including tuning runs that the ledger states.

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
    require(*_PACKAGES[kind], extra="export")
    released = ReleasedModel.of(run)
    if kind == ".safetensors":
        content = as_safetensors(released.state, released.facts)
    else:
        content = _traced(run, released, kind, task, data)
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


def _traced(
    run: Path, released: ReleasedModel, kind: str, named: str | None, data: Path | None
) -> bytes:
    from dataclasses import replace

    import torch

    from fedsys import tasks
    from fedsys.config.named_code import NamedCode
    from fedsys.errors import ConfigError
    from fedsys.release.formats import as_onnx, as_pt2

    config = released.config
    wanted = NamedCode.of(config)
    try:
        replace(wanted, task=named).require(config, run)
    except ConfigError as error:
        raise ConfigError(f"{error}, or export the weights as .safetensors") from None
    task = tasks.load(config.task.name, config.task.options)
    test = tasks.read_data(task, tasks.DataSource.locate(data)).test
    model = released.fill(tasks.init_model(task, config.job.seed, test))
    three = tasks.conformed(model, test.take(torch.zeros(3, dtype=torch.int64)))
    write = as_onnx if kind == ".onnx" else as_pt2
    return write(model, three.x, released.facts)
