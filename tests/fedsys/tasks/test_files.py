"""Loaders on small files made here, good and damaged; and on the real ones where they are."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
import torch
from PIL import Image
from pyarrow import parquet

from fedsys.errors import DataError
from fedsys.tasks import DataSource, FederatedData, load, split
from fedsys.tasks.shakespeare import PADDING, CharacterModel, encode

REAL = os.environ.get("FEDSYS_DATA", "")
needs_real_data = pytest.mark.skipif(
    not REAL, reason="FEDSYS_DATA does not name a folder with the real data files"
)


def source(folder: Path) -> DataSource:
    return DataSource(folders=(("--data", folder),))


def mnist_file(folder: Path, **changed: Any) -> Path:
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {
        "x_train": rng.integers(0, 256, (20, 28, 28), dtype=np.uint8),
        "y_train": np.arange(20, dtype=np.uint8) % 10,
        "x_test": rng.integers(0, 256, (5, 28, 28), dtype=np.uint8),
        "y_test": np.arange(5, dtype=np.uint8),
    }
    arrays.update(changed)
    np.savez(folder / "mnist.npz", **{k: v for k, v in arrays.items() if v is not None})
    return folder / "mnist.npz"


def test_mnist_stays_bytes_and_both_models_take_it(tmp_path: Path) -> None:
    mnist_file(tmp_path)
    for model, parameters in (("mlp", 50_890), ("cnn", 109_490)):
        task = load("mnist", {"model": model})
        data = task.clients(source(tmp_path))
        assert data.train.x.shape == (20, 1, 28, 28)
        assert data.train.x.dtype == torch.uint8
        built = task.init_model(0)
        assert sum(p.numel() for p in built.parameters()) == parameters
        outputs = built(data.train.x)
        assert task.loss(outputs, data.train.y).shape == (20,)
        assert task.metrics(outputs, data.train.y)["accuracy"].shape == (20,)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"y_test": None}, "has no array 'y_test'"),
        ({"x_train": np.zeros((20, 28, 27), np.uint8)}, r"'x_train' is uint8 \(20, 28, 27\)"),
        ({"x_train": np.zeros((20, 28, 28), np.float32)}, "'x_train' is float32"),
        ({"y_train": np.full(20, 11, np.uint8)}, "row 0: label 11 is not in 0 to 9"),
        ({"y_train": np.zeros(19, np.uint8)}, "20 inputs but 19 targets"),
        ({"y_train": np.array([object()] * 20)}, "not a readable .npz file"),
    ],
)
def test_a_damaged_mnist_is_explained(
    tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    mnist_file(tmp_path, **changed)
    with pytest.raises(DataError, match=message):
        load("mnist").clients(source(tmp_path))


def test_what_is_not_an_archive_is_explained(tmp_path: Path) -> None:
    (tmp_path / "mnist.npz").write_bytes(b"no archive")
    with pytest.raises(DataError, match=r"not a readable \.npz file"):
        load("mnist").clients(source(tmp_path))
    (tmp_path / "shakespeare.parquet").write_bytes(b"no parquet")
    with pytest.raises(DataError, match="cannot be read as parquet"):
        load("shakespeare").clients(source(tmp_path))


def picture(size: tuple[int, int] = (32, 32), shade: int = 200) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, (shade, 0, 0)).save(stream, format="PNG")
    return stream.getvalue()


def cifar_files(folder: Path, images: list[Any], labels: list[int]) -> None:
    table = pyarrow.table(
        {
            "image": pyarrow.array(images, pyarrow.binary()),
            "label": pyarrow.array(labels, pyarrow.int8()),
        }
    )
    for part in ("train", "test"):
        parquet.write_table(table, folder / f"cifar10-{part}.parquet")


def test_cifar_images_are_decoded_channels_first(tmp_path: Path) -> None:
    cifar_files(tmp_path, [picture(), picture(shade=7)], [3, 9])
    task = load("cifar10")
    data = task.clients(source(tmp_path))
    assert data.train.x.shape == (2, 3, 32, 32)
    assert data.train.x[:, 0, 0, 0].tolist() == [200, 7]
    assert data.train.x[:, 1:].sum() == 0
    assert task.init_model(0)(data.train.x).shape == (2, 10)
    assert load("cifar10", {"model": "small"}).init_model(0)(data.train.x).shape == (2, 10)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (b"GIF89a", "row 1, column 'image': cannot identify"),
        (picture((16, 32)), r"row 1, column 'image': \(16, 32\) pixels"),
        (None, "row 1, column 'image': not an encoded image"),
        (picture()[:60], "row 1, column 'image'"),
    ],
)
def test_a_damaged_image_is_named(tmp_path: Path, image: bytes | None, message: str) -> None:
    cifar_files(tmp_path, [picture(), image], [0, 1])
    with pytest.raises(DataError, match=message):
        load("cifar10").clients(source(tmp_path))


def speeches(folder: Path, roles: list[Any], texts: list[Any]) -> None:
    parquet.write_table(
        pyarrow.table({"client_id": roles, "text": texts}), folder / "shakespeare.parquet"
    )


def test_a_roles_speeches_become_sequences_with_the_next_character(tmp_path: Path) -> None:
    speeches(tmp_path, ["B", "A", "B", "C"], ["abcdef", "hello you", "ghi", "x"])
    task = load("shakespeare", {"sequence": 4, "test_fraction": 0.4, "hidden": 8})
    data = task.clients(source(tmp_path))
    assert data.client_names == ("A", "B"), "a single character leaves nothing to foresee"
    assert data.natural is not None
    # A: "hello you" -> hell|o you -> 1 train, 1 test; B: "abcdef\nghi" -> 3 pieces, 1 train
    assert data.natural.tolist() == [0, 1]
    assert data.train.x[1].tolist() == encode("abcd").tolist()
    assert data.train.y[1].tolist() == encode("bcde").tolist()
    assert data.test.y[-1].tolist() == [*encode("i").tolist(), PADDING, PADDING, PADDING]
    outputs = task.init_model(0)(data.test.x)
    loss = task.loss(outputs, data.test.y)
    last = torch.log_softmax(outputs[-1, :, 0], dim=0)[int(data.test.y[-1, 0])]
    assert torch.isclose(loss[-1], -last), "padding does not count"
    accuracy = task.metrics(outputs, data.test.y)["accuracy"]
    assert accuracy.shape == (len(data.test),)
    assert float(accuracy[-1]) in (0.0, 1.0)
    speeches(tmp_path, ["A", None], ["x", "y"])
    with pytest.raises(DataError, match="row 1: client_id and text must both be text"):
        load("shakespeare").clients(source(tmp_path))


@pytest.mark.parametrize(("cell", "reference"), [("gru", torch.nn.GRU), ("lstm", torch.nn.LSTM)])
def test_the_recurrence_is_torchs(cell: str, reference: Any) -> None:
    model = CharacterModel(cell, embedding=5, hidden=6, layers=2)
    twin = reference(5, 6, num_layers=2, batch_first=True)
    with torch.no_grad():
        for layer in range(2):
            for kind, maps in (("ih", model.inputs), ("hh", model.recurrent)):
                map_ = maps[layer]
                getattr(twin, f"weight_{kind}_l{layer}").copy_(map_.weight)
                getattr(twin, f"bias_{kind}_l{layer}").copy_(map_.bias)
        symbols = torch.arange(14).view(2, 7)
        expected = model.readout(twin(model.embedding(symbols))[0]).transpose(1, 2)
        torch.testing.assert_close(model(symbols), expected)


TABLE = """age,city,clinic,sick
30,Bonn,a,yes
40,Rome,a,no
50,Bonn,b,yes
60,Oslo,b,no
70,Rome,b,yes
35,Oslo,c,no
"""


def tabular(folder: Path, text: str = TABLE, **options: Any) -> FederatedData:
    (folder / "t.csv").write_text(text)
    task = load("tabular", {"path": str(folder / "t.csv"), "label": "sick", **options})
    data = task.clients(DataSource())
    model = task.init_model(0)
    assert task.loss(model(data.test.x), data.test.y).shape == (len(data.test),)
    return data


def test_a_table_becomes_numbers_and_one_hots(tmp_path: Path) -> None:
    data = tabular(tmp_path, ignore=["clinic"], test_fraction=0.5)
    x = torch.cat([data.train.x, data.test.x])
    assert x.shape == (6, 4)
    assert abs(float(x[:, 0].mean())) < 1e-6
    assert abs(float(x[:, 0].std(correction=0)) - 1) < 1e-6
    assert (x[:, 1:].sum(1) == 1).all()
    plain = tabular(tmp_path, ignore=["clinic"], scaling="none")
    assert float(torch.cat([plain.train.x, plain.test.x])[:, 0].max()) == 70.0
    assert data.natural is None


def test_a_client_column_is_the_natural_partition(tmp_path: Path) -> None:
    data = tabular(tmp_path, client="clinic", test_fraction=0.34, model="mlp")
    assert data.client_names == ("a", "b", "c")
    partition = split(data, "by-column", None, 0)
    assert [len(partition.indices_of(client)) for client in range(3)] == [1, 2, 1]
    assert len(data.test) == 2
    assert data.train.x.shape[1] == 4, "the client's id is no feature"


def test_parquet_tables_are_found_in_the_data_folder(tmp_path: Path) -> None:
    table = pyarrow.table({"a": [1.0, 2.0, 3.0, 4.0], "sick": [0, 1, 0, 1]})
    parquet.write_table(table, tmp_path / "t.parquet")
    data = load("tabular", {"path": "t.parquet", "label": "sick"}).clients(source(tmp_path))
    assert len(data.train) + len(data.test) == 4


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (TABLE.replace("50", "nan"), {}, "column 'age', row 3: 'nan' is not a number"),
        (TABLE.replace("50", ""), {}, "column 'age', row 3: the cell is empty; say when_missing"),
        (TABLE.replace("50", "inf"), {}, "column 'age', row 3: 'inf' is not a number"),
        (TABLE, {"label": "ill"}, "has no column 'ill'; it has age, city, clinic, sick"),
        (TABLE.replace("no", "yes"), {}, "column 'sick' holds one class only: 'yes'"),
        ("age,sick\n1,a\n", {}, "1 rows; at least 2 are needed"),
        ("sick\na\nb\n", {}, "there is no column to learn from"),
        ("a,sick\n1,2\n3\n", {}, "row 2 has 1 cells where the header has 2: '3'"),
        (
            "n,sick\n" + "".join(f"name{k},{k % 2}\n" for k in range(70)),
            {},
            "column 'n' has 70 different texts, more than 64",
        ),
    ],
)
def test_a_damaged_table_is_explained(
    tmp_path: Path, text: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        tabular(tmp_path, text, **options)


def test_a_missing_or_foreign_table_is_explained(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.csv not found"):
        load("tabular", {"path": "nowhere.csv", "label": "y"}).clients(source(tmp_path))
    (tmp_path / "t.xls").write_text("")
    with pytest.raises(DataError, match=r"must end in \.csv, \.tsv, \.parquet"):
        load("tabular", {"path": "t.xls", "label": "y"}).clients(source(tmp_path))


@needs_real_data
@pytest.mark.parametrize(
    ("name", "train", "test"), [("mnist", 60_000, 10_000), ("shakespeare", 11_564, 1_426)]
)
def test_the_real_files_are_read_in_full(name: str, train: int, test: int) -> None:
    data = load(name).clients(DataSource.locate())
    assert (len(data.train), len(data.test)) == (train, test)


@pytest.mark.slow
@needs_real_data
def test_the_real_cifar_is_read_in_full() -> None:
    data = load("cifar10").clients(DataSource.locate())
    assert data.train.x.shape == (50_000, 3, 32, 32)
    assert torch.bincount(data.train.y).tolist() == [5000] * 10
