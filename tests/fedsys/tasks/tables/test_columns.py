"""Declared columns: what fits, what is refused by name, and the way to JSON and back."""

from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np
import pytest

from fedsys.errors import ConfigError, DataError
from fedsys.preprocessing import tabular
from fedsys.tasks import load
from fedsys.tasks.tables.columns import Columns
from fedsys.tasks.tables.options import declaration
from fedsys.tasks.tabular import Tabular
from tests.fedsys.tasks.tables.conftest import Read, people

DECLARED: dict[str, Any] = {
    "classes": ["no", "yes"],
    "ranges": {"age": [0, 100]},
    "values": {"city": ["Bonn", "Oslo"]},
}


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("31,Rome,no\n", r"'city', row 41: 'Rome' is not one of task\.options\.values\.city"),
        ("31,bonn,no\n", r"'bonn' is not one of .*did you mean 'Bonn'\? Say rename = "),
        ("31,Bonn,maybe\n", r"column 'y', row 41: 'maybe' is not one of task\.options\.classes"),
        ("31,Bonn,No.\n", r"'No\.' is not one of .*did you mean 'no'"),
        ("old,Bonn,no\n", "column 'age', row 41: 'old' is not a number"),
        ("1e999,Bonn,no\n", "column 'age', row 41: '1e999' is not a finite number"),
        ("31,NA,no\n", "column 'city', row 41: 'NA' looks like a missing value"),
    ],
)
def test_what_was_not_declared_is_refused_by_name(read: Read, extra: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(people(extra=extra), **DECLARED)


def test_another_unit_is_refused(read: Read) -> None:
    """Ages in months, or a table with other columns of the same names."""
    with pytest.raises(DataError, match=r"column 'age' has 40 of 40 values outside .*\[0, 10\]"):
        read(people(), **{**DECLARED, "ranges": {"age": [0, 10]}})
    _, reading = read(people(extra="700,Bonn,no\n"), **DECLARED)
    assert reading.columns[0].outside == 1
    assert "1 outside its range" in reading.columns[0].line()


def test_whole_numbers_written_with_a_fraction(read: Read) -> None:
    """What pandas makes of a column of integers in which one was missing."""
    text = people().replace("no", "0.0").replace("yes", "1.0")
    _, reading = read(text, **{**DECLARED, "classes": [0, 1]})
    assert list(reading.classes) == ["0", "1"]


def test_renamed_texts(read: Read) -> None:
    text = people().replace("Bonn", "BN")
    _, reading = read(text, **DECLARED, rename={"city": {"BN": "Bonn"}})
    assert dict(reading.columns[1].counts) == {"Bonn": 20, "Oslo": 20}


def test_a_number_and_a_date_are_declared(read: Read) -> None:
    text = "born,area,price\n" + "".join(
        f"19{50 + k % 40}-01-01,{k},{1000 * k}\n" for k in range(40)
    )
    data, reading = read(
        text,
        label="price",
        ranges={"born": ["1950-01-01", "1990-01-01"], "area": [0, 40], "price": [0, 40000]},
    )
    assert reading.target == "number"
    assert data.train.x.abs().max() <= 1
    assert data.train.y.abs().max() <= 1
    assert reading.columns[0].low == "1950-01-01"
    with pytest.raises(DataError, match="column 'born', row 41: 'soon' is not a date"):
        read(text + "soon,1,1\n", label="price", ranges={
            "born": ["1950-01-01", "1990-01-01"], "price": [0, 40000]})  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": ["a", "b"], "ranges": {"y": [0, 1]}}, "column 'y' is declared twice"),
        ({"ranges": {"y": [0, 1]}}, "declared columns need"),
        (
            {"ranges": {"y": ["2020-01-01", "2021-01-01"], "x": [0, 1]}},
            "a date cannot be the label",
        ),
        ({"classes": ["a", "b"], "ranges": {"x": [0, 1]}, "target": "number"}, "leave one of the"),
        ({"ranges": {"x": [0, 1], "y": [0, 1]}, "target": "class"}, "'class' needs classes"),
        ({"classes": ["a", "b"], "ranges": {"x": ["2020-13-01", "2021"]}}, "must be .lowest, high"),
        ({"classes": ["a", "b"], "ranges": {"x": [0, float("inf")]}}, "must be"),
        ({"classes": ["a", "b"], "ranges": {"x": [0, 1]}, "other": ["x"]}, "'x' is not in values"),
        ({"classes": ["a", "b"], "ranges": {"x": [0, 1]}, "kinds": {"x": "text"}}, "leave kinds"),
        ({"classes": ["a", "b"], "ranges": {"x": [0, 1]}, "client": "x"}, "and is a feature"),
        ({"classes": ["a", "b"], "ranges": {"x": [0, 1]}, "dates": {"z": "%Y"}}, "add the column"),
        ({"client": "y"}, "is label or ignored too"),
        ({"other": ["x"]}, "is for declared columns"),
        ({"kinds": {"x": "integer"}}, r"kinds\.x = 'integer': allowed are number, text, date"),
        ({"rename": {"x": ["a"]}}, r"rename\.x = \['a'\]: must be a table"),
        ({"label": ["y", "y"]}, "must be a column's name, or a list"),
        ({"label": []}, "must be a column's name"),
        ({"target": "klass"}, "target = 'klass': allowed are"),
    ],
)
def test_a_declaration_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load("tabular", {"path": "t.csv", "label": "y", **options})


