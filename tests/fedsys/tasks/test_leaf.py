"""LEAF's JSON: users with their rows, good and damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fedsys.errors import ConfigError, DataError
from fedsys.tasks import DataSource, FederatedData, check_contract, load, preprocessing_of, split

OPTIONS = {"features": 3, "classes": 4}


def users(**data: Any) -> dict[str, Any]:
    return {"users": list(data), "num_samples": [len(each["x"]) for each in data.values()],
            "user_data": data}  # fmt: skip


def rows(count: int, first: int = 0) -> dict[str, Any]:
    return {
        "x": [[first + k, 0.5, 1] for k in range(count)],
        "y": [(first + k) % 4 for k in range(count)],
    }


def read(folder: Path, body: object, private: bool = False, **options: Any) -> FederatedData:
    (folder / "a.json").write_text(json.dumps(body))
    task = load("leaf", {"path": str(folder / "a.json"), **OPTIONS, **options})
    data = task.clients(DataSource(private=private))
    check_contract(task, data, 0)
    return data


def test_users_are_clients(tmp_path: Path) -> None:
    body = users(f0007=rows(5), f7=rows(10, 100), empty=rows(0))
    data = read(tmp_path, body)
    assert data.client_names == ("f0007", "f7")
    assert len(data.test) == 3
    partition = split(data, "by-column", None, 0)
    assert [len(partition.indices_of(k)) for k in range(2)] == [4, 8]
    assert data.train.x[4].tolist() == [100.0, 0.5, 1.0]


def test_a_folder_of_files_and_one_for_testing(tmp_path: Path) -> None:
    for part in ("train", "test"):
        (tmp_path / part).mkdir()
    for name, body in {
        "train/1": users(a=rows(3)),
        "train/2": users(b=rows(4)),
        "test/1": users(a=rows(2), c=rows(1)),
    }.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(body))
    options = {"path": "train", "test_path": "test", **OPTIONS, "model": "mlp"}
    task = load("leaf", options)
    data = task.clients(DataSource(folders=(("--data", tmp_path),)))
    assert (len(data.train), len(data.test)) == (7, 3)
    assert preprocessing_of(task) == "row-local"
    assert preprocessing_of(load("leaf", {"path": "train"})) == "client-local"
    assert task.init_model(0)(data.test.x).shape == (3, 4)
    (tmp_path / "train/3.json").write_text(json.dumps(users(a=rows(1))))
    with pytest.raises(DataError, match="a user is in two files"):
        task.clients(DataSource(folders=(("--data", tmp_path),)))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ([], "has no table user_data"),
        ({"user_data": 3}, "has no table user_data"),
        (users(a=rows(0)), "holds no user with a row"),
        ({"user_data": {"SECRET": {"x": [[1, 2, 3]]}}}, "user 'SECRET' has no lists x and y"),
        ({"user_data": {"SECRET": 3}}, "user 'SECRET' has no lists"),
        (users(SECRET={"x": ["to be", "or not"], "y": [0, 1]}), "x holds texts"),
        (users(SECRET={"x": [[1, 2]], "y": [0]}), r"x holds rows of shape \(2,\)"),
        (users(SECRET={"x": [[1, 2, 3], [1]], "y": [0, 1]}), "rows of x differ in length"),
        (
            users(SECRET={"x": [[1, 2, float("nan")]], "y": [0]}),
            "row 1: x holds a number that is not",
        ),
        (users(SECRET={"x": [[1, 2, 3]], "y": [0.5]}), "y has to hold one whole number"),
        (users(SECRET={"x": [[1, 2, 3]], "y": [0, 1]}), "y has to hold one whole number"),
        (users(SECRET={"x": [[1, 2, 3]], "y": [4]}), "row 1: class 4 is not in 0 to 3"),
        (users(SECRET={"x": [[1, 2, 3]], "y": [-1]}), "class -1 is not in 0 to 3"),
    ],
)
def test_damaged_files_are_explained(tmp_path: Path, body: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(tmp_path, body)
    with pytest.raises(DataError) as refused:
        read(tmp_path, body, private=True)
    assert "SECRET" not in str(refused.value)


def test_what_is_no_json_or_not_there(tmp_path: Path) -> None:
    (tmp_path / "b.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read as JSON"):
        load("leaf", {"path": str(tmp_path / "b.json")}).clients(DataSource())
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match=r"holds no \.json file"):
        load("leaf", {"path": str(tmp_path / "none")}).clients(DataSource())
    with pytest.raises(DataError, match="nowhere not found"):
        load("leaf", {"path": "nowhere"}).clients(DataSource())
    with pytest.raises(ConfigError, match=r"task\.options\.path is missing"):
        load("leaf")
    assert torch.equal(
        load("leaf", {"path": "x"}).init_model(0).weight,  # type: ignore[arg-type]
        torch.zeros(62, 784),
    )
