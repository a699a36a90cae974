"""What each task says its preprocessing looks at, and that it is so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from fedsys.errors import ConfigError, DataError
from fedsys.preprocessing import builtin, covers, why_withheld
from fedsys.tasks import DataSource, FederatedData, builtin_names, load, preprocessing_of

TABLE = """age,city,clinic,sick
30,Bonn,a,yes
40,Rome,a,no
50,Bonn,b,yes
60,Oslo,b,no
70,Rome,b,yes
35,Oslo,c,no
"""
DECLARED: dict[str, Any] = {
    "label": "sick",
    "classes": ["no", "yes"],
    "ranges": {"age": [0, 100]},
    "values": {"city": ["Bonn", "Oslo"]},
    "other": ["city"],
}


def declared(folder: Path, text: str = TABLE, **options: Any) -> FederatedData:
    (folder / "t.csv").write_text(text)
    task = load("tabular", {"path": str(folder / "t.csv"), **DECLARED, **options})
    return task.clients(DataSource())


def rows(data: FederatedData) -> set[tuple[bool, tuple[float, ...], int]]:
    """(whether it is for testing, features, label) of each row."""
    return {
        (testing, tuple(x.tolist()), int(y))
        for testing, part in ((False, data.train), (True, data.test))
        for x, y in zip(part.x, part.y, strict=True)
    }


def many(rows: int) -> str:
    rng = np.random.default_rng(3)
    ages, cities = rng.integers(0, 100, rows), rng.choice(["Bonn", "Oslo", "Rome"], rows)
    lines = [f"{a},{c},{k // 4},{'yes' if a > 50 else 'no'}\n"
             for k, (a, c) in enumerate(zip(ages, cities, strict=True))]  # fmt: skip
    return "age,city,clinic,sick\n" + "".join(lines)


def test_every_built_in_task_declares_itself() -> None:
    options: dict[str, dict[str, Any]] = {
        "tabular": {"path": "t.csv", "label": "y"},
        "images": {"path": "pets", "classes": ["cat", "dog"]},
        "leaf": {"path": "femnist"},
        "hf": {"path": "pets", "label": "kind", "partitioner": "IidPartitioner"},
    }
    for name in builtin_names():
        task = load(name, options.get(name, {}))
        assert preprocessing_of(task) == builtin(name, options.get(name, {}))
    assert preprocessing_of(load("digits")) == "fixed"
    assert preprocessing_of(load("shakespeare")) == "client-local"
    assert preprocessing_of(load("tabular", options["tabular"])) == "data-dependent"
    assert builtin("mine:Task", {}) is None


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "row-local"),
        ({"client": "clinic"}, "client-local"),
        ({"client": "clinic", "test_path": "t.csv"}, "row-local"),
    ],
)
def test_declared_columns_look_at_no_other_row(options: dict[str, Any], expected: str) -> None:
    options = {"path": "t.csv", **DECLARED, **options}
    task = load("tabular", options)
    assert preprocessing_of(task) == expected
    assert task.init_model(0).weight.shape == (2, 3), "the width is known without the data"


def test_a_declared_row_is_encoded_by_itself(tmp_path: Path) -> None:
    found = rows(declared(tmp_path, test_fraction=0.5))
    encoded = {(round(50 * x[0] + 50), x[1:], label) for _, x, label in found}
    assert encoded == {
        (30, (1.0, 0.0), 1),
        (40, (0.0, 0.0), 0),
        (50, (1.0, 0.0), 1),
        (60, (0.0, 1.0), 0),
        (70, (0.0, 0.0), 1),
        (35, (0.0, 1.0), 0),
    }
    beyond = declared(tmp_path, TABLE.replace("70", "700"), test_fraction=0.5)
    assert max(x[0] for _, x, _ in rows(beyond)) == 1.0, "values outside are clipped to the range"


@pytest.mark.parametrize("client", ["", "clinic"])
def test_removing_a_client_leaves_all_other_rows_as_they_were(tmp_path: Path, client: str) -> None:
    """Values, classes, ends and the order of a split: an outlier decides about itself alone."""
    text = many(400) + "99,Rome,7777,yes\n98,Oslo,7777,no\n"
    with_it = rows(declared(tmp_path, text, client=client))
    without = rows(declared(tmp_path, text.replace("99,Rome,7777,yes\n98,Oslo,7777,no\n", ""),
                            client=client))  # fmt: skip
    assert without <= with_it
    assert len(with_it - without) <= 2
    held_out = sum(testing for testing, _, _ in with_it) / len(with_it)
    assert 0.1 < held_out < 0.3


def test_the_undeclared_table_is_moved_by_one_row(tmp_path: Path) -> None:
    """Why `data-dependent` voids a claim: one client's row changes everybody else's."""
    (tmp_path / "t.csv").write_text(TABLE)
    options = {"path": str(tmp_path / "t.csv"), "label": "sick", "ignore": ["clinic"]}
    before = rows(load("tabular", options).clients(DataSource()))
    (tmp_path / "t.csv").write_text(TABLE + "90000,Bonn,d,yes\n")
    after = rows(load("tabular", options).clients(DataSource()))
    assert not {x for _, x, _ in before} & {x for _, x, _ in after}


def test_what_a_text_looks_like_in_other_rows_does_not_matter(tmp_path: Path) -> None:
    text = "age,city,sick\n1,01,0\n2,02,1\n3,01,1\n4,02,0\n"
    options = {"classes": ["0", "1"], "values": {"city": ["01", "02"]}, "test_fraction": 0.5}
    plain = rows(declared(tmp_path, text, **options))
    assert {x[1:] for _, x, _ in plain} == {(1.0, 0.0), (0.0, 1.0)}
    assert plain <= rows(declared(tmp_path, text + "5,other,1\n", **options))


def test_a_client_that_would_have_nothing_to_train_on_trains(tmp_path: Path) -> None:
    data = declared(tmp_path, many(200), client="clinic", test_fraction=0.9)
    assert data.natural is not None
    assert sorted(set(data.natural.tolist())) == list(range(50))


def test_test_rows_may_be_in_a_file_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "test.csv").write_text("age,city,sick\n10,Bonn,no\n")
    data = declared(tmp_path, client="clinic", test_path=str(tmp_path / "test.csv"))
    assert len(data.train) == 6
    assert data.test.x.tolist() == [[pytest.approx(-0.8), 1.0, 0.0]]
    assert data.client_names == ("a", "b", "c")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ranges": {"age": [100, 0]}}, r"ranges\.age = \[100, 0\]: must be \[lowest, highest\]"),
        ({"ranges": {"age": [0, "x"]}}, "must be"),
        ({"ranges": [0, 1]}, "must be a table"),
        ({"values": {"city": ["Bonn", "Bonn"]}}, "different values"),
        ({"classes": ["no"]}, "must be a list of 2 to 1000"),
        ({"scaling": "none"}, "leave scaling out"),
        ({"ignore": ["clinic"]}, "leave ignore out"),
        ({"values": {"age": ["1", "2"]}}, "column 'age' is declared twice"),
        ({"values": {"sick": ["1", "2"]}}, "column 'sick' is declared twice"),
        ({"ranges": {}, "values": {}}, "no column to learn from"),
        ({"test_path": "t.csv", "test_fraction": 0.5}, "leave one of the two out"),
    ],
)
def test_a_declaration_that_cannot_be_is_explained(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load("tabular", {"path": "t.csv", **DECLARED, **options})


def test_half_a_declaration_is_refused() -> None:
    for key in ("classes", "ranges", "values"):
        with pytest.raises(ConfigError, match="declared columns need classes"):
            load("tabular", {"path": "t.csv", "label": "sick", key: DECLARED[key]})
    with pytest.raises(ConfigError, match="needs declared columns"):
        load("tabular", {"path": "t.csv", "label": "sick", "test_path": "u.csv"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (TABLE.replace("yes", "maybe"), r"column 'sick', row 1: 'maybe' is not one of .*classes"),
        (TABLE.replace("50", ""), "column 'age', row 3: the cell is empty"),
        (TABLE.replace("age", "years"), "has no column 'age'"),
        ("age,city,clinic,sick\n", "no rows"),
    ],
)
def test_a_row_that_was_not_declared_is_explained(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        declared(tmp_path, text)


def test_the_digits_split_is_a_constant_and_still_the_stratified_one() -> None:
    digits = load_digits()
    train, test = train_test_split(
        np.arange(1797), test_size=360, random_state=0, stratify=digits.target
    )
    data = load("digits").clients(DataSource())
    for part, chosen in ((data.train, train), (data.test, test)):
        pixels = torch.from_numpy((digits.data[np.sort(chosen)] / 16).astype(np.float32))
        assert torch.equal(part.x, pixels)
        assert part.y.tolist() == digits.target[np.sort(chosen)].tolist()


@pytest.mark.parametrize(
    ("kind", "client", "example"),
    [
        ("fixed", True, True),
        ("row-local", True, True),
        ("client-local", True, False),
        ("data-dependent", False, False),
        ("undeclared", None, None),
        (None, None, None),
        (["fixed"], None, None),
    ],
)
def test_what_claims_cover(kind: object, client: bool | None, example: bool | None) -> None:
    assert covers(kind, "client") is client
    assert covers(kind, "example") is example
    assert (why_withheld(kind, "client") is None) == (client is not False)
    assert (why_withheld(kind, "example") is None) == (example is not False)


def test_a_declaration_that_nobody_knows_is_refused() -> None:
    task = load("digits")
    task.preprocessing = "harmless"  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="preprocessing = 'harmless'; allowed are fixed"):
        preprocessing_of(task)