@pytest.mark.parametrize(
    ("options", "declared"),
    [
        ({"label": "y", "classes": [], "ranges": {}}, "row-local"),
        ({"label": "y", "ranges": {"y": [0, 1], "x": [0, 1]}}, "row-local"),
        ({"label": "y", "ranges": {"y": [0, 1]}}, "data-dependent"),
        ({"label": "y", "ranges": {"x": [0, 1]}}, "data-dependent"),
        ({"label": "y", "classes": []}, "data-dependent"),
        ({"label": ["y", "z"], "values": {"x": []}, "client": "c"}, "client-local"),
        ({"label": ["y", "z"]}, "data-dependent"),
        ({"label": "y"}, "data-dependent"),
        ({"label": {}, "ranges": 3, "values": []}, "data-dependent"),
        ({}, "data-dependent"),
    ],
)
def test_what_a_configuration_says_of_its_preparation(
    options: dict[str, Any], declared: str
) -> None:
    """Read from configurations that may be anybody's: nothing raises."""
    assert tabular(options) == declared


TABLES: tuple[tuple[str, dict[str, Any]], ...] = (
    (people(extra="33,,no\n"), {"when_missing": "category"}),
    ("x,y\n" + "".join(f"{k},{k / 8}\n" for k in range(40)), {}),
    ("x;y\n" + "".join(f"{k},5;{'ab'[k % 2]}\n" for k in range(40)), {}),
    ("x,a,b\n" + "".join(f"{k},{k % 2},{k % 3 > 1:d}\n" for k in range(40)), {"label": ["a", "b"]}),
    (
        "t,y\n" + "".join(f"{1 + k % 9}.3.1990,{k % 2}\n" for k in range(40)),
        {"dates": {"t": "%d.%m.%Y"}},
    ),
)


@pytest.mark.parametrize(("text", "options"), TABLES)
def test_columns_survive_json(read: Read, text: str, options: dict[str, Any]) -> None:
    _, reading = read(text, **options)
    body = json.loads(json.dumps(reading.preparation))
    found = Columns.from_json(body, "data.json")
    assert json.loads(json.dumps(found.to_json())) == body
    assert found.width == reading.width


@pytest.mark.parametrize(("text", "options"), TABLES)
def test_what_was_inferred_can_be_declared(
    read: Read, tmp_path: Any, text: str, options: dict[str, Any]
) -> None:
    from fedsys.tasks.options import Options
    from fedsys.tasks.tables.cells import Place
    from fedsys.tasks.tables.options import KNOWN, TableOptions

    data, reading = read(text, **options)
    given = {"path": "t.csv", "label": "y", **options}
    table = TableOptions.of(Options("tabular", given, KNOWN), given)
    opened = table.open(Place(tmp_path / "t.csv"), None)
    declared = declaration(table.columns(opened), opened.format)
    again, read_again = read(text, **declared)
    assert tabular(declared) == "row-local"
    assert read_again.classes == reading.classes
    assert read_again.target == reading.target
    assert len(again.train) + len(again.test) == len(data.train) + len(data.test)
    assert again.train.x.abs().max() <= 1


def test_a_hostile_preparation_is_refused(read: Read) -> None:
    _, reading = read(people())
    body: dict[str, Any] = json.loads(json.dumps(reading.preparation))
    changes: tuple[tuple[tuple[Any, ...], Any], ...] = (
        (("version",), 2),
        (("features",), None),
        (("features", 0, "kind"), "code"),
        (("features", 0, "scale"), 0),
        (("features", 0, "scale"), "1"),
        (("features", 0, "name"), 3),
        (("features", 0, "extra"), 3),
        (("features", 1, "values"), [1, 2]),
        (("target", "classes"), "no"),
        (("target", "kind"), None),
        (("target", "kind"), "code"),
        (("target", "columns"), []),
        (("renamed",), []),
        (("when_missing",), "burn"),
    )
    for path, value in changes:
        damaged = copy.deepcopy(body)
        place: Any = damaged
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
        with pytest.raises(DataError, match=r"data\.json: not a preparation of a table"):
            Columns.from_json(damaged, "data.json")
    nothings: tuple[Any, ...] = (None, [], 3, "x", {})
    for nothing in nothings:
        with pytest.raises(DataError, match="not a preparation"):
            Columns.from_json(nothing, "data.json")


def test_a_number_is_told_in_its_own_unit(read: Read, tmp_path: Any) -> None:
    import torch

    text = "area,price\n" + "".join(f"{k},{1000 * k}\n" for k in range(40))
    read(text, label="price")
    task = load("tabular", {"path": str(tmp_path / "t.csv"), "label": "price"})
    assert isinstance(task, Tabular)
    target = task.columns.target
    outputs = torch.zeros(2, 1)
    found = task.metrics(outputs, torch.tensor([1.0, -2.0]))["mae"]
    assert found.tolist() == pytest.approx([target.scale, 2 * target.scale])
    assert target.scale == pytest.approx(1000 * np.arange(40).std())
    assert task.loss(outputs, torch.tensor([1.0, -2.0])).tolist() == [0.5, 2.0]
