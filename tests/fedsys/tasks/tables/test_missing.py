"""Missing values: the same for every kind of column, and never by guess."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fedsys.errors import ConfigError, DataError
from fedsys.tasks import load
from fedsys.tasks.tables.cells import MARKS
from tests.fedsys.tasks.tables.conftest import Read, people

DECLARED: dict[str, Any] = {
    "classes": ["no", "yes"],
    "ranges": {"age": [0, 100]},
    "values": {"city": ["Bonn", "Oslo"]},
}


@pytest.mark.parametrize("mark", sorted(MARKS))
@pytest.mark.parametrize("column", ["city", "y"])
def test_what_looks_missing_is_asked_about(read: Read, mark: str, column: str) -> None:
    text = people(extra=f"31,{mark},no\n" if column == "city" else f"31,Bonn,{mark}\n")
    with pytest.raises(DataError) as refused:
        read(text)
    assert f"column '{column}', row 41: '{mark}' looks like a missing value" in str(refused.value)
    assert f"say missing = ['{mark}']" in str(refused.value)
    dropped = dict(read(text, missing=[mark], when_missing="drop")[1].dropped)
    assert dropped == {column: 1}
    _, kept = read(text, missing={column: []})
    found = kept.columns[1].counts if column == "city" else kept.classes
    assert found[mark] == 1, "Namibia is a country"


@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.parametrize("column", [0, 1])
def test_the_three_treatments(read: Read, declared: bool, column: int) -> None:
    options = DECLARED if declared else {}
    text = people(extra=",Bonn,no\n" if column == 0 else "31,,no\n")
    name = ("age", "city")[column]
    with pytest.raises(DataError, match=f"column '{name}', row 41: the cell is empty; say when_"):
        read(text, **options)
    data, reading = read(text, when_missing="drop", **options)
    assert len(data.train) + len(data.test) == 40
    assert dict(reading.dropped) == {name: 1}
    data, reading = read(text, when_missing="category", **options)
    assert len(data.train) + len(data.test) == 41
    assert reading.columns[column].missing == 1
    x = torch.cat([data.train.x, data.test.x])
    flag = 1 if column == 0 else -1
    rows = x[x[:, flag] == 1]
    assert len(rows) == 1
    if column == 0:
        assert float(rows[0, 0]) == 0.0, "the middle"
    else:
        assert rows[0, -3:-1].tolist() == [0.0, 0.0]


def test_columns_have_treatments_of_their_own(read: Read) -> None:
    text = people(extra=",Bonn,no\n31,,no\n31,Bonn,\n")
    _, reading = read(text, when_missing={"age": "category", "city": "drop", "y": "drop"})
    assert dict(reading.dropped) == {"y": 1, "city": 1}
    _, reading = read(text, when_missing={"*": "category", "y": "drop"})
    assert dict(reading.dropped) == {"y": 1}
    _, reading = read(text, when_missing={"*": "category", "y": "category"})
    assert reading.classes["(missing)"] == 1
    with pytest.raises(DataError, match=r"column 'y', row 43: .* '\*' = 'category', y = 'drop'"):
        read(text, when_missing="category")


def test_a_client_is_never_unknown(read: Read) -> None:
    text = people(extra="31,,no\n")
    with pytest.raises(DataError, match="column 'city', row 41: the cell is empty"):
        read(text, client="city")
    with pytest.raises(DataError, match="neither a client nor such a label can be unknown"):
        read(text, client="city", when_missing={"city": "category"})
    assert read(text, client="city", when_missing="drop")[1].clients == 2


def test_marks_of_numbers(read: Read) -> None:
    columns = {"x": [1.5, -999.0, float("nan"), None, 2.5] * 8, "y": [0, 1, 0, 1, 1] * 8}
    with pytest.raises(DataError, match=r"column 'x', row 2: '-999\.0' is missing"):
        read(columns, missing=[-999])
    _, reading = read(columns, missing={"x": ["-999"]}, when_missing="drop")
    assert dict(reading.dropped) == {"x": 24}


def test_rows_that_are_left_out_shape_nothing(read: Read) -> None:
    with_it, _ = read(people(extra="1000000,,no\n"), when_missing="drop")
    without, _ = read(people())
    whole = [torch.cat([each.train.x, each.test.x]) for each in (with_it, without)]
    assert torch.equal(*(each.sort(dim=0).values for each in whole))


def test_nothing_left(read: Read) -> None:
    text = "a,b,y\n" + "".join(
        f"{'' if k % 2 else k},{k if k % 2 else ''},{k % 2}\n" for k in range(20)
    )
    with pytest.raises(DataError, match="no row is left"):
        read(text, when_missing="drop")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"missing": "?"}, "task.options.missing = '.': must be a list"),
        ({"missing": [None]}, "must be a list"),
        ({"missing": {"x": "?"}}, r"task\.options\.missing\.x = '\?'"),
        ({"when_missing": "dorp"}, r"when_missing = 'dorp': allowed are .*did you mean drop"),
        ({"when_missing": {"x": 1}}, r"when_missing\.x = 1"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load("tabular", {"path": "t.csv", "label": "y", **options})
