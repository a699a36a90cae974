"""``fedsys task``: a table's columns, declared before anything is trained."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedsys.cli.task_options import TaskOfRun
from fedsys.cli.terminal import document, say

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["app"]

app = typer.Typer(help="Declare a table's columns, and check what is read.", no_args_is_help=True)

_IN_A_LINE = 8
_HEAD = """\
# How rows of {file} become features and targets. Edit it: every text and number below was
# read from its rows, and whatever stays here is visible to everybody who gets this configuration.
# ranges   numbers and dates, mapped to [-1, 1]; values outside are clipped to the range
# values   texts, one feature each; add a column to `other` if other texts may occur
# classes  texts of the label
# A row that does not fit is refused. Columns that are left out are not read.
"""


@app.command()
def schema(
    file: Annotated[Path, typer.Argument(help="A table: .csv, .tsv or .parquet.")],
    label: Annotated[
        list[str] | None,
        typer.Option(
            help="The column to predict; several columns of 0 and 1 are labels that may all apply."
        ),
    ] = None,
    client: Annotated[str, typer.Option(help="The column that names clients.")] = "",
    option: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="An option of task tabular; repeatable."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="A new .toml file.", show_default="standard output")
    ] = None,
) -> None:
    """Write a declaration of a table's columns, for `simulate`, `job submit` and `agent run`.

    Its contents are read from all rows; privacy claims treat whatever you leave in it as public.
    """
    from fedsys.cli.task_options import options_of
    from fedsys.errors import ConfigError
    from fedsys.printable import printable
    from fedsys.tasks.options import Options
    from fedsys.tasks.tables.cells import Place
    from fedsys.tasks.tables.options import KNOWN, TableOptions, declaration

    if out is not None and out.exists():
        raise ConfigError(f"--out {out}: already exists; give another file")
    given = {"path": str(file), **options_of(option or [])}
    if label:
        given["label"] = label[0] if len(label) == 1 else label
    if client:
        given["client"] = client
    if not file.is_file():
        raise ConfigError(f"{file}: no such file")
    if "label" not in given:
        from fedsys.tasks.tables.file import Format, open_table

        there = open_table(Place(file), Format()).names
        raise ConfigError(f"--label is missing: which column is predicted? {', '.join(there)}")
    table = TableOptions.of(Options("tabular", given, (*KNOWN, "model", "hidden")), given)
    opened = table.open(Place(file), None)
    columns = table.columns(opened)
    reading = columns.prepare(opened).reading
    options: dict[str, Any] = {"path": file.name, **declaration(columns, opened.format)}
    for key in ("test_path", "test_fraction", "model", "hidden"):
        if key in given:
            options[key] = given[key]
    text = _HEAD.format(file=printable(file.name)) + "\n" + _toml(options)
    _check(text, options)
    for line in reading.lines():
        say(line, err=True)
    declared = {name for key in ("ranges", "values") for name in options.get(key, {})}
    left = sorted({each.name for each in columns.features} - declared)
    if left:
        say(f"  left out, the same in every row: {', '.join(left)}", err=True)
    if out is None:
        document(text)
        return
    _write(out, text)
    deal = "by-column" if client else "iid --set population.clients=100"
    say(f"wrote {out}; edit it, then check it: fedsys task read {out} --data {file.parent}")
    say(
        f"then: fedsys simulate {out} --data {file.parent} --set population.partition={deal} "
        f"--set privacy.epsilon=8"
    )


@app.command("from-query")
def from_query(
    run: Annotated[Path, typer.Argument(help="The folder of a query about a table.")],
    task: TaskOfRun = None,
    out: Annotated[
        Path | None, typer.Option(help="A new .toml file.", show_default="standard output")
    ] = None,
) -> None:
    """Write a declaration whose ranges and values are a query's answers, with what it cost.

    A range is from the lowest to the highest quantile that was asked for; values are those of top.
    """
    import tomli_w

    from fedsys import tasks
    from fedsys.errors import ConfigError
    from simulations.declaring import declared_by

    if out is not None and out.exists():
        raise ConfigError(f"--out {out}: already exists; give another file")
    tree = declared_by(run, named=task)
    tasks.load(tree["task"]["name"], tree["task"]["options"])
    stated = tree["tuning"]
    text = (
        f"# Ranges and values are answers to questions: noisy sums, which {stated['epsilon']:.4g} "
        f"of epsilon\n# paid for. [tuning] states that, and the total of whatever is trained with "
        f"this covers it.\n\n{tomli_w.dumps(tree)}"
    )
    if out is None:
        document(text)
        return
    _write(out, text)
    say(f"wrote {out}; check it with `fedsys task read {out}`, then train with it")


def _write(out: Path, text: str) -> None:
    from fedsys.durable import write_atomically
    from fedsys.errors import ConfigError

    try:
        write_atomically(out, text.encode())
    except OSError as error:
        raise ConfigError(f"--out {out}: {(error.strerror or str(error)).lower()}") from None


@app.command()
def read(
    config: Annotated[
        Path, typer.Argument(help="A TOML file with a table [task], such as `task schema` writes.")
    ],
    data: Annotated[
        Path | None,
        typer.Option(help="Folder with data files.", show_default="$FEDSYS_DATA"),
    ] = None,
) -> None:
    """Read a task's data as training would, and print what was read."""
    from fedsys import tasks
    from fedsys.cli.task_options import task_in

    section = task_in(config)
    task = tasks.load(section.name, section.options)
    held = tasks.read_data(task, tasks.DataSource.locate(data))
    for line in held.reading.lines() if held.reading is not None else ():
        say(line)
    say(f"{len(held.train)} rows to train on, {len(held.test)} to test on")


def _toml(options: Mapping[str, Any]) -> str:
    """``[task]`` and its options, one column per line."""
    plain = {key: value for key, value in options.items() if not isinstance(value, dict)}
    lines = ["[task]", 'name = "tabular"', "", "[task.options]"]
    lines += [f"{key} = {_value(value)}" for key, value in plain.items()]
    for key, table in options.items():
        if isinstance(table, dict):
            lines += ["", f"[task.options.{key}]"]
            lines += [f"{_text(name)} = {_value(value)}" for name, value in table.items()]
    return "\n".join(lines) + "\n"


def _value(value: Any) -> str:
    if isinstance(value, dict):
        inner = ", ".join(f"{_text(name)} = {_value(each)}" for name, each in value.items())
        return f"{{ {inner} }}"
    if isinstance(value, list):
        if len(value) <= _IN_A_LINE:
            return "[" + ", ".join(map(_value, value)) + "]"
        return "[\n" + "".join(f"    {_value(each)},\n" for each in value) + "]"
    if isinstance(value, float):
        return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(value)
    return _text(value) if isinstance(value, str) else str(value).lower()


def _text(text: str) -> str:
    """A basic TOML string, which is a JSON string except for the character DEL."""
    import json

    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _check(text: str, options: Mapping[str, Any]) -> None:
    """Requires that the text reads back as the options, and is a valid declaration."""
    from fedsys import tasks
    from fedsys.bounded_toml import parse_toml
    from fedsys.errors import ConfigError

    try:
        found = parse_toml(text.encode())["task"]["options"]
    except ValueError as error:
        raise ConfigError(
            f"the declaration cannot be read back as a configuration: {error}; leave columns out "
            f"with --option 'ignore=[...]'"
        ) from None
    if found != dict(options):
        raise ConfigError("the declaration cannot be written as TOML; rename its columns")
    tasks.load("tabular", options)
