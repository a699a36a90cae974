"""Partitioners of flwr-datasets."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedsys.errors import ConfigError, DataError
from fedsys.installation import how_to_install
from tests.fedsys.tasks.hf.conftest import Save
from tests.fedsys.tasks.hf.test_table import DECLARED, read

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # of what it asks pyarrow for


@pytest.fixture(autouse=True)
def _installed() -> None:
    pytest.importorskip("flwr_datasets", reason=f"flwr-datasets: {how_to_install('hf')}")


@pytest.mark.parametrize(
    ("name", "options", "clients"),
    [
        ("IidPartitioner", {"num_partitions": 4}, 4),
        ("DirichletPartitioner",
         {"num_partitions": 3, "partition_by": "kind", "alpha": 0.3, "min_partition_size": 2}, 3),
        ("NaturalIdPartitioner", {"partition_by": "who"}, 5),
        ("ShardPartitioner",
         {"num_partitions": 6, "partition_by": "kind", "num_shards_per_partition": 2}, 6),
    ],
)  # fmt: skip
def test_a_partitioner_says_who_holds_what(
    save: Save, name: str, options: dict[str, Any], clients: int
) -> None:
    data = read(
        save(), **DECLARED, partitioner=name, partitioner_options=options, test_split="test"
    )
    assert data.natural is not None
    assert len(data.client_names) == clients
    ages = np.round(data.train.x[:, 0].numpy() * 50 + 50).astype(int)
    assert sorted(ages.tolist()) == list(range(60))
    if name == "NaturalIdPartitioner":
        assert data.client_names == ("000", "001", "002", "003", "004")
        assert (ages % 5).tolist() == data.natural.tolist()


def test_a_client_s_rows_are_left_out_with_it(save: Save) -> None:
    """Rows that lack a value shift no other row to another client."""
    data = read(
        save(age=[None if row % 5 in (0, 1) else float(row) for row in range(60)]),
        **DECLARED,
        when_missing="drop",
        partitioner="NaturalIdPartitioner",
        partitioner_options={"partition_by": "who"},
        test_split="test",
    )
    assert data.natural is not None
    assert data.client_names == ("002", "003", "004")
    ages = np.round(data.train.x[:, 0].numpy() * 50 + 50).astype(int)
    assert (ages % 5 - 2).tolist() == data.natural.tolist()


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("Iid", {}, r"partitioner = 'Iid': flwr_datasets.partitioner has .*IidPartitioner"),
        ("IidPartitioner", {"parts": 3}, r"cannot divide 60 rows \(TypeError: .*'parts'"),
        ("NaturalIdPartitioner", {"partition_by": "sort"}, "cannot divide 60 rows"),
    ],
)
def test_a_partitioner_that_fails_is_one_line(
    save: Save, name: str, options: dict[str, Any], said: str
) -> None:
    with pytest.raises((ConfigError, DataError), match=said) as refusal:
        read(save(), **DECLARED, partitioner=name, partitioner_options=options)
    assert "\n" not in str(refusal.value)
