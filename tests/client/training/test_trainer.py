"""The public calls: order, clipping, errors, memory, the measured choice."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from client.training import LocalConfig, Trainer
from client.training.autotune import best, candidates, measure
from client.training.loop import LoopPath
from client.training.schedule import Schedule
from client.training.trainer import PATHS
from fedsys.errors import ConfigError, TrainingError
from fedsys.tasks import DataSource, Examples, FederatedData, Task, load, seeded, split
from fedsys.tasks.classification import Classification

LOCAL = LocalConfig(epochs=2, batch_size=4, learning_rate=0.3)


class Custom(Classification):
    """A task around any model."""

    name = "custom"

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def init_model(self, seed: int) -> nn.Module:
        return copy.deepcopy(self._model)

    def clients(self, source: DataSource) -> FederatedData:
        return load("digits").clients(source)


@pytest.fixture(scope="module")
def data() -> FederatedData:
    return load("digits").clients(DataSource())


def some_clients(sizes: Sequence[int]) -> list[NDArray[np.int64]]:
    rng = np.random.default_rng(1)
    return [rng.permutation(1437)[:size] for size in sizes]


@pytest.mark.parametrize("path", ["dual", "batched", "loop"])
def test_updates_come_back_in_the_callers_order_whatever_the_chunk(
    path: str, data: FederatedData
) -> None:
    task = load("digits", {"hidden": 8})
    rows, seeds = some_clients([1, 9, 0, 30, 5, 9, 12]), [5, 6, 7, 8, 9, 10, 11]
    whole = Trainer(task, LOCAL, path=path, chunk=100)
    weights = whole.initial_weights()
    expected = whole.train(weights, data.train, rows, seeds)
    for chunk in (1, 3):
        found = Trainer(task, LOCAL, path=path, chunk=chunk).train(weights, data.train, rows, seeds)
        np.testing.assert_allclose(found, expected, atol=2e-6)
    alone = whole.train(weights, data.train, rows[3:4], seeds[3:4])
    np.testing.assert_allclose(alone[0], expected[3], atol=2e-6)
    assert not expected[2].any()
    assert np.abs(expected[3]).max() > 0.01


def test_the_same_seeds_give_the_same_bits_and_other_seeds_do_not(data: FederatedData) -> None:
    trainer = Trainer(load("digits"), LOCAL, path="dual", chunk=8)
    weights, rows = trainer.initial_weights(), some_clients([20, 20])
    once = trainer.train(weights, data.train, rows, [1, 2])
    again = Trainer(load("digits"), LOCAL, path="dual", chunk=8).train(
        weights, data.train, rows, [1, 2]
    )
    other = trainer.train(weights, data.train, rows, [3, 2])
    assert (once == again).all()
    assert (once[0] != other[0]).any()
    assert (once[1] == other[1]).all()


@pytest.mark.parametrize("path", ["dual", "batched", "loop"])
def test_dropout_is_a_function_of_the_seeds(path: str, data: FederatedData) -> None:
    with seeded(0):
        model = nn.Sequential(nn.Linear(64, 32), nn.Dropout(0.5), nn.Linear(32, 10))
    rows = some_clients([12, 12])

    def run(seed: int) -> NDArray[np.float32]:
        trainer = Trainer(Custom(model), LOCAL, path=path, chunk=2)
        torch.manual_seed(np.random.default_rng().integers(1 << 40))
        return trainer.train(trainer.initial_weights(), data.train, rows, [seed, 7])

    assert (run(1) == run(1)).all()
    plain = copy.deepcopy(model)
    plain[1] = nn.Identity()
    trainer = Trainer(Custom(plain), LOCAL, path=path, chunk=2)
    without = trainer.train(trainer.initial_weights(), data.train, rows, [1, 7])
    assert np.abs(run(1) - without).max() > 1e-3


@pytest.mark.parametrize("path", ["dual", "batched", "loop"])
def test_the_clipped_sum_is_the_sum_of_clipped_updates(path: str, data: FederatedData) -> None:
    trainer = Trainer(load("digits"), LOCAL, path=path, chunk=2)
    weights, rows, seeds = trainer.initial_weights(), some_clients([20, 1, 7]), [1, 2, 3]
    updates = trainer.train(weights, data.train, rows, seeds).astype(np.float64)
    norms = np.linalg.norm(updates, axis=1)
    clip = float(np.median(norms))
    found = trainer.clipped_sum(weights, data.train, rows, seeds, clip=clip)
    scaled = updates * np.minimum(1, clip / norms)[:, None]
    np.testing.assert_allclose(found.norms, norms, rtol=1e-5)
    np.testing.assert_allclose(found.total, scaled.sum(0), atol=1e-6)


def test_a_diverged_client_has_a_row_that_is_not_finite_and_adds_nothing(
    data: FederatedData,
) -> None:
    x = data.train.x.clone()
    x[5] = torch.nan
    pool = Examples(x=x, y=data.train.y)
    rows = [np.array([1, 2, 3]), np.array([4, 5]), np.array([6])]
    for path in ("dual", "batched", "loop"):
        trainer = Trainer(load("digits"), LOCAL, path=path, chunk=3)
        weights = trainer.initial_weights()
        updates = trainer.train(weights, pool, rows, [1, 2, 3])
        assert np.isfinite(updates[[0, 2]]).all()
        assert not np.isfinite(updates[1]).all()
        summed = trainer.clipped_sum(weights, pool, rows, [1, 2, 3], clip=1e9)
        assert np.isnan(summed.norms[1])
        np.testing.assert_allclose(summed.total, updates[[0, 2]].sum(0), atol=1e-6)


def test_a_failing_client_is_named_with_the_cause(data: FederatedData) -> None:
    labels = data.train.y.clone()
    labels[7] = 99
    pool = Examples(x=data.train.x, y=labels)
    rows = [np.array([1, 2]), np.array([6, 7]), np.array([8])]
    for path in ("dual", "batched", "loop"):
        trainer = Trainer(load("digits"), LOCAL, path=path, chunk=4)
        with pytest.raises(TrainingError, match=r"client 'bob': training on its 2 examples failed"):
            trainer.train(
                trainer.initial_weights(), pool, rows, [1, 2, 3], names=["'ann'", "'bob'", "'cy'"]
            )


def test_rows_outside_the_pool_are_named(data: FederatedData) -> None:
    trainer = Trainer(load("digits"), LOCAL, path="dual", chunk=4)
    with pytest.raises(TrainingError, match=r"client 1: .*rows 3 to 1437 of 1437"):
        trainer.train(
            trainer.initial_weights(), data.train, [np.array([0]), np.array([3, 1437])], [1, 2]
        )


def test_out_of_memory_halves_the_chunk_and_says_so(
    data: FederatedData, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Small(LoopPath):
        def updates(
            self,
            start: Tensor,
            examples: Examples,
            schedule: Schedule,
            seeds: Sequence[int],
            out: Tensor,
        ) -> None:
            if schedule.clients > 2:
                raise torch.OutOfMemoryError("no room")
            super().updates(start, examples, schedule, seeds, out)

    task, rows, seeds = load("digits"), some_clients([9, 8, 7, 6, 5]), [1, 2, 3, 4, 5]
    plain = Trainer(task, LOCAL, path="loop", chunk=5)
    weights = plain.initial_weights()
    expected = plain.train(weights, data.train, rows, seeds)
    monkeypatch.setitem(PATHS, "loop", Small)
    with caplog.at_level(logging.WARNING):
        found = Trainer(task, LOCAL, path="loop", chunk=5).train(weights, data.train, rows, seeds)
    assert (found == expected).all()
    assert "out of memory with 5 clients at once" in caplog.text


def test_what_did_not_fit_once_is_not_tried_again(
    data: FederatedData, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tried: list[int] = []

    class Small(LoopPath):
        def updates(
            self,
            start: Tensor,
            examples: Examples,
            schedule: Schedule,
            seeds: Sequence[int],
            out: Tensor,
        ) -> None:
            tried.append(schedule.clients)
            if schedule.clients > 2:
                raise torch.OutOfMemoryError("no room")
            super().updates(start, examples, schedule, seeds, out)

    monkeypatch.setitem(PATHS, "loop", Small)
    task, rows = load("digits"), some_clients([9, 9, 9, 9])
    trainer = Trainer(task, LOCAL, path="loop", chunk=4)
    weights = trainer.initial_weights()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            trainer.train(weights, data.train, rows, [1, 2, 3, 4])
            trainer.clipped_sum(weights, data.train, rows, [1, 2, 3, 4], clip=1.0)
    assert tried == [4] + [2] * 8
    assert len(caplog.records) == 1


def test_a_client_too_large_for_the_memory_is_named(
    data: FederatedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(LoopPath):
        def updates(self, *_arguments: object) -> None:
            raise MemoryError

    monkeypatch.setitem(PATHS, "loop", Full)
    trainer = Trainer(load("digits"), LOCAL, path="loop", chunk=2)
    with pytest.raises(
        TrainingError, match=r"client a: out of memory .* 6 examples; use a smaller"
    ):
        trainer.train(
            trainer.initial_weights(),
            data.train,
            some_clients([6, 7]),
            [1, 2],
            names=["a", "b"],
        )


def test_a_path_that_cannot_train_the_model_is_refused_with_the_reason(
    data: FederatedData,
) -> None:
    with seeded(0):
        normed = nn.Sequential(nn.Linear(64, 8), nn.LayerNorm(8), nn.Linear(8, 10))
    trainer = Trainer(Custom(normed), LOCAL, path="dual")
    with pytest.raises(ConfigError, match="LayerNorm has parameters of its own"):
        trainer.train(trainer.initial_weights(), data.train, some_clients([3]), [1])


def test_frozen_and_shared_weights_train_on_another_path(data: FederatedData) -> None:
    with seeded(0):
        frozen = nn.Sequential(nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 10))
        shared = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64), nn.Linear(64, 10))
    frozen[0].requires_grad_(False)
    shared[2].weight = shared[0].weight
    for model, dimension in ((frozen, 90), (shared, 64 * 64 + 64 + 64 + 650)):
        trainer = Trainer(Custom(model), LOCAL)
        weights, rows = trainer.initial_weights(), some_clients([9, 4])
        assert trainer.dimension == dimension
        choice = trainer.choose(weights, data.train, rows)
        assert "is frozen or shared with another layer" in choice.refused["dual"]
        loop = Trainer(Custom(model), LOCAL, path="loop").train(weights, data.train, rows, [1, 2])
        found = Trainer(Custom(model), LOCAL, path="batched").train(
            weights, data.train, rows, [1, 2]
        )
        np.testing.assert_allclose(found, loop, atol=2e-6)
        assert np.abs(loop).max() > 0.01


class AcrossExamples(nn.Module):
    """Subtracts the batch's mean: right alone, wrong when clients share a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.linear(x)
        return outputs - outputs.mean(0)


