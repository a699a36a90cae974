"""Batch order: a permutation an epoch, a pure function of the seed, the same in company."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from client.training.local import LocalConfig
from client.training.schedule import batches, build


@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=6),
    batch_size=st.integers(1, 15),
    epochs=st.integers(1, 3),
)
def test_every_epoch_visits_each_example_once_in_batches_of_the_right_size(
    sizes: list[int], batch_size: int, epochs: int
) -> None:
    local = LocalConfig(epochs=epochs, batch_size=batch_size)
    sizes = sorted(sizes, reverse=True)
    rows = [np.arange(size, dtype=np.int64) + 100 * k for k, size in enumerate(sizes)]
    seeds = list(range(len(sizes)))
    schedule = build(rows, seeds, local)
    assert schedule.lengths.tolist() == [local.steps(size) for size in sizes]
    for client, own in enumerate(rows):
        alone = batches(own, seeds[client], local)
        together = [
            step.rows[client, : step.counts[client]]
            for step in schedule.steps[: schedule.lengths[client]]
        ]
        assert len(alone) == len(together)
        assert all((a == b).all() for a, b in zip(alone, together, strict=True))
        a_pass = len(alone) // epochs
        for epoch in range(epochs):
            visited = alone[epoch * a_pass : (epoch + 1) * a_pass]
            assert sorted(np.concatenate([*visited, []]).tolist()) == own.tolist()
            assert all(len(each) == batch_size for each in visited[:-1])
    for step in schedule.steps:
        np.testing.assert_allclose(step.weights().sum(1), 1.0)
        for client in range(len(step.counts)):
            assert np.isin(step.rows[client], rows[client]).all(), "padding is the client's own"


def test_orders_differ_between_seeds_and_epochs() -> None:
    own = np.arange(20, dtype=np.int64)
    local = LocalConfig(epochs=2, batch_size=20)
    first, second = batches(own, 1, local)
    assert first.tolist() != second.tolist()
    assert batches(own, 2, local)[0].tolist() != first.tolist()
    assert batches(own, 1, local)[0].tolist() == first.tolist()
    assert batches(own, 1 - (1 << 64), local)[0].tolist() == first.tolist(), "64 bits count"


def test_orders_are_uniform() -> None:
    """Each of the 6 orders of 3 examples over 6000 seeds: chi-square with 5 degrees of freedom
    stays below 41.5 but for one seed choice in ten million."""
    own = np.arange(3, dtype=np.int64)
    local = LocalConfig(batch_size=3)
    schedule = build([own] * 6000, list(range(6000)), local)
    codes = schedule.steps[0].rows @ np.array([9, 3, 1])
    _, counts = np.unique(codes, return_counts=True)
    assert len(counts) == 6
    assert ((counts - 1000.0) ** 2 / 1000.0).sum() < 41.5
