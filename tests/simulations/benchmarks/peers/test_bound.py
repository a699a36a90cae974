"""The bound: which products are counted, and what the dual form takes off."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fedsys import config
from simulations.benchmarks.peers import bound
from simulations.benchmarks.peers.deal import deal
from simulations.benchmarks.peers.work import Work


def work_of(folder: Path, *settings: str) -> Work:
    job = config.load("w5", ["population.clients=300", "cohort.expected=100", *settings])
    return deal(job, folder, folder, rounds=2, everyone=False)


def test_the_products_of_a_perceptron_are_its_layers(tmp_path: Path) -> None:
    work = work_of(tmp_path)
    found = bound.products_of(work, work.checked[0])
    # Forward twice, backward three times: the first layer's inputs need no gradient.
    assert sum(times * product.flops for product, times in found) == 50 * 2 * (
        2 * 784 * 64 + 3 * 64 * 10
    )


@pytest.mark.parametrize("settings", [("local.momentum=0.5",), ("local.optimizer=adam",)])
def test_nothing_is_taken_off_where_there_is_no_dual_form(
    tmp_path: Path, settings: tuple[str, ...]
) -> None:
    assert bound.saved_by_dual_form(work_of(tmp_path, *settings), 50) == 0


def test_examples_that_clients_share_are_multiplied_once(tmp_path: Path) -> None:
    shared = bound.saved_by_dual_form(work_of(tmp_path, "task.options.examples=100"), 50)
    own = bound.saved_by_dual_form(work_of(tmp_path, "task.options.examples=20000"), 50)
    assert own == 0
    repeated = 1 - 100 / 5000
    gram = 0.8 * 50**2 * (784 + 64)
    assert shared == pytest.approx(4 * 50 * 784 * 64 * repeated - gram)


def test_the_bound_counts_what_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bound, "_TURNS", 1)
    monkeypatch.setattr(bound, "_TURN", 0.001)
    found = bound.measure(work_of(tmp_path, "task.options.examples=100"))
    assert 0 < found["flops"] < found["plain_flops"] == 50 * 2 * (2 * 784 * 64 + 3 * 64 * 10)
    assert 0 < found["seconds"] <= found["called_seconds"]


def test_a_convolution_is_timed_in_two_sizes_and_layouts() -> None:
    x = torch.randn(4, 3, 8, 8)
    layer = torch.nn.Conv2d(3, 6, 3, bias=False)
    with bound._Recorder() as recorder:
        layer(x)
    (product,) = recorder.found.values()
    assert product.flops == 2 * 4 * 6 * 6 * 6 * 3 * 9
    larger, calls = zip(*product.kernels(), strict=True)
    assert larger == (1, 1, bound._LARGER, bound._LARGER)
    shapes = [call().shape for call in calls]
    assert shapes == [(4 * times, 6, 6, 6) for times in larger]
    last = [call().is_contiguous(memory_format=torch.channels_last) for call in calls]
    assert last == [False, True, False, True]


@pytest.mark.parametrize(("settings", "shared"), [((), True), (("local.optimizer=adam",), False)])
def test_only_plain_sgd_shares_products(
    tmp_path: Path, settings: tuple[str, ...], shared: bool
) -> None:
    assert bound.in_dual_form(work_of(tmp_path, *settings)) is shared
