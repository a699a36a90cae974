"""The integers obey the norm bound whatever the floats are, and stay close to the update."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from fedsys.errors import MechanismError
from fedsys.privacy.encoding.clipping import clip_to_integers, squared_norm_limit, wide_scale
from fedsys.privacy.encoding.rings import from_ring, ring_dtype, to_ring


def _within(values: NDArray[np.int32]) -> bool:
    squares = (values.astype(object) ** 2).sum(axis=1)  # exact, whatever the size
    return all(square <= squared_norm_limit(values.shape[1]) for square in squares)


@settings(max_examples=200, deadline=None)
@given(
    updates=hnp.arrays(
        dtype=st.sampled_from([np.float32, np.float64]),
        shape=hnp.array_shapes(min_dims=2, max_dims=2, max_side=40),
        elements=st.floats(width=32),
    ),
    clip=st.floats(min_value=1e-6, max_value=1e6),
)
def test_the_bound_holds_for_anything(updates: NDArray[np.float64], clip: float) -> None:
    result = clip_to_integers(updates, clip=clip)
    assert _within(result.values)
    np.testing.assert_array_equal(result.unusable, ~np.isfinite(updates).all(axis=1))
    assert not result.values[result.unusable].any()


@pytest.mark.parametrize("d", [1, 2, 3, 17, 650, 50_000])
@pytest.mark.parametrize("length", [0.999999, 1.0, 1.0000001, 3.0, 1e12])
def test_the_bound_holds_where_rounding_would_break_it(d: int, length: float) -> None:
    rng = np.random.default_rng(d)
    rows = rng.standard_normal((8, d))
    rows[0] = 1.0
    rows[1] = np.arange(d) % 2 + 0.5
    rows *= length / np.linalg.norm(rows, axis=1, keepdims=True)
    result = clip_to_integers(rows, clip=1.0)
    assert _within(result.values)
    # and no more is lost than rounding explains: 0.45% of norm C, a margin of 0.2% per pass
    back = result.values / wide_scale(d, 1.0)
    clipped = rows / max(length, 1.0)
    error = np.linalg.norm(back - clipped, axis=1)
    assert (error <= 0.5 / 64 + 0.005).all()


def test_rounding_error_is_what_the_design_states() -> None:
    rng = np.random.default_rng(0)
    for norm, stated in ((1.0, 0.0045), (0.1, 0.045)):
        rows = rng.standard_normal((4, 20_000))
        rows *= 0.99 * norm / np.linalg.norm(rows, axis=1, keepdims=True)
        back = clip_to_integers(rows, clip=1.0).values / wide_scale(20_000, 1.0)
        relative = np.linalg.norm(back - rows, axis=1) / norm
        assert relative.max() == pytest.approx(stated, rel=0.03)


def test_direction_is_kept_and_clipping_reported() -> None:
    rows = np.random.default_rng(1).standard_normal((2, 1000))
    rows[0] *= 5 / np.linalg.norm(rows[0])
    rows[1] *= 0.5 / np.linalg.norm(rows[1])
    result = clip_to_integers(rows, clip=1.0)
    assert result.clipped.tolist() == [True, False]
    np.testing.assert_allclose(result.norms, [5.0, 0.5], rtol=1e-6)
    cosine = result.values[0] @ rows[0] / np.linalg.norm(result.values[0]) / 5.0
    assert cosine > 0.9999


def test_single_and_double_precision_agree() -> None:
    rows = np.random.default_rng(2).standard_normal((16, 999)).astype(np.float32)
    np.testing.assert_array_equal(
        clip_to_integers(rows, clip=0.7).values,
        clip_to_integers(rows.astype(np.float64), clip=0.7).values,
    )


def test_rows_do_not_depend_on_their_neighbours() -> None:
    rows = np.random.default_rng(3).standard_normal((70, 1234))
    together = clip_to_integers(rows, clip=1.0).values
    for k in (0, 33, 69):
        np.testing.assert_array_equal(
            clip_to_integers(rows[k : k + 1], clip=1.0).values[0], together[k]
        )


HARD: dict[str, Callable[[int], Any]] = {
    "inside": lambda d: np.full(d, 0.5 / math.sqrt(d)),
    "far outside": lambda d: np.full(d, 50.0),
    "on the sphere": lambda d: np.full(d, 1.0 / math.sqrt(d)),
    "rounded up": lambda d: np.where(np.arange(d) % 2, 0.5001, 0.4999) / 64 / math.sqrt(d) * 3,
    "zeros": lambda d: np.zeros(d),
    "one large": lambda d: np.eye(1, d)[0] * 3,
    "not finite": lambda d: np.where(np.arange(d) == 3, np.nan, 1.0),
    "infinite": lambda d: np.where(np.arange(d) == 3, -np.inf, 1.0),
    "square overflows": lambda d: np.full(d, 1e200),
    "tiny": lambda d: np.full(d, 1e-300),
}


@pytest.mark.parametrize("clip", [1.0, 1e3])
def test_long_rows_are_clipped_alike_alone_and_among_others(clip: float) -> None:
    """Longer than a block, where many rows are clipped one by one and stop early."""
    noise = np.random.default_rng(4).standard_normal(70_001)
    rows = np.stack([*(row(70_001) for row in HARD.values()), noise, noise * 1e-4, noise / 265])
    together = clip_to_integers(rows, clip=clip)
    for k, row in enumerate(rows):
        alone = clip_to_integers(row[None], clip=clip)
        np.testing.assert_array_equal(alone.values[0], together.values[k])
        for name in ("clipped", "unusable", "norms"):
            assert getattr(alone, name)[0] == getattr(together, name)[k]


def passes(row: NDArray[np.float64], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The operations over all coordinates that clipping one row takes, in order."""
    found: list[str] = []

    def counted(name: str) -> Any:
        operation = getattr(np, name)

        def count(*arguments: Any, **named: Any) -> Any:
            if np.ndim(arguments[0]) and np.size(arguments[0]) > 1:
                found.append(f"{name} {np.size(arguments[0])}")
            return operation(*arguments, **named)

        return count

    with monkeypatch.context() as patch:
        for name in ("rint", "trunc", "multiply", "abs", "where", "bitwise_and"):
            patch.setattr(np, name, counted(name))
        clip_to_integers(row[None, :], clip=1.0)
    return found


