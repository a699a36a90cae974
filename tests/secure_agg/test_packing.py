"""Plain sums that wrap as encrypted ones do."""

from __future__ import annotations

import numpy as np
import pytest

from secure_agg.gaussian import Keystream
from secure_agg.packing import PackedSum, Unsigned, packed_sum, to_ring
from secure_agg.params import SecAggParams


def derive(bits: int, dimension: int = 1003) -> SecAggParams:
    return SecAggParams.derive(
        n=100, corrupt=0.1, dropout=0.1, modulus_bits=bits, dimension=dimension
    )


def vectors(params: SecAggParams, count: int) -> list[Unsigned]:
    raw = Keystream(b"vectors".ljust(32)).read(8 * count * params.dimension)
    values = np.frombuffer(raw, "<u8") & np.uint64((1 << params.modulus_bits) - 1)
    dtype = np.uint32 if params.modulus_bits <= 32 else np.uint64
    return list(values.astype(dtype).reshape(count, -1))


@pytest.mark.parametrize("bits", [2, 8, 16, 20, 24, 32, 39])
def test_packed_sums_are_sums_of_packed_integers(bits: int) -> None:
    """Every coefficient as one Python integer, whose digits are read back after the sum."""
    params = derive(bits)
    inputs = vectors(params, 30)
    used, half, base = params.coefficients_used, 1 << (bits - 1), 1 << bits
    found = to_ring_list(params, inputs)
    for i in range(used):
        places = list(range(i, params.dimension, used))
        total = 0
        for x in inputs:
            for j, place in enumerate(places):
                digit = (int(x[place]) + half) % base - half
                total += digit << (bits * j)
        for place in places:
            digit = (total + half) % base - half
            assert found[place] == digit % base
            total = (total - digit) >> bits


def to_ring_list(params: SecAggParams, inputs: list[Unsigned]) -> list[int]:
    result: list[int] = packed_sum(inputs, params).tolist()
    return result


@pytest.mark.parametrize("bits", [16, 20, 24, 32])
def test_sums_that_fit_are_plain_sums(bits: int) -> None:
    params = derive(bits)
    most = ((1 << (bits - 1)) - 1) // 30
    raw = [x.astype(np.int64) % (2 * most + 1) - most for x in vectors(params, 30)]
    inputs = [(x & ((1 << bits) - 1)).astype(np.uint32) for x in raw]
    total = PackedSum(params)
    for x in inputs:
        total.add(x)
    assert (total.total() == np.sum(raw, axis=0)).all()
    assert (total.total() == np.sum(raw, axis=0)).all()
    assert (packed_sum(inputs, params) == np.sum(inputs, axis=0) % (1 << bits)).all()


def test_a_wrapped_low_digit_carries_into_its_neighbour() -> None:
    params = derive(20, dimension=2)
    assert params.values_per_coefficient == 2
    most = np.array([(1 << 19) - 1, 5], np.uint32)
    assert packed_sum([most, most], params).tolist() == [(1 << 20) - 2, 11]
    assert packed_sum([most], params).tolist() == [(1 << 19) - 1, 5]


def test_partial_sums_add_up() -> None:
    params = derive(20)
    inputs = vectors(params, 10)
    parts = [PackedSum(params) for _ in range(2)]
    for i, x in enumerate(inputs):
        parts[i % 2].add(x)
    parts[0].sums += parts[1].sums
    assert (to_ring(parts[0].total(), params) == packed_sum(inputs, params)).all()


@pytest.mark.parametrize(("bits", "dtype"), [(16, "u4"), (20, "u4"), (32, "u4"), (39, "u8")])
def test_types_of_sums(bits: int, dtype: str) -> None:
    params = derive(bits)
    values = np.array([-1, 0, 1, -(1 << (bits - 1))], np.int64)
    ring = to_ring(values, params)
    assert ring.dtype == np.dtype(dtype)
    assert ring.tolist() == [(1 << bits) - 1, 0, 1, 1 << (bits - 1)]