class Branching(nn.Module):
    """Control flow that depends on the data, which vmap cannot follow."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.linear(x)
        return outputs * 2 if float(outputs.sum()) > 0 else outputs


def test_the_self_check_finds_models_that_mix_examples(data: FederatedData) -> None:
    with seeded(0):
        trainer = Trainer(Custom(AcrossExamples()), LOCAL)
    choice = trainer.choose(trainer.initial_weights(), data.train, some_clients([9, 9]))
    assert "differ from a plain loop's" in choice.refused["dual"]
    assert choice.path == "loop"


def test_the_self_check_falls_back_to_the_loop_for_branches_on_data(data: FederatedData) -> None:
    with seeded(0):
        trainer = Trainer(Custom(Branching()), LOCAL)
    choice = trainer.choose(trainer.initial_weights(), data.train, some_clients([9, 9]))
    assert choice.path == "loop"
    assert set(choice.refused) == {"dual", "batched"}
    assert "batched refused" in str(choice)


def test_running_statistics_are_refused_with_a_remedy() -> None:
    model = nn.Sequential(nn.Linear(64, 8), nn.BatchNorm1d(8))
    with pytest.raises(TrainingError, match="use GroupNorm"):
        Trainer(Custom(model), LOCAL)


def test_what_another_trainer_checked_is_not_checked_again(
    data: FederatedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("client.training.trainer.reason_to_refuse", lambda *_: "checked again")
    for checked in (True, False):
        trainer = Trainer(load("digits"), LOCAL, path="dual", chunk=2, checked=checked)
        call = trainer.initial_weights(), data.train, some_clients([9, 5]), [1, 2]
        if checked:
            assert np.abs(trainer.train(*call)).max() > 0
        else:
            with pytest.raises(ConfigError, match="checked again"):
                trainer.train(*call)


def test_auto_measures_once_and_then_remembers(data: FederatedData) -> None:
    task: Task = load("digits", {"hidden": 5})
    trainer = Trainer(task, LOCAL)
    assert trainer.choice is None
    weights, rows = trainer.initial_weights(), some_clients([5] * 20)
    trainer.train(weights, data.train, rows, range(20))
    choice = trainer.choice
    assert choice is not None
    assert (choice.path, choice.chunk) == best(choice.clients_per_second)
    other = Trainer(task, LOCAL)
    assert other.choose(weights, data.train, rows) is choice


def test_on_a_gpu_only_graphs_are_tried_and_memory_is_asked_once(
    data: FederatedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU that is this CPU, with a made-up memory."""
    asked: list[int] = []

    def clients_that_fit(_memory: object, train: Callable[[int], None], most: int) -> int:
        for clients in (2, 60):
            train(clients)
        asked.append(most)
        return 200

    monkeypatch.setattr("client.training.trainer.clients_that_fit", clients_that_fit)
    for _ in range(2):
        trainer = Trainer(load("digits"), LOCAL)
        weights = trainer.initial_weights()
        weights_on, pool = trainer._tensor(weights), trainer._place(data.train)
        device = SimpleNamespace(type="cuda")
        monkeypatch.setattr(trainer, "_device", device)
        choice = trainer._decide(weights_on, pool, some_clients([5, 9]), None)
        assert (choice.path, choice.chunk, dict(choice.refused)) == ("graph", 200, {})
    assert asked == [512]


