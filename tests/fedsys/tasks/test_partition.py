"""Partitions: each example with exactly one client, skew where it was asked for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedsys.errors import ConfigError, DataError, FedsysError
from fedsys.tasks import Examples, FederatedData, Partition, split


def made(labels: list[int], natural: list[int] | None = None) -> FederatedData:
    examples = Examples(x=torch.zeros(len(labels), 2), y=torch.tensor(labels))
    return FederatedData(
        train=examples,
        test=examples,
        natural=None if natural is None else torch.tensor(natural),
    )


def dealt(partition: Partition) -> list[int]:
    rows = [partition.indices_of(client) for client in range(partition.clients)]
    return sorted(np.concatenate(rows).tolist())


def classes_of(data: FederatedData, partition: Partition) -> list[NDArray[np.int64]]:
    labels = data.train.y.numpy()
    return [
        np.bincount(labels[partition.indices_of(client)], minlength=10)
        for client in range(partition.clients)
    ]


@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=200),
    how=st.sampled_from(["one-each", "iid", "dirichlet", "shards"]),
    clients=st.integers(1, 50),
    alpha=st.sampled_from([1e-6, 0.1, 1.0, 1e6]),
    seed=st.integers(0, 2**63 - 1),
)
def test_each_example_has_exactly_one_client(
    labels: list[int], how: str, clients: int, alpha: float, seed: int
) -> None:
    data = made(labels)
    least = 2 * clients if how == "shards" else clients
    if how == "one-each":
        clients = len(labels)
    elif least > len(labels):
        with pytest.raises(DataError, match=f"population.clients = {clients}"):
            split(data, how, clients, seed, alpha=alpha)
        return
    partition = split(data, how, clients, seed, alpha=alpha)
    assert partition.clients == clients
    assert dealt(partition) == list(range(len(labels)))
    assert all(len(partition.indices_of(client)) for client in range(clients))
    again = split(data, how, clients, seed, alpha=alpha)
    assert all((partition.indices_of(k) == again.indices_of(k)).all() for k in range(clients))


def test_sizes_are_nearly_equal() -> None:
    partition = split(made([0, 1] * 500), "iid", 30, 0)
    sizes = {len(partition.indices_of(client)) for client in range(30)}
    assert sizes == {33, 34}


def test_a_small_alpha_gives_one_class_a_client_and_a_large_one_the_overall_mix() -> None:
    data = made([k % 10 for k in range(10_000)])
    narrow = classes_of(data, split(data, "dirichlet", 100, 1, alpha=1e-4))
    shares = [counts.max() / counts.sum() for counts in narrow]
    assert np.median(shares) == 1.0
    wide = classes_of(data, split(data, "dirichlet", 100, 1, alpha=1e6))
    assert max(counts.max() for counts in wide) <= 30, "10 of 100 expected of each class"
    even = classes_of(data, split(data, "dirichlet", 100, 1, alpha=1.0))
    assert 0.2 < float(np.median([counts.max() / counts.sum() for counts in even])) < 0.7


def test_shards_bound_the_classes_of_a_client() -> None:
    data = made([k % 10 for k in range(6000)])
    counted = classes_of(data, split(data, "shards", 100, 1, shards=2))
    assert max(int((counts > 0).sum()) for counts in counted) <= 2
    assert {int(counts.sum()) for counts in counted} == {60}


def test_by_column_is_what_the_data_says() -> None:
    data = made([0] * 6, natural=[2, 0, 1, 0, 2, 2])
    partition = split(data, "by-column", None, 0)
    assert [partition.indices_of(client).tolist() for client in range(3)] == [
        [1, 3],
        [2],
        [0, 4, 5],
    ]
    two = split(data, "by-column", 2, 0)
    kept = {tuple(two.indices_of(client).tolist()) for client in range(2)}
    assert two.clients == 2
    assert kept < {(1, 3), (2,), (0, 4, 5)}
    with pytest.raises(DataError, match="the data has 3 natural clients"):
        split(data, "by-column", 4, 0)
    with pytest.raises(ConfigError, match="needs data that names its clients"):
        split(made([0, 1]), "by-column", None, 0)


def test_one_each_may_take_a_part_of_the_population() -> None:
    partition = split(made([0] * 50), "one-each", 20, 3)
    rows = dealt(partition)
    assert len(rows) == len(set(rows)) == 20
    with pytest.raises(DataError, match="only 50 training examples"):
        split(made([0] * 50), "one-each", 51, 3)
    with pytest.raises(DataError, match=r"population\.shards = 6: .* enough for 5 per client"):
        split(made([0] * 50), "shards", 10, 3, shards=6)


def test_a_resampled_population_is_a_function_not_a_list() -> None:
    partition = split(made([0] * 50), "resampled", 10**9, 3, examples=7)
    rows = partition.indices_of(987_654_321)
    assert rows.shape == (7,)
    assert ((rows >= 0) & (rows < 50)).all()
    assert (rows == partition.indices_of(987_654_321)).all()
    assert (rows != partition.indices_of(987_654_320)).any()


def test_wrong_requests_are_one_clear_line() -> None:
    data = made([0, 1, 2])
    with pytest.raises(ConfigError, match=r"'dirichlett': allowed are .*mean dirichlet\?"):
        split(data, "dirichlett", 2, 0)
    with pytest.raises(ConfigError, match=r"'iid' needs population\.clients"):
        split(data, "iid", None, 0)
    with pytest.raises(ConfigError, match=r"population\.alpha = -1"):
        split(data, "dirichlet", 2, 0, alpha=-1)
    with pytest.raises(DataError, match="client 2 does not exist; there are 2"):
        split(data, "iid", 2, 0).indices_of(2)
    text = Examples(x=torch.zeros(4, 2), y=torch.zeros(4, 3, dtype=torch.int64))
    with pytest.raises(DataError, match="needs one class per example"):
        split(FederatedData(train=text, test=text), "shards", 2, 0)


def own(data: FederatedData, clients: int | None, seed: int) -> list[list[int]]:
    return [[0, 2], [], [1]]


def twice(data: FederatedData, clients: int | None, seed: int) -> list[list[int]]:
    return [[0], [0]]


def beyond(data: FederatedData, clients: int | None, seed: int) -> list[list[int]]:
    return [[10_000_000]]


def test_a_partition_of_ones_own_is_checked() -> None:
    ten = Examples(x=torch.zeros(10, 1), y=torch.zeros(10, dtype=torch.int64))
    data = FederatedData(train=ten, test=ten)
    found = split(data, f"{__name__}:own", None, 0)
    assert [found.indices_of(client).tolist() for client in range(3)] == [[0, 2], [], [1]]
    for name, clients, message in (
        ("own", 2, "returned 3 clients"),
        ("twice", None, "an example to two clients"),
        ("beyond", None, "returned rows 10000000"),
        ("nothing", None, "cannot be loaded"),
    ):
        with pytest.raises(FedsysError, match=message):
            split(data, f"{__name__}:{name}", clients, 0)