def test_one_row_takes_the_same_passes_whatever_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """How long a device takes does not tell whether its update was clipped, or how often."""
    for d in (5_000, 70_000):
        taken = {name: passes(make(d), monkeypatch) for name, make in HARD.items()}
        assert len(set(map(tuple, taken.values()))) == 1, taken
        assert "rint" in {each.split()[0] for each in taken["zeros"]}


@settings(max_examples=200, deadline=None)
@given(
    row=hnp.arrays(
        dtype=np.float64, shape=st.integers(1, 60), elements=st.floats(width=32, allow_nan=True)
    ),
    clip=st.floats(min_value=1e-6, max_value=1e6),
)
def test_one_row_gives_what_it_gives_among_others(row: NDArray[np.float64], clip: float) -> None:
    hard = [make(len(row)) for make in HARD.values()]
    with np.errstate(over="ignore"):
        narrow = [each.astype(np.float32) for each in hard]
    for each in (row, *hard, *narrow):
        alone = clip_to_integers(each[None, :], clip=clip)
        among = clip_to_integers(np.stack([each, each]), clip=clip)
        np.testing.assert_array_equal(alone.values[0], among.values[0])
        assert (alone.clipped[0], alone.unusable[0]) == (among.clipped[0], among.unusable[0])
        assert alone.norms[0] == among.norms[0]


@pytest.mark.parametrize("d", [2, 3, 650, 1 << 15, 50_000])
def test_one_row_is_shrunk_as_often_as_it_needs(d: int) -> None:
    rng = np.random.default_rng(d)
    for length in (1.0, 1.0000001, 3.0, 1e12):
        for _ in range(8):
            row = rng.standard_normal(d)
            row *= length / np.linalg.norm(row)
            alone = clip_to_integers(row[None, :], clip=1.0).values[0]
            among = clip_to_integers(np.stack([row, row]), clip=1.0).values[1]
            np.testing.assert_array_equal(alone, among)


def test_huge_and_tiny_updates_are_no_accident() -> None:
    result = clip_to_integers(np.array([[1e200, -1e200], [1e-300, 0.0], [5e-324, 0.0]]), clip=1.0)
    assert not result.unusable.any()
    assert _within(result.values)
    assert result.values[0, 0] == -result.values[0, 1] > 60
    assert not result.values[1:].any()


@pytest.mark.parametrize(
    "bad", [np.zeros(3), np.zeros((2, 3), dtype=np.int64), np.zeros((2, 0)), np.zeros((1, 2, 3))]
)
def test_wrong_arrays_are_refused(bad: NDArray[np.float64]) -> None:
    with pytest.raises(MechanismError):
        clip_to_integers(bad, clip=1.0)


@pytest.mark.parametrize("clip", [0.0, -1.0, math.nan, math.inf])
def test_a_norm_that_is_none_is_refused(clip: float) -> None:
    with pytest.raises(MechanismError, match="clip"):
        clip_to_integers(np.zeros((2, 3)), clip=clip)


@given(
    bits=st.integers(2, 64),
    values=st.lists(st.integers(-(2**62), 2**62), min_size=1, max_size=20),
)
def test_rings_go_there_and_back(bits: int, values: list[int]) -> None:
    half = 1 << (bits - 1)
    inside = np.array([(v + half) % (1 << bits) - half for v in values], dtype=np.int64)
    ring = to_ring(inside, bits=bits)
    assert ring.dtype == ring_dtype(bits)
    np.testing.assert_array_equal(from_ring(ring, bits=bits), inside)
    assert [int(x) for x in ring] == [v % (1 << bits) for v in values]


def test_elements_outside_the_ring_are_refused() -> None:
    with pytest.raises(MechanismError, match="outside"):
        from_ring(np.array([4096], dtype=np.uint16), bits=12)
    with pytest.raises(MechanismError, match="integers"):
        from_ring(np.array([1.0]), bits=12)
    with pytest.raises(MechanismError, match="modulus_bits"):
        ring_dtype(65)
    assert math.isclose(wide_scale(4, 2.0), 64.0)