def test_candidates_stay_within_memory_and_cohort() -> None:
    assert candidates(["dual", "loop"], clients=1000, most=40) == [
        ("dual", 8),
        ("dual", 32),
        ("loop", 1),
    ]
    assert candidates(["batched"], clients=1000, most=7) == [("batched", 3)], "half of what fits"
    assert candidates(["batched"], clients=1000, most=1) == [("batched", 1)]
    assert candidates(["batched"], clients=8, most=1000) == [("batched", 8)]


def test_a_slow_path_is_not_measured_with_larger_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    seen: list[tuple[str, int]] = []

    def train(path: str, clients: int) -> float:
        seen.append((path, clients))
        now[0] += 2.0
        return clients

    rates = measure([("batched", 8), ("batched", 32), ("loop", 1)], train)
    assert seen == [("batched", 8), ("loop", 1)]
    assert rates == {("batched", 8): 4.0, ("loop", 1): 0.5}


def test_what_keeps_the_machine_busy_for_a_while_decides_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first turn of each candidate takes ten times as long, for the larger chunks more."""
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    seen: list[tuple[str, int]] = []

    def train(path: str, clients: int) -> float:
        first = (path, clients) not in seen
        seen.append((path, clients))
        now[0] += clients * (0.001 if clients == 8 else 0.0005) * (10 if first else 1)
        return clients

    rates = measure([("dual", 8), ("dual", 32)], train)
    assert seen[:4] == [("dual", 8), ("dual", 32)] * 2
    assert rates == {("dual", 8): pytest.approx(1000), ("dual", 32): pytest.approx(2000)}
    assert best(rates) == ("dual", 32)


def test_what_will_run_is_what_is_measured(
    data: FederatedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sums are measured where sums are asked for, and remembered apart."""
    trainers = [Trainer(load("digits", {"hidden": 6}), LOCAL) for _ in range(2)]
    called: list[str] = []
    for trainer in trainers:
        runner = trainer._runner
        for name in ("updates", "clipped_sum"):
            method = getattr(runner, name)

            def spy(*args: Any, _of: Any = method, _name: str = name, **named: Any) -> Any:
                called.append(_name)
                return _of(*args, **named)

            monkeypatch.setattr(runner, name, spy)
    weights, rows = trainers[0].initial_weights(), some_clients([5] * 12)
    trainers[0].choose(weights, data.train, rows)
    assert set(called) == {"updates"}
    called.clear()
    trainers[1].clipped_sum(weights, data.train, rows, range(12), clip=1.0)
    assert len(called) > 1
    assert called[0] == "clipped_sum"


