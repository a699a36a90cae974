"""``fedsys predict``: a run's model scores a raw table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedsys.cli.terminal import document, say

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from fedsys.tasks.tables import Columns, Prepared

__all__ = ["predict"]

_BATCH = 4096


def predict(
    run: Annotated[Path, typer.Argument(help="A run's folder, private or published.")],
    file: Annotated[Path, typer.Argument(help="A table: .csv, .tsv or .parquet.")],
    out: Annotated[
        Path | None, typer.Option(help="A new .csv file.", show_default="standard output")
    ] = None,
) -> None:
    """Score a raw table with a run of task tabular or hf: columns are prepared as in training.

    Prints one line per row: the prediction and the probability of each class or label. Rows that
    training would have left out for a missing value stay empty. No label is needed; where the
    table has it, the scores are compared with it.
    """
    import csv
    import io

    from fedsys.durable import write_atomically
    from fedsys.errors import ConfigError, DataError
    from fedsys.release.model import ReleasedModel
    from fedsys.tasks.tables.cells import Place
    from fedsys.tasks.tables.file import open_table
    from fedsys.tasks.tables.stored import columns_of, format_of, table_options
    from fedsys.tasks.tabular import Tabular

    if out is not None and out.exists():
        raise ConfigError(f"--out {out}: already exists; give another file")
    if not file.is_file():
        raise ConfigError(f"{file}: no such file")
    released = ReleasedModel.of(run)
    config = released.config
    options = table_options(config.task.name, config.task.options)
    if options is None:
        raise ConfigError(
            f"{run}: its task is {config.task.name}, which reads no table; only runs of task "
            f"tabular, or of task hf without pictures, score tables. Export its model with "
            f"fedsys export"
        )
    columns = columns_of(config.task.name, config.task.options, run / "data.json")
    if columns is None:
        raise ConfigError(
            f"{run}: its columns were not declared, and data.json, which says how rows become "
            f"features, is missing: use the run's original folder"
        )
    columns = columns.without_client()
    task = Tabular(options)
    task.columns = columns
    model = released.fill(task.init_model(config.job.seed))
    table = open_table(Place(file), format_of(options))
    prepared = columns.prepare(table, labelled=False)
    outputs = _outputs(model, prepared)
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows(_rows(columns, prepared, outputs))
    if out is None:
        document(text.getvalue())
    else:
        try:
            write_atomically(out, text.getvalue().encode())
        except OSError as error:
            raise ConfigError(f"--out {out}: {(error.strerror or str(error)).lower()}") from None
    say(f"{len(outputs)} of {table.rows} rows scored", err=True)
    if set(columns.target.columns) <= set(table.names):
        try:
            truth = columns.prepare(table)
        except DataError as error:
            say(f"not compared with the label: {error}", err=True)
        else:
            _compare(task, _outputs(model, truth), truth)


def _outputs(model: Any, prepared: Prepared) -> NDArray[Any]:
    import numpy as np
    import torch

    starts = range(0, len(prepared.features), _BATCH)
    with torch.inference_mode():
        parts = [
            model(torch.from_numpy(prepared.features[start : start + _BATCH])) for start in starts
        ]
    found: NDArray[Any] = torch.cat(parts).numpy().astype(np.float64)
    return found


def _compare(task: Any, outputs: NDArray[Any], truth: Prepared) -> None:
    import torch

    scores = torch.from_numpy(outputs).to(torch.float32)
    found = task.metrics(scores, torch.from_numpy(truth.targets))
    for name, values in found.items():
        say(f"{name} {float(values.double().mean()):.4g} over {len(outputs)} rows", err=True)


def _rows(columns: Columns, prepared: Prepared, outputs: NDArray[Any]) -> Iterator[list[Any]]:
    """The header, and a line for each row of the file."""
    import numpy as np

    target = columns.target
    names = [] if target.kind == "number" else [f"p({name})" for name in target.names]
    yield ["row", "prediction", *names]
    if target.kind == "class":
        shifted = np.exp(outputs - outputs.max(axis=1, keepdims=True))
        chances = shifted / shifted.sum(axis=1, keepdims=True)
    else:
        chances = 1 / (1 + np.exp(-outputs))
    at = 0
    for row, kept in enumerate(prepared.kept.tolist(), start=1):
        if not kept:
            yield [row, *[""] * (1 + len(names))]
            continue
        output, chance = outputs[at], [f"{each:.6g}" for each in chances[at]]
        at += 1
        if target.kind == "number":
            yield [row, f"{float(output[0]) * target.scale + target.centre:.10g}"]
        elif target.kind == "class":
            yield [row, target.names[int(output.argmax())], *chance]
        else:
            held = [name for name, each in zip(target.names, output, strict=True) if each > 0]
            yield [row, "|".join(held), *chance]
