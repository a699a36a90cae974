"""Writes the reference pages from the code: ``python -m docs.reference``, or ``make reference``.

Types, bounds and defaults of a key come from its pydantic model, its meaning from the
``Attributes`` of the model's docstring; commands come from Typer. The tests compare the committed
pages with what this module gives.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import griffe
from pydantic import BaseModel, TypeAdapter
from pydantic_core import PydanticUndefined

from client.policy import ApprovedTask, Policy, QueryPolicy
from fedsys.config import Config
from server.home.folder import Settings, WitnessAddress

__all__ = ["PAGES", "undescribed"]

HERE = Path(__file__).parent
NOTE = "<!-- Written by `make reference`; edit the docstrings in the code instead. -->\n"

Schema = Mapping[str, Any]
_NESTED = {"evaluation": ("stop",), "tuning": ("part",)}
"""Tables within a table."""


def meanings(model: type) -> dict[str, str]:
    """The meaning of each key of a model, from the ``Attributes`` of its docstring."""
    docstring = griffe.Docstring(model.__doc__ or "", lineno=1)
    found: dict[str, str] = {}
    for section in docstring.parse("google", warnings=False):
        if isinstance(section, griffe.DocstringSectionAttributes):
            found |= {each.name: " ".join(each.description.split()) for each in section.value}
    return found


def undescribed() -> list[str]:
    """Keys without a meaning, and meanings without a key."""
    tables: dict[str, type[BaseModel]] = {name: _section(name) for name in Config.model_fields}
    for outer, inner in _NESTED.items():
        tables |= {f"{outer}.{key}": _nested(tables[outer], key) for key in inner}
    tables["coordinator.toml"] = Settings
    wrong = []
    for table, model in tables.items():
        wrong += [f"{table}.{key}" for key in set(model.model_fields) ^ set(meanings(model))]
    for kind in (Policy, ApprovedTask, QueryPolicy):
        keys = {each.name for each in fields(kind)}
        wrong += [f"policy.toml: {kind.__name__}.{key}" for key in keys ^ set(meanings(kind))]
    return sorted(wrong)


def configuration() -> str:
    """The page of a job's keys, a coordinator's and a device's."""
    page = [NOTE, "# Configuration", "", _INTRODUCTION]
    definitions = Config.model_json_schema()["$defs"]
    for name in Config.model_fields:
        model = _section(name)
        page += ["", f"## `[{name}]`", "", *_prose(model)]
        page += _table(model, definitions[model.__name__]["properties"])
        for key in _NESTED.get(name, ()):
            part = _nested(model, key)
            page += ["", f"### `[{name}.{key}]`", "", *_prose(part)]
            page += _table(part, definitions[part.__name__]["properties"])
    page += ["", "## A coordinator: `coordinator.toml`", "", _COORDINATOR, ""]
    page += _table(Settings, Settings.model_json_schema()["properties"])
    page += ["", "### `[[witnesses]]`", "", *_prose(WitnessAddress)]
    page += _table(WitnessAddress, WitnessAddress.model_json_schema()["properties"])
    page += ["", "## A device: `policy.toml`", "", _DEVICE, ""]
    schema = TypeAdapter(Policy).json_schema()
    page += _table(Policy, schema["properties"], fresh=_first_policy())
    page += ["", "### `[tasks.NAME]`", "", *_prose(ApprovedTask)]
    page += _table(ApprovedTask, schema["$defs"]["ApprovedTask"]["properties"])
    page += ["", "### `[queries]`", "", *_prose(QueryPolicy)]
    page += _table(QueryPolicy, schema["$defs"]["QueryPolicy"]["properties"])
    return "\n".join(page) + "\n"


