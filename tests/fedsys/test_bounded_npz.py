"""Array files from elsewhere: whatever they hold, one kind of error, and bounded memory."""

from __future__ import annotations

import io
import random
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsys.bounded_npz import open_arrays
from fedsys.errors import DataError, RunFolderError
from fedsys.tasks.files import read_npz
from server.checkpoint import Checkpoint, Checkpoints, sha256_of_weights

SHAPES = {"x": (None, 4), "y": (None,)}


def saved(save: Callable[..., None] = np.savez, **arrays: Any) -> bytes:
    file = io.BytesIO()
    save(file, **arrays)
    return file.getvalue()


def read(content: bytes, name: str = "x", most: int = 1 << 20, *, compressed: bool = True) -> Any:
    with open_arrays(io.BytesIO(content), most=most, compressed=compressed) as arrays:
        return arrays.read(name)


def mutated(content: bytes, dice: random.Random) -> bytes:
    """Cut off, overwritten, spliced, or with a number of its structures turned large."""
    data = bytearray(content)
    kind = dice.randrange(4)
    at = dice.randrange(len(data))
    if kind == 0:
        del data[at:]
    elif kind == 1:
        for _ in range(dice.randint(1, 8)):
            data[dice.randrange(len(data))] = dice.randrange(256)
    elif kind == 2:
        other = dice.randrange(len(data))
        data[at : at + 40] = data[other : other + dice.randrange(80)]
    else:
        width = dice.choice((2, 4, 8))
        data[at : at + width] = dice.choice((b"\xff" * width, bytes(width)))
    return bytes(data)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(12, dtype=np.float32).reshape(3, 4),
        np.asfortranarray(np.arange(12).reshape(3, 4)),
        np.arange(5, dtype=">f8"),
        np.zeros((0, 3), dtype=np.uint8),
        np.array(7.5),
        np.array([True, False]),
    ],
)
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_what_numpy_wrote_reads_back(array: Any, save: Callable[..., None]) -> None:
    found = read(saved(save, x=array))
    assert (found.dtype, found.shape) == (array.dtype, array.shape)
    np.testing.assert_array_equal(found, array)


class Unpickled:
    """What must never be made from a file."""

    def __reduce__(self) -> Any:
        return (pytest.fail, ("a pickle was loaded",))


@pytest.mark.parametrize(
    "array",
    [
        np.array([Unpickled()]),
        np.array(["text"]),
        np.zeros(2, dtype=[("a", "f4")]),
        np.ones(1, "c8"),
    ],
)
def test_nothing_but_numbers_is_read(array: Any) -> None:
    with pytest.raises(ValueError, match="neither numbers nor booleans"):
        read(saved(x=array))


def rewritten(content: bytes, change: Callable[[bytes], bytes]) -> bytes:
    """The same archive around another header of its array."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(file, "w") as new:
        for entry in old.infolist():
            new.writestr(entry.filename, change(old.read(entry)))
    return file.getvalue()


@pytest.mark.parametrize(
    "shape", ["(9999999999999,)", "(-1,)", "(True,)", "([],)", "(2**60,)", "3", "((((((((1,)))))))"]
)
def test_a_header_that_claims_another_size_is_refused_before_anything_is_allocated(
    shape: str,
) -> None:
    text = saved(x=np.zeros(4, dtype=np.uint8))

    def claims(data: bytes) -> bytes:
        header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".encode()
        header = header.ljust(117) + b"\n"
        return data[:8] + len(header).to_bytes(2, "little") + header + data[-4:]

    with pytest.raises(ValueError, match="array 'x'"):
        read(rewritten(text, claims))


def test_a_small_file_does_not_become_a_large_one(tmp_path: Path) -> None:
    path = tmp_path / "bomb.npz"
    path.write_bytes(saved(np.savez_compressed, x=np.zeros((50 << 20, 4), dtype=np.uint8), y=1))
    assert path.stat().st_size < 1 << 20
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="over 32 times as many; store it uncompressed"):
            read_npz(path, SHAPES)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
    with pytest.raises(ValueError, match="at most 100 are read"):
        read(saved(x=np.zeros(1000)), most=100)
    with pytest.raises(ValueError, match="compressed in an unsupported way"):
        read(saved(np.savez_compressed, x=np.zeros(9)), compressed=False)


def test_a_directory_of_many_entries_is_not_read() -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for number in range(6000):
            archive.writestr(f"{number}.npy", b"")
    content = file.getvalue()
    end = content[-22:]
    locator = b"PK\x06\x07" + bytes(16)  # of a record that is not there, so `zipfile` ignores it
    for whole in (content, content[:-22] + bytes(56) + locator + end):
        with pytest.raises(ValueError, match="a directory of"):
            read(whole)


def test_two_arrays_of_one_name_are_refused() -> None:
    file = io.BytesIO(saved(x=np.zeros(1)))
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("x", b"")
    with pytest.raises(ValueError, match="two arrays 'x'"):
        read(file.getvalue())


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_damaged_file_of_data_is_one_clear_line(
    save: Callable[..., None], tmp_path: Path
) -> None:
    content = saved(
        save, x=np.arange(40, dtype=np.uint8).reshape(10, 4), y=np.arange(10, dtype=np.uint8)
    )
    path, dice, refused = tmp_path / "data.npz", random.Random(1), list[str]()
    for _ in range(1500):
        path.write_bytes(mutated(content, dice))
        try:
            found = read_npz(path, SHAPES)
        except DataError as error:
            refused.append(str(error))
        else:
            assert found["x"].dtype == np.uint8
    assert len(refused) > 1000
    assert all(text.isprintable() for text in refused)


def test_a_damaged_checkpoint_is_the_package_s_own_error(tmp_path: Path) -> None:
    weights = np.arange(5, dtype=np.float32)
    state = {"velocity": np.arange(5) / 3}
    Checkpoints(tmp_path).save(
        Checkpoint(round=1, weights=weights, strategy=state, mechanism=b"noise")
    )
    path = tmp_path / "a.npz"
    content, dice, refused = path.read_bytes(), random.Random(2), 0
    checkpoints = Checkpoints(tmp_path)
    for _ in range(1500):
        path.write_bytes(mutated(content, dice))
        try:
            found = checkpoints.newest({1: sha256_of_weights(weights)})
        except RunFolderError:
            refused += 1
        else:
            assert found is not None
    assert refused > 1000
