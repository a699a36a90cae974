"""A table's columns come back in its own units; other tasks have a label and their inputs."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from client.answering.columns import columns_of
from fedsys.errors import DataError
from fedsys.tasks import DataSource, Examples, load

OPTIONS = {
    "path": "people.csv",
    "label": "income",
    "classes": ["low", "high"],
    "ranges": {"age": [0, 100], "height": [140, 210]},
    "values": {"sex": ["f", "m"]},
    "missing": ["?"],
    "when_missing": {"height": "category"},
    "test_fraction": 0.2,
}


def test_columns_of_a_table_are_in_the_units_of_its_file(tmp_path: Path) -> None:
    lines = ["age,height,sex,income"]
    for at in range(100):
        height = "?" if at % 10 == 0 else 150 + at % 40
        lines.append(f"{at % 90},{height},{'fm'[at % 2]},{('low', 'high')[at % 3 == 0]}")
    (tmp_path / "people.csv").write_text("\n".join(lines) + "\n")
    task = load("tabular", OPTIONS)
    train = task.clients(DataSource(folders=(("--data", tmp_path),))).train
    names = ("age", "height", "sex", "income", "label")
    found = columns_of(task, train, np.arange(len(train)), names)
    ages = found["age"].values
    assert (ages == np.rint(ages)).all(), "40 is 40, and does not fall below an edge at 40"
    heights = found["height"].values
    there = heights[~np.isnan(heights)]
    assert np.isnan(heights).any()
    assert there.min() >= 150
    assert there.max() < 190
    assert found["sex"].texts == ("f", "m")
    assert (found["sex"].values == ages % 2).mean() > 0.85  # those above 90 began again at 0
    assert found["income"].texts == ("low", "high")
    assert (found["label"].values == found["income"].values).all()
    with pytest.raises(DataError, match=r"column 'wage': task tabular has .*age"):
        columns_of(task, train, np.arange(3), ("wage",))


def test_other_tasks_have_a_label_inputs_and_what_they_add() -> None:
    class Own:
        name = "own"

        def query_columns(self, examples: Examples) -> dict[str, object]:
            return {"total": examples.x.sum(1).numpy()}

    some = Examples(x=torch.arange(6.0).reshape(3, 2), y=torch.tensor([1, 0, 1]))
    found = columns_of(Own(), some, np.array([2, 0]), ("label", "x1", "total"))  # type: ignore[arg-type]
    assert found["label"].values.tolist() == [1, 1]
    assert found["x1"].values.tolist() == [5, 1]
    assert found["total"].values.tolist() == [9, 1]
    for name in ("x2", "x", "x-1", "y"):
        with pytest.raises(DataError, match=r"label, total|total, label"):
            columns_of(Own(), some, np.array([0]), (name,))  # type: ignore[arg-type]
    assert not math.isnan(found["total"].values[0])