def commands() -> str:
    """The page of commands, as Typer documents them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # click's, of what Typer still reads
        from typer.cli import get_docs_for_click
        from typer.main import get_command

        from fedsys.cli.app import app

        command: Any = get_command(app)
        _shorten(command)
        with command.make_context("fedsys", ["--help"], resilient_parsing=True) as context:
            text = get_docs_for_click(obj=command, ctx=context, name="fedsys")
    text = re.sub(r"\n{3,}", "\n\n", text.replace("# `fedsys`", "# Command line", 1))
    text = text.replace("&#x27;", "'").replace("&quot;", '"')
    return f"{NOTE}\n{text.strip()}\n"


def _shorten(command: Any) -> None:
    """Lists of commands show the whole first line of each, which click would cut off."""
    for each in getattr(command, "commands", {}).values():
        each.short_help = (each.help or "").strip().partition("\n\n")[0]
        _shorten(each)


PAGES = {"configuration.md": configuration, "cli.md": commands}


# -- tables ---------------------------------------------------------------------------------------


def _table(model: type, properties: Schema, fresh: Mapping[str, Any] | None = None) -> list[str]:
    described = meanings(model)
    heads = ["Key", "Value", "Default", *(["First run writes"] if fresh else []), "Meaning"]
    lines = [_row(heads), _row(["---"] * len(heads))]
    for key, schema in properties.items():
        cells = [f"`{key}`", _kind(schema), _default(model, key, schema)]
        if fresh:
            cells.append(f"`{_toml(fresh[key])}`" if key in fresh else "")
        lines.append(_row([*cells, described.get(key, "").replace("``", "`")]))
    return lines


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _prose(model: type) -> list[str]:
    """What a docstring says before its attributes, a paragraph an entry."""
    docstring = griffe.Docstring(model.__doc__ or "", lineno=1)
    section = docstring.parse("google", warnings=False)[0]
    text = str(section.value).replace("``", "`")
    return [line for each in text.split("\n\n") for line in (" ".join(each.split()), "")]


def _kind(schema: Schema) -> str:
    """The type and bounds of a value, in words."""
    if "anyOf" in schema:
        return " or ".join(_kind(each) for each in schema["anyOf"] if each.get("type") != "null")
    if "$ref" in schema:
        return "a table"
    if "enum" in schema:
        return ", ".join(f'`"{each}"`' for each in schema["enum"])
    named = {"integer": "integer", "number": "number", "boolean": "`true`, `false`"}
    if schema["type"] == "array":
        return f"list of {_several(schema.get('items', {}))}"
    if schema["type"] == "string":
        pattern = schema.get("pattern")
        return f"text matching `{pattern}`" if pattern else "text"
    if schema["type"] == "object":
        return "a table"
    return named[schema["type"]] + _bounds(schema)


def _several(schema: Schema) -> str:
    if "$ref" in schema:
        return "tables"
    plural = {
        "string": "texts",
        "number": "numbers",
        "array": "lists of numbers",
        "object": "tables",
    }
    return plural[schema["type"]] + (
        f" matching `{schema['pattern']}`" if "pattern" in schema else ""
    )


def _bounds(schema: Schema) -> str:
    """Pydantic writes a bound under either name, by what validates the value before it."""
    said = []
    for names, word in [
        (("exclusiveMinimum", "gt"), "above"),
        (("minimum", "ge"), "from"),
        (("exclusiveMaximum", "lt"), "below"),
        (("maximum", "le"), "to"),
    ]:
        values = [schema[name] for name in names if name in schema]
        said += [f"{word} {_number(value)}" for value in values]
    return " " + " ".join(said) if said else ""


def _number(value: float) -> str:
    if isinstance(value, int) and value >= 10**6:
        power = math.log2(value)
        return f"2^{power:.0f}" if value == 2 ** round(power) else f"10^{math.log10(value):.0f}"
    return f"{value:g}"


def _default(model: type, key: str, schema: Schema) -> str:
    if issubclass(model, BaseModel):
        field = model.model_fields[key]
        value = field.get_default(call_default_factory=True)
        if value is PydanticUndefined:
            return "required"
    else:
        if "default" not in schema and key == "sha256":
            return "required"
        value = schema.get("default", {})
    return "" if value is None else f"`{_toml(value)}`"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_toml(each) for each in value) + "]"
    if isinstance(value, QueryPolicy):
        return f"{{ allow = {_toml(value.allow)} }}"
    if isinstance(value, Mapping):
        return "{}"
    return str(value)


def _section(name: str) -> type[BaseModel]:
    model = Config.model_fields[name].annotation
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        raise TypeError(f"[{name}] is no table")
    return model


def _nested(model: type[BaseModel], key: str) -> type[BaseModel]:
    annotation = model.model_fields[key].annotation
    kinds = getattr(annotation, "__args__", (annotation,))
    (found,) = [each for each in kinds if isinstance(each, type) and issubclass(each, BaseModel)]
    return found


def _first_policy() -> dict[str, Any]:
    """What `fedsys agent run` writes, where it differs from leaving the key out."""
    fresh, plain = Policy.fresh("TASK", ApprovedTask(sha256="")), Policy()
    return {
        field.name: getattr(fresh, field.name)
        for field in fields(Policy)
        if field.name != "tasks" and getattr(fresh, field.name) != getattr(plain, field.name)
    }


_INTRODUCTION = """\
A job is one TOML file with the tables below. Every key may be left out, and an unknown one is
refused. `--set section.key=value` replaces one key on the command line. The recipes in
`simulations/recipes/` are complete examples, and a run's folder holds its configuration with every
derived value filled in.

Keys that change the privacy guarantee are in `[population]`, `[cohort]`, `[rounds]`, `[privacy]`
and `[aggregation]`. `[engine]` changes speed alone, `[faults]` only what a simulation does to its
virtual clients. An empty default means that the value is derived, or that there is none."""

_COORDINATOR = """\
`fedsys coordinator init` writes this file into the coordinator's folder. Nothing in it is part of a
job, so it may change between two starts."""

_DEVICE = """\
The owner of a device decides here what a coordinator may ask of it. The first run of an agent
writes the file; it is read again before every job and every round, so a change counts at
once, also in a job that was agreed to before."""


def main() -> None:
    """Write every page."""
    for name, page in PAGES.items():
        (HERE / name).write_text(page(), encoding="utf-8")
        print(f"docs/{name}")


if __name__ == "__main__":
    main()
