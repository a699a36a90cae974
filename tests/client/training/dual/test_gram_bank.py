"""Gram matrices that are kept: the same bits as fresh ones, no matter who else trains."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.training import LocalConfig, Trainer
from client.training.dual.gram_bank import GramBank
from fedsys.tasks import DataSource, load, split

T, WIDE = 6, 40
POOL = torch.randn(90, WIDE, generator=torch.Generator().manual_seed(5))
ROWS = np.random.default_rng(3).permutation(90).reshape(15, T)


def taken(
    bank: GramBank, clients: list[int], *, pool: Tensor = POOL, seed: int = 0
) -> tuple[Tensor, NDArray[np.int64]]:
    rows = ROWS[clients]
    rng = np.random.default_rng(seed)
    visits = np.stack([rng.permutation(T) for _ in clients])
    out = torch.full((len(clients), T, T), torch.nan)
    bank.take(pool[torch.from_numpy(rows)], pool, rows, visits, out)
    return out, visits


def test_rows_and_columns_come_in_the_order_of_visits() -> None:
    found, visits = taken(GramBank(), [4, 0, 7])
    for matrix, client, order in zip(found, [4, 0, 7], visits, strict=True):
        x = POOL[torch.from_numpy(ROWS[client][order])].double()
        torch.testing.assert_close(matrix.double(), x @ x.T, rtol=1e-5, atol=1e-5)


def test_what_is_kept_has_the_bits_of_what_is_fresh() -> None:
    bank = GramBank()
    taken(bank, [1, 2, 3])
    again, _ = taken(bank, [3, 9, 1, 5], seed=8)
    fresh, _ = taken(GramBank(), [3, 9, 1, 5], seed=8)
    assert torch.equal(again, fresh)


@pytest.mark.parametrize("wide", [8, 10, 13, 30, 54, 100])
def test_where_in_a_chunk_a_client_was_first_seen_does_not_matter(wide: int) -> None:
    """If the width is no multiple of 16, clients' data begin at unequal offsets of a cache line."""
    pool = torch.randn(90, wide, generator=torch.Generator().manual_seed(5))
    together, visits = taken(GramBank(), list(range(15)), pool=pool)
    for client in range(15):
        alone, order = taken(GramBank(), [client], pool=pool)
        back, forth = np.argsort(order[0]), visits[client]
        assert torch.equal(alone[0][back][:, back][forth][:, forth], together[client]), client


def test_only_clients_that_are_new_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[int] = []
    product = torch.mm

    def counted(x: Tensor, y: Tensor, *, out: Tensor) -> Tensor:
        computed.append(1)
        return product(x, y, out=out)

    monkeypatch.setattr(torch, "mm", counted)
    bank = GramBank()
    taken(bank, [1, 2, 3])
    taken(bank, [2, 3, 4, 4])
    assert len(computed) == 4


def test_a_product_that_failed_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    bank = GramBank()

    def fails(x: Tensor, y: Tensor, *, out: Tensor) -> Tensor:
        out.fill_(7)
        raise torch.OutOfMemoryError

    with monkeypatch.context() as patched:
        patched.setattr(torch, "mm", fails)
        with pytest.raises(torch.OutOfMemoryError):
            taken(bank, [1, 2])
    assert torch.equal(taken(bank, [1, 2])[0], taken(GramBank(), [1, 2])[0])


def test_another_pool_with_the_same_rows_is_not_mistaken() -> None:
    bank, other = GramBank(), POOL + 1
    taken(bank, [1, 2])
    found, _ = taken(bank, [1, 2], pool=other)
    fresh, _ = taken(GramBank(), [1, 2], pool=other)
    assert torch.equal(found, fresh)


def test_without_room_it_begins_anew_and_a_chunk_always_fits() -> None:
    small = GramBank(limit=2000)
    for seed, clients in enumerate([[0, 1, 2], [3, 4], [0, 5], [6, 7, 8, 9, 10, 11], [0, 11]]):
        found, _ = taken(small, clients, seed=seed)
        fresh, _ = taken(GramBank(), clients, seed=seed)
        assert torch.equal(found, fresh)


def test_tiny_clients_are_not_kept_by_the_million() -> None:
    bank, pool = GramBank(limit=300_000), torch.ones(5000, 2)
    tracemalloc.start()
    try:
        for start in range(0, 5000, 50):
            rows = np.arange(start, start + 50)[:, None]
            data = pool[torch.from_numpy(rows)]
            bank.take(data, pool, rows, np.zeros_like(rows), torch.empty(50, 1, 1))
        assert tracemalloc.get_traced_memory()[0] < 300_000
    finally:
        tracemalloc.stop()


def test_a_trainer_that_met_its_clients_trains_them_to_the_same_bits() -> None:
    task = load("digits", {"hidden": 32})
    data = task.clients(DataSource())
    deal = split(data, "iid", clients=60, seed=1)

    def trainer() -> Trainer:
        return Trainer(task, LocalConfig(learning_rate=0.1, batch_size=8), path="dual", chunk=16)

    def updates(by: Trainer, clients: list[int], seed: int) -> NDArray[np.float32]:
        rows = [deal.indices_of(client) for client in clients]
        seeds = [seed + client for client in clients]
        return by.train(by.initial_weights(), data.train, rows, seeds)

    met = trainer()
    updates(met, [0, 1, 2, 3, 4], 7)
    updates(met, [20, 3, 21], 8)
    assert np.array_equal(updates(met, [3, 9, 0, 4], 9), updates(trainer(), [3, 9, 0, 4], 9))
