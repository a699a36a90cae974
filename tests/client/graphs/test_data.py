from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.graphs.data import read_examples
from fedsys.errors import ConfigError, DataError
from tests.fedsys.graphs.samples import softmax_regression

GRAPH = softmax_regression(features=2)
X = np.array([[0.5, 1], [2, 3], [4, 5]])
Y = np.array([0, 2, 1])


def _is_read(source: str) -> None:
    x, y = read_examples(source, GRAPH)
    assert (x.dtype.name, y.dtype.name) == ("float32", "int64")
    assert np.array_equal(x, X)
    assert np.array_equal(y, Y)


def test_an_archive(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=X, y=Y)
    _is_read(str(tmp_path / "a.npz"))
    np.savez_compressed(tmp_path / "b.npz", x=X.astype(np.float32), y=Y.astype(np.uint8))
    _is_read(str(tmp_path / "b.npz"))


def test_a_table(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,y,b\n0.5,0,1\n2,2,3\n4,1,5\n")
    _is_read(str(tmp_path / "a.csv"))


def test_a_parquet_file(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow", reason="needs `pip install pyarrow`")
    from pyarrow import parquet

    table = pa.table({"a": X[:, 0], "b": X[:, 1], "y": Y})
    parquet.write_table(table, tmp_path / "a.parquet")
    _is_read(str(tmp_path / "a.parquet"))


def test_a_module_of_the_owners(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine_of_graphs.py").write_text(
        "import numpy as np\n"
        "def load():\n"
        f"    return np.array({X.tolist()}), np.array({Y.tolist()})\n"
    )
    monkeypatch.chdir(tmp_path)
    _is_read("mine_of_graphs:load")
    with pytest.raises(DataError, match="AttributeError"):
        read_examples("mine_of_graphs:nothing", GRAPH)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a,y,b\n1,0\n", "line 2 has 2 columns, the header 3"),
        ("a,y,b\n1,0,1\n1,0,s3cret\n", "line 3, column 'b': not a number"),
        ("a,c,b\n1,0,1\n", "exactly one column must be called y"),
        ("a,y,b\n", "there are no examples"),
        ("a,y,b\n1,0.5,1\n", "row 0 of y .* int64 cannot hold"),
        ("a,y,b\n1,0,1\n1,1,nan\n", "row 1 of x .* not finite"),
        ("a,y\n1,0\n", r"a row of x has the shape \[1\], but the graph takes \[2\]"),
    ],
)
def test_a_bad_table_is_named_and_not_quoted(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(DataError, match=why) as caught:
        read_examples(str(tmp_path / "a.csv"), GRAPH)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("arrays", "why"),
    [
        ({"x": X}, "no array 'y'"),
        ({"x": X, "y": Y[:2]}, "3 rows of x but 2 of y"),
        ({"x": X, "y": Y.astype("U1")}, "neither numbers nor booleans"),
        ({"x": X * 1e60, "y": Y}, "row 0 of x .* float32 cannot hold"),
    ],
)
def test_a_bad_archive_is_named(tmp_path: Path, arrays: dict[str, Any], why: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=why):
        read_examples(str(tmp_path / "a.npz"), GRAPH)


def test_a_source_of_no_known_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"give FILE\.npz"):
        read_examples("mnist", GRAPH)
    with pytest.raises(DataError, match="No such file"):
        read_examples(str(tmp_path / "none.npz"), GRAPH)