def test_weights_round_trip_and_evaluation(data: FederatedData) -> None:
    task = load("digits", {"hidden": 4})
    trainer = Trainer(task, LOCAL, seed=3)
    weights = trainer.initial_weights()
    weights[:] = np.arange(trainer.dimension, dtype=np.float32) / trainer.dimension
    state = trainer.state_dict(weights)
    assert list(state) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    np.testing.assert_array_equal(
        np.concatenate([value.numpy().ravel() for value in state.values()]), weights
    )
    model = task.init_model(0)
    model.load_state_dict(state)
    with torch.no_grad():
        outputs = model(data.test.x)
    metrics = trainer.evaluate(weights, data.test)
    assert metrics["accuracy"] == pytest.approx(
        float((outputs.argmax(1) == data.test.y).double().mean())
    )
    assert metrics["loss"] == pytest.approx(
        float(nn.functional.cross_entropy(outputs, data.test.y)), rel=1e-5
    )


def test_wrong_arguments_are_one_clear_line(data: FederatedData) -> None:
    task = load("digits")
    with pytest.raises(ConfigError, match=r"engine\.path = 'fast': allowed are auto, graph, dual"):
        Trainer(task, LOCAL, path="fast")
    with pytest.raises(ConfigError, match=r"engine\.chunk = -1"):
        Trainer(task, LOCAL, chunk=-1)
    trainer = Trainer(task, LOCAL, path="loop")
    with pytest.raises(TrainingError, match=r"shape \(3,\) does not fit .* 650 parameters"):
        trainer.train(np.zeros(3, np.float32), data.train, some_clients([1]), [1])
    with pytest.raises(TrainingError, match="rows of 1 clients, 2 seeds"):
        trainer.train(trainer.initial_weights(), data.train, some_clients([1]), [1, 2])
    with pytest.raises(TrainingError, match=r"expected float32 \(1, 650\)"):
        trainer.train(
            trainer.initial_weights(),
            data.train,
            some_clients([1]),
            [1],
            out=np.zeros((2, 650), np.float32),
        )
    with pytest.raises(TrainingError, match="clip = 0: must be positive"):
        trainer.clipped_sum(trainer.initial_weights(), data.train, [], [], clip=0)
    with pytest.raises(ConfigError, match=r"local\.optimizer = 'lamb'"):
        Trainer(load("digits"), LocalConfig(optimizer="lamb"))
    with pytest.raises(ConfigError, match=r"local\.epochs = 0"):
        LocalConfig(epochs=0)
    with pytest.raises(ConfigError, match=r"local\.momentum = 0\.9 is SGD's"):
        LocalConfig(optimizer="adam", momentum=0.9)


def test_no_clients_is_no_work(data: FederatedData) -> None:
    trainer, weights = Trainer(load("digits"), LOCAL), np.ones(650, np.float32)
    assert trainer.train(weights, data.train, [], []).shape == (0, 650)
    assert not trainer.clipped_sum(weights, data.train, [], [], clip=1.0).total.any()


def test_one_class_clients_train(data: FederatedData) -> None:
    task = load("digits")
    trainer = Trainer(task, LocalConfig(epochs=3, learning_rate=0.5), path="dual", chunk=4)
    zeros = np.flatnonzero(data.train.y.numpy() == 0)[:20]
    weights = trainer.initial_weights()
    update = trainer.train(weights, data.train, [zeros], [1])[0]
    some = Examples(x=data.train.x[zeros], y=data.train.y[zeros])
    assert trainer.evaluate(weights + update, some)["accuracy"] == 1.0
    assert split(data, "shards", 100, 0, shards=1).clients == 100
